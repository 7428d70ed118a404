"""`keys.toml`: the keys a reviewer believes. It comes from the parties themselves, never out of the bundle.

`version = 1`, `coordinator = "ed25519:..."`, and for each hospital a table `[hospitals.<silo>]` with its `key` and, if
the reviewer knows who approves plans there, its `steward`.
"""

import tomllib
from typing import Annotated

from pydantic import Field, ValidationError

from boundary.aggregation import MAX_HOSPITALS
from boundary.fields import PublicKeyStr
from boundary.identity import PublicIdentity
from boundary.names import Frozen, SiloId, VersionOne
from compliance.bundle import Trust
from compliance.errors import ComplianceError

MAX_KEYS_BYTES = 256 * 1024


class InvalidKeys(ComplianceError):
    """A `keys.toml` that is none. The sentence says where."""

    code = "INVALID_KEYS"


class _Hospital(Frozen):
    key: PublicKeyStr
    steward: PublicKeyStr | None = None


class _Keys(Frozen):
    version: VersionOne
    coordinator: PublicKeyStr
    hospitals: Annotated[dict[SiloId, _Hospital], Field(max_length=MAX_HOSPITALS)]


def parse_keys(data: bytes) -> Trust:
    """Read a `keys.toml`; raises `InvalidKeys`."""
    if len(data) > MAX_KEYS_BYTES:
        raise InvalidKeys(f"larger than {MAX_KEYS_BYTES} bytes")
    try:
        keys = _Keys.model_validate(tomllib.loads(data.decode()))
    except ValidationError as why:
        first = why.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidKeys(f"{place}: {first['msg']}") from why
    except (ValueError, RecursionError) as why:  # not UTF-8, not TOML
        raise InvalidKeys(f"not TOML: {why}") from why
    parties = [keys.coordinator, *(hospital.key for hospital in keys.hospitals.values())]
    if len(set(parties)) != len(parties):
        raise InvalidKeys("two parties have one key")
    return Trust(
        coordinator=PublicIdentity(keys.coordinator),
        hospitals={silo: PublicIdentity(said.key) for silo, said in keys.hospitals.items()},
        stewards={silo: PublicIdentity(said.steward) for silo, said in keys.hospitals.items() if said.steward},
    )


def keys_text(trust: Trust) -> str:
    """What `parse_keys` reads. Whoever gets it from us still has to compare the keys with their owners."""
    lines = ["version = 1", f'coordinator = "{trust.coordinator.text}"']
    for silo, key in sorted(trust.hospitals.items()):
        lines += ["", f"[hospitals.{silo}]", f'key = "{key.text}"']
        if silo in trust.stewards:
            lines.append(f'steward = "{trust.stewards[silo].text}"')
    return "\n".join(lines) + "\n"
