"""A policy of a hospital that exists for a test or a benchmark: signed by two, in force, and not narrow."""

import ssl
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from boundary.canonical import digest
from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, digest_of
from silo_agent.destination import address_of, spki_of
from silo_agent.policy.adoption import Pin, pin_json
from silo_agent.policy.files import PolicyFiles, next_number
from silo_agent.policy.model import Policy, policy_from
from silo_agent.policy.sections import Destination
from silo_agent.policy.signing import PolicySignatures, add_signature, unsigned
from silo_agent.policy.signing import to_json as signatures_json
from silo_agent.state import StateFolder, write_private

ANY_DAY = {"from": date(2020, 1, 1), "until": date(2099, 12, 31)}


def wide_policy(  # noqa: PLR0913 - one fact each
    site: str,
    keys: Sequence[str],
    dicom: Path,
    labels: Path,
    exclusions: Path,
    plans: Sequence[StudyPlan] = (),
    *,
    dataset: str = "images",
    most_patients: int = 100,
    study_epsilon: float = 8.0,
    lifetime_epsilon: float = 16.0,
    required: bool = False,
    least: int = 3,
    relay: Sequence[Destination] = (),
    windows: Sequence[str] = ("Mon-Sun 00:00-24:00",),
    weights: Path | None = None,
) -> dict[str, Any]:
    """The value of a policy.toml that lets these plans run at any hour."""
    return {
        "version": 1,
        "site": site,
        "valid": ANY_DAY,
        "approvers": {"required": 2, "roles": ["data_steward", "it_security"], "keys": list(keys)},
        "network": {"allow": [one.model_dump() for one in relay], "max_egress_mb_per_round": 1000},
        "hours": {"timezone": "UTC", "windows": list(windows), "on_close": "finish-step-then-pause"},
        "dataset": {
            dataset: {
                "source": {"kind": "folder", "path": str(dicom)},
                "labels": {"kind": "csv", "path": str(labels)},
                "modalities": ["CT", "CR", "DX", "US", "MR"],
                "exclusions": {"path": str(exclusions), "max_age_hours": 24 * 366},
                "min_patients": 1,
                "max_images_per_patient": 1000,
                "n_max_patients": most_patients,
                "lossy": "refuse",
                "burned_in": "refuse",
            }
        },
        **({} if weights is None else {"weights": {"folder": str(weights)}}),
        "privacy": {
            "max_epsilon_per_study": study_epsilon,
            "max_epsilon_lifetime": lifetime_epsilon,
            "max_delta": 0.1,
            "min_noise_multiplier": 0.1,
            "required": required,
        },
        "release": {
            "min_parties_in_sum": least,
            "metrics": ["loss", "accuracy", "auroc", "dice", "intensities", "cohort", "comparison"],
            "smallest_cell": 10,
        },
        "study": {plan.name: _rules([one for one in plans if one.name == plan.name]) for plan in plans},
        "resources": {"devices": 1, "max_hours_per_round": 24},
        "audit": {"retain_years": 6, "cosigners": 2, "on_fork": "halt"},
    }


def _rules(plans: Sequence[StudyPlan]) -> dict[str, Any]:
    legal = {"irb": "2025/118", "dpia": digest(b"an impact assessment"), "expires": date(2099, 12, 31)}
    digests = [digest_of(plan) for plan in plans]
    return {"plan_digest": digests, "purpose": plans[0].purpose.title, "legal": legal, "max_rounds": 10_000}


def destination_of(url: str) -> Destination:
    """A server as it shows itself now, believing it: who runs a test knows it."""
    host, port = address_of(url)
    shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, port)))
    return Destination(host=host, port=port, spki_sha256=spki_of(shown))


def put_in_force(folder: StateFolder, second: SigningIdentity, value: dict[str, Any]) -> Policy:
    """Write policy.toml, both signatures and the pin, as the next one after what was there."""
    policy, files = policy_from(value, "the policy"), PolicyFiles(folder.root)
    number = next_number(folder.root)
    signatures = _signed(policy, number, folder.steward, second)
    write_private(files.pin, pin_json(Pin(v=1, number=number, how="signed", policy=policy)))
    write_private(files.policy, toml_of(value).encode())
    write_private(files.signatures, signatures_json(signatures))
    return policy


def _signed(policy: Policy, number: int, steward: SigningIdentity, second: SigningIdentity) -> PolicySignatures:
    half = add_signature(unsigned(policy, number), policy, steward, "data_steward")
    return add_signature(half, policy, second, "it_security")


def toml_of(value: dict[str, Any]) -> str:
    """TOML of tables, what is deeper inline. Strings have nothing in them that TOML would escape."""
    plain = {name: inner for name, inner in value.items() if not isinstance(inner, dict)}
    lines = [f"{name} = {_inline(inner)}" for name, inner in plain.items()]
    for name in value.keys() - plain.keys():
        lines += [f"[{name}]", *(f'"{key}" = {_inline(inner)}' for key, inner in value[name].items())]
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"'
        case date():
            return value.isoformat()
        case dict():
            return "{ " + ", ".join(f'"{name}" = {_inline(inner)}' for name, inner in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(_inline(one) for one in value) + "]"
        case _:
            return repr(value)
