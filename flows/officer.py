"""The compliance officer's own side: a key that the coordinator never has, and a signature over one exact bundle."""

from pathlib import Path

from boundary.canonical import digest, parse_json
from boundary.errors import MalformedMessage
from boundary.identity import SigningIdentity
from boundary.names import encode_base64
from compliance.decision import Choice, Decision
from compliance.records import record_from
from flows.authority import write_secret


def make_key(path: Path) -> str:
    """Write a new key to `path`, mode 0600, and return the public one. Raises `FileExistsError`."""
    if path.exists():
        raise FileExistsError(f"{path} exists already: a key is never written over")
    key = SigningIdentity.generate()
    write_secret(path, key.to_pem())
    return key.public.text


def decide(bundle: Path, choice: Choice) -> Decision:
    """The decision about the model of a bundle, to be signed. Raises `MalformedMessage` for what is no bundle.

    Verify the bundle first: this only reads which one it is.
    """
    try:
        manifest = (bundle / "manifest.json").read_bytes()
        newest = max((bundle / "rounds").glob("*.json"))
        record = record_from(newest.read_bytes())
        study = parse_json(manifest)["study"]
    except (OSError, ValueError, KeyError, TypeError) as why:
        raise MalformedMessage(f"{bundle} is not a bundle with rounds in it: {why}") from why
    if study != record.study:
        raise MalformedMessage(f"{bundle} holds rounds of {record.study} and is about {study}")
    return Decision(
        study=record.study, round=record.round, model=record.model_out.digest, manifest=digest(manifest), choice=choice
    )


def signed(decision: Decision, key: Path) -> str:
    """What the officer pastes into Prefect's form, base64. Raises `ValueError` for a file that is no key."""
    return encode_base64(decision.sign(SigningIdentity.from_pem(key.read_bytes())))
