"""The policy as its people read it, and what a new one would change. Nothing in it can hide or move text."""

from typing import Any

from boundary.canonical import canonical_bytes
from boundary.identity import PublicIdentity
from boundary.names import Frozen
from silo_agent.plain import plain
from silo_agent.policy.adoption import PolicyInForce
from silo_agent.policy.model import Policy, delta_of, digest_of
from silo_agent.policy.sections import DatasetRules, DicomwebSource, StudyRules
from silo_agent.policy.signing import signed_roles
from silo_agent.policy.tightening import Change, changes

_KINDS = {"tighter": "TIGHTER", "looser": "LOOSER: all signatures are needed", "equal": "the same in other words"}


def lines(policy: Policy) -> list[tuple[str, str]]:
    """(heading, text) pairs in plain words, in the order of the file."""
    network, hours, release = policy.network, policy.hours, policy.release
    said = [
        ("Hospital", policy.site),
        ("Policy digest", digest_of(policy)),
        ("Valid", f"{policy.valid.first} until {policy.valid.last}, both included (UTC)"),
        ("Who signs", f"{policy.approvers.required} different roles of: {_approvers(policy)}"),
        ("Where the agent dials", ", ".join(f"{one.host}:{one.port}" for one in network.allow) or "nowhere"),
        ("What leaves per round", f"at most {network.max_egress_mb_per_round} MB, in sums over at least "
         f"{release.min_parties_in_sum} hospitals"),
        ("What comes in per round", f"a model of at most {network.max_model_mb} MB"),
        ("Metrics", f"{', '.join(release.metrics) or 'none'}; counts in steps of at least {release.smallest_cell}"),
        ("When", f"{', '.join(hours.windows) or 'never'} ({hours.timezone}); at the end a step is finished, then "
         "the round waits"),
        *(line for name, rules in policy.dataset.items() for line in _dataset(name, rules, policy)),
        ("Pretrained weights", f"files in {policy.weights.folder}, those that a plan pins by SHA-256" if policy.weights
         else "none: plans that begin with a file of weights are turned down"),
        ("Privacy", _privacy(policy)),
        *(_study(heading, rules) for heading, rules in policy.study.items()),
        *([] if policy.study else [("Studies", "none: no plan can run here")]),
        ("Computers", f"{policy.resources.devices or 'no'} GPU(s), at most "
         f"{policy.resources.max_hours_per_round:g} hours per round"),
        ("Log", f"kept {policy.audit.retain_years} years, cosigned by {policy.audit.cosigners} others; if it was "
         "changed by anybody, no round starts"),
    ]  # fmt: skip
    return [(plain(heading), plain(text)) for heading, text in said]


def standing_lines(force: PolicyInForce) -> list[tuple[str, str]]:
    """By whose signatures the policy is in force."""
    pin = force.standing.pin
    roles = ", ".join(sorted(signed_roles(force.standing.signatures, pin.policy.approvers)))
    how = "by all that had to" if pin.how == "signed" else "as a tightening, for which one is enough"
    return [("In force", f"as number {pin.number}"), ("Signed", f"{how}: {roles}")]


def difference(old: Policy, new: Policy) -> list[tuple[str, str]]:
    """(field, text) for each field that changes, with the direction; empty if nothing does."""
    return [(plain(change.field), plain(_change(change))) for change in changes(old, new)]


def _change(change: Change) -> str:
    if change.before is None:
        return f"added: {_written(change.after)} ({_KINDS[change.kind]})"
    if change.after is None:
        return f"removed, was {_written(change.before)} ({_KINDS[change.kind]})"
    return f"{_written(change.before)} -> {_written(change.after)} ({_KINDS[change.kind]})"


def _written(value: Any) -> str:
    if isinstance(value, Frozen):
        return canonical_bytes(value.model_dump(mode="json", by_alias=True)).decode()
    if isinstance(value, tuple):
        return "[" + ", ".join(_written(one) for one in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _approvers(policy: Policy) -> str:
    approvers = policy.approvers
    return "; ".join(
        f"{role} (fingerprint {PublicIdentity(key).fingerprint})"
        for role, key in zip(approvers.roles, approvers.keys, strict=True)
    )


def _dataset(name: str, rules: DatasetRules, policy: Policy) -> list[tuple[str, str]]:
    source = rules.source.url if isinstance(rules.source, DicomwebSource) else rules.source.path
    delta = delta_of(rules)
    said = (
        f"{', '.join(rules.modalities)} from {source}, labels from {rules.labels.path} ({rules.labels.kind}); at least "
        f"{rules.min_patients} patients, at most {rules.max_images_per_patient} images of each; images with loss: "
        f"{rules.lossy}, with burned-in text: {rules.burned_in}; nobody who stands in {rules.exclusions.path}, which "
        f"may be {rules.exclusions.max_age_hours:g} hours old; declared for {rules.n_max_patients} patients of the "
        f"population {rules.population}, so epsilons are at delta {delta:g}"
    )
    found = [(f"Data set {name}", said)]
    if delta > policy.privacy.max_delta:
        found.append(
            (f"Note on {name}", f"its delta is more than max_delta = {policy.privacy.max_delta:g}: every plan with a "
             "guarantee will be refused until max_delta is raised or a larger n_max_patients is true")
        )  # fmt: skip
    return found


def _privacy(policy: Policy) -> str:
    privacy = policy.privacy
    others = "plans without a guarantee per patient are turned down"
    if not privacy.required:
        others = "plans WITHOUT a guarantee per patient are allowed too"
    return (
        f"a study may cost a patient epsilon {privacy.max_epsilon_per_study:g}, all studies together "
        f"{privacy.max_epsilon_lifetime:g}, at a delta of at most {privacy.max_delta:g}; noise of at least "
        f"{privacy.min_noise_multiplier:g} times the clipping norm; {others}"
    )


def _study(heading: str, rules: StudyRules) -> tuple[str, str]:
    plans = ", ".join(rules.plan_digest) or "none yet"
    return (
        f"Study {heading}",
        f"{rules.purpose}; ethics reference {rules.legal.irb}, impact assessment {rules.legal.dpia}, until "
        f"{rules.legal.expires} (UTC); at most {rules.max_rounds} rounds; exactly these plans: {plans}",
    )
