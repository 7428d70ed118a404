"""Whether one policy allows at most what another allows, decided field by field.

Every field has a direction. A change against it, or in a field of which nobody can say what is stricter, is a
loosening. A field without a direction here is one too, so a new key can never be slipped in as harmless.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from boundary.names import Frozen
from silo_agent.policy.hours import within
from silo_agent.policy.model import Policy
from silo_agent.policy.sections import (
    AuditRules,
    DatasetRules,
    Exclusions,
    Legal,
    Network,
    PrivacyRules,
    ReleaseRules,
    ResourceRules,
    StudyRules,
    Validity,
    WeightsRules,
)

Direction = Callable[[Any, Any], bool]  # (new, old) -> whether new allows at most what old allows
Kind = Literal["tighter", "looser", "equal"]


def _at_most(new: Any, old: Any) -> bool:
    return bool(new <= old)


def _at_least(new: Any, old: Any) -> bool:
    return bool(new >= old)


def _same(new: Any, old: Any) -> bool:
    return bool(new == old)


def _some_of(new: Any, old: Any) -> bool:
    return set(new) <= set(old)


def _refuses(new: Any, old: Any) -> bool:
    return new in (old, "refuse")


def _same_people(new: Any, old: Any) -> bool:
    return bool(new.required == old.required and new.members == old.members)


DIRECTIONS: dict[type[Frozen], dict[str, Direction]] = {
    Policy: {"version": _same, "site": _same, "approvers": _same_people, "hours": within},
    Validity: {"first": _at_least, "last": _at_most},
    Network: {"allow": _some_of, "max_egress_mb_per_round": _at_most, "max_model_mb": _at_most},
    DatasetRules: {
        "source": _same,
        "labels": _same,
        "modalities": _some_of,
        "min_patients": _at_least,
        "max_images_per_patient": _at_most,
        "n_max_patients": _same,  # smaller is fewer people but a larger delta and sampling rate
        "population": _same,
        "lossy": _refuses,
        "burned_in": _refuses,
    },
    Exclusions: {"path": _same, "max_age_hours": _at_most},
    WeightsRules: {"folder": _same},
    PrivacyRules: {
        "max_epsilon_per_study": _at_most,
        "max_epsilon_lifetime": _at_most,
        "max_delta": _at_most,
        "min_noise_multiplier": _at_least,
        "required": _at_least,
    },
    ReleaseRules: {"min_parties_in_sum": _at_least, "metrics": _some_of, "smallest_cell": _at_least},
    StudyRules: {"plan_digest": _some_of, "purpose": _same, "max_rounds": _at_most},
    Legal: {"irb": _same, "dpia": _same, "expires": _at_most},
    ResourceRules: {"devices": _at_most, "max_hours_per_round": _at_most},
    # keeping a log longer proves more and stores more: no direction
    AuditRules: {"retain_years": _same, "cosigners": _at_least, "on_fork": _same},
}


@dataclass(frozen=True, slots=True)
class Change:
    """A field that is not as it was. `before` or `after` is None for a table that was added or removed.

    `equal` is the same in other words: a list in another order, hours cut into other windows.
    """

    field: str
    before: Any
    after: Any
    kind: Kind


def changes(old: Policy, new: Policy) -> tuple[Change, ...]:
    """Every field that differs, in the order of the file."""
    return tuple(_between(old, new, ""))


def is_tightening(old: Policy, new: Policy) -> bool:
    """Whether `new` allows at most what `old` allows; also if they are equal."""
    return all(change.kind != "looser" for change in changes(old, new))


def _between(old: Frozen, new: Frozen, place: str) -> list[Change]:
    directions = DIRECTIONS.get(type(old), {})
    found: list[Change] = []
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        where = f"{place}{field.alias or name}"
        if before == after:
            continue
        if name in directions:
            found.append(Change(where, before, after, _kind(directions[name], before, after)))
        elif isinstance(before, dict) and isinstance(after, dict):
            found += _tables(before, after, where)
        elif isinstance(before, Frozen) and type(before) is type(after):
            found += _between(before, after, f"{where}.")
        elif isinstance(before, Frozen) and after is None:  # without a table of its kind nothing of it is allowed
            found.append(Change(where, before, after, "tighter"))
        else:
            found.append(Change(where, before, after, "looser"))
    return found


def _kind(allows_at_most: Direction, before: Any, after: Any) -> Kind:
    if not allows_at_most(after, before):
        return "looser"
    return "equal" if allows_at_most(before, after) else "tighter"


def _tables(old: dict[str, Any], new: dict[str, Any], place: str) -> list[Change]:
    """What a table no longer names is no longer allowed; what it newly names is."""
    found: list[Change] = []
    for name in [*old, *(name for name in new if name not in old)]:
        where = f"{place}.{name}"
        if name not in new:
            found.append(Change(where, old[name], None, "tighter"))
        elif name not in old:
            found.append(Change(where, None, new[name], "looser"))
        elif old[name] != new[name]:
            found += _between(old[name], new[name], f"{where}.")
    return found
