"""policy.toml: parsed once to a frozen value, with one digest. Any change is another digest and needs signatures.

The digest is SHA-256 over the RFC 8785 form of the parsed value, as for plans: comments and layout do not matter and
nothing else is left out. Unknown keys are refused at every level.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from boundary.canonical import Digest, canonical_bytes, digest
from boundary.names import Frozen, SiloId, StudyName, VersionOne
from boundary.parties import validators
from boundary.plan import StudyPlan
from silo_agent.errors import ConfigError
from silo_agent.forms import reason_of
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.hours import Hours
from silo_agent.policy.sections import (
    Approvers,
    AuditRules,
    DatasetRules,
    Network,
    PrivacyRules,
    ReleaseRules,
    ResourceRules,
    StudyRules,
    Validity,
    WeightsRules,
)

MAX_POLICY_BYTES = 512 * 1024
_REASONS = {
    "extra_forbidden": "unknown key",
    "missing": "is missing, and what is not said is not allowed",
    "union_tag_not_found": "say kind",
    "union_tag_invalid": "an unknown kind",
}

# As people write it (CT-CONTRAST-01); the plan's own name is the same in lower case.
StudyHeading = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,38}[A-Za-z0-9])?$")]


class Policy(Frozen):
    """All that the approvers sign. Compare by `digest_of`, or by `silo_agent.policy.tightening`."""

    version: VersionOne
    site: SiloId
    valid: Validity
    approvers: Approvers
    network: Network
    hours: Hours
    dataset: Annotated[dict[StudyName, DatasetRules], Field(max_length=100)]
    weights: WeightsRules | None = None
    privacy: PrivacyRules
    release: ReleaseRules
    study: Annotated[dict[StudyHeading, StudyRules], Field(max_length=1000, default_factory=dict)]
    resources: ResourceRules
    audit: AuditRules

    @model_validator(mode="after")
    def _sane(self) -> Self:
        names = [heading.lower() for heading in self.study]
        if len(set(names)) != len(names):
            raise ValueError("study: two headings are one name but for capitals: merge them")
        plans = [plan for study in self.study.values() for plan in study.plan_digest]
        if len(set(plans)) != len(plans):
            raise ValueError("study: a plan_digest stands twice: one plan belongs to one study")
        return self

    @property
    def weights_folder(self) -> str | None:
        """Where files of pretrained weights are, None if plans may not begin with any."""
        return None if self.weights is None else self.weights.folder

    def study_of(self, plan_name: str) -> StudyRules | None:
        """The rules of the study whose plans have this name, None if the policy does not name it."""
        return next((rules for heading, rules in self.study.items() if heading.lower() == plan_name), None)


def to_json(policy: Policy) -> bytes:
    """The canonical bytes that the digest is taken over."""
    return canonical_bytes(policy.model_dump(mode="json", by_alias=True))


def digest_of(policy: Policy) -> Digest:
    return digest(to_json(policy))


def parse_policy(data: bytes, where: str) -> Policy:
    """From the bytes of a policy.toml. Raises `ConfigError` with the place and the fix; `where` is the file's name."""
    if len(data) > MAX_POLICY_BYTES:
        raise ConfigError(f"{where} is larger than {MAX_POLICY_BYTES} bytes: a policy never is, so look what it holds")
    try:
        value = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as why:  # ValueError: also what is not UTF-8, not TOML, or 4300 digits long
        raise ConfigError(f"{where} cannot be read: {why}") from why
    return policy_from(value, where)


def policy_from(value: Any, where: str) -> Policy:
    """As `parse_policy`, from parsed TOML or JSON."""
    try:
        return Policy.model_validate(value)
    except ValidationError as why:
        raise ConfigError(f"{where}: {'; '.join(_explain(why))}") from why


def _explain(why: ValidationError) -> list[str]:
    problems = []
    for error in why.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in error["loc"]) or "the policy"
        reason = _REASONS.get(error["type"]) or reason_of(error)
        if error["type"].startswith("union_tag"):
            reason += f", one of {error['ctx'].get('expected_tags', 'folder, dicomweb')}"
        problems.append(f"{place}: {reason}")
    return problems


def delta_of(rules: DatasetRules) -> float:
    """The delta that every epsilon of this data set is at (`compliance.terms.delta_of`)."""
    return 1 / (10 * rules.n_max_patients)


@dataclass(frozen=True, slots=True)
class PatientCaps:
    """What the patients of a data set may be exposed to, by plans with a guarantee per patient.

    `most_patients` is a public number that the archive will not outgrow: sampling rates and delta come from it, never
    from a count. `population` names the people: data sets of one population may share patients, and what is spent on
    one is spent on all. Epsilons are at delta = 1 / (10 * most_patients).
    """

    most_patients: int
    study_epsilon: float
    lifetime_epsilon: float
    population: StudyName
    required: bool


@dataclass(frozen=True, slots=True)
class SiloDataset:
    """One data set of the hospital as the policy in force names it, by the name that plans use."""

    name: str
    rules: DatasetRules
    caps: PatientCaps
    site: str = ""  # the hospital whose policy it is

    def is_held_back(self, plan: StudyPlan) -> bool:
        """Whether all patients are: nobody is trained on here, by this plan."""
        return self.site in validators(plan)

    def told(self, state: Path) -> dict[str, Any]:
        """What a scan reads, as JSON (`intake.sources.opened_source`).

        An archive's login, and its CA where it has one of its own, lie in the state folder under the data set's name.
        """
        source = self.rules.source.model_dump(mode="json")
        if source["kind"] == "dicomweb":
            beside = state / f"archive-{self.name}"
            source |= {"credentials": f"{beside}.credentials", "authority": f"{beside}.pem"}
        return {"source": source, "labels": self.rules.labels.model_dump(mode="json")}


def dataset_of(policy: Policy, name: str) -> SiloDataset:
    """Raises `PolicyRefused` for a data set that the policy does not name."""
    rules, privacy = policy.dataset.get(name), policy.privacy
    if rules is None:
        raise PolicyRefused(
            PolicyCode.DATASET_NOT_ALLOWED, f"the policy names no data set {name}: add [dataset.{name}]"
        )
    caps = PatientCaps(
        most_patients=rules.n_max_patients,
        study_epsilon=privacy.max_epsilon_per_study,
        lifetime_epsilon=privacy.max_epsilon_lifetime,
        population=rules.population,
        required=privacy.required,
    )
    return SiloDataset(name, rules, caps, policy.site)
