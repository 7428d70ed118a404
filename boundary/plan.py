"""The study plan: one TOML file, one frozen value, one digest. Any change is another plan.

The digest is SHA-256 over the RFC 8785 form of the parsed value, so comments and layout of the TOML do not
matter and nothing else is left out. Unknown keys are refused at every level.
"""

import tomllib
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from boundary.aggregation import Aggregation
from boundary.agreement import Evidence, Hospital, Purpose
from boundary.canonical import Digest, canonical_bytes, digest
from boundary.drawing import Selection
from boundary.errors import InvalidPlan, MalformedMessage
from boundary.guarantee import EPSILON_BANDS, MECHANISMS, NoPrivacy, Privacy
from boundary.identity import PublicIdentity
from boundary.images import Dataset, Labels, Preprocessing
from boundary.learning import Evaluation, ModelChoice, Personalisation, Server, Training
from boundary.names import Frozen, StudyName, VersionOne, list_in
from boundary.plan_checks import check_sections
from boundary.robustness import Robustness
from boundary.strategies import ADAPTIVE

MAX_PLAN_BYTES = 512 * 1024
_REASONS = {
    "extra_forbidden": "unknown key",
    "union_tag_not_found": f"say mechanism, one of {', '.join(MECHANISMS)}",
    "union_tag_invalid": f"the mechanism is none of {', '.join(MECHANISMS)}",
}
Task = Literal["classification", "segmentation"]


class StudyPlan(Frozen):
    """All that a steward approves, in sections that have files of their own. Compare by `digest_of`, never by name."""

    version: VersionOne
    name: StudyName
    revision: Annotated[int, Field(ge=1, le=1_000_000)]
    task: Task = "classification"
    purpose: Purpose
    hospitals: Annotated[tuple[Hospital, ...], BeforeValidator(list_in)]
    model: ModelChoice
    preprocessing: Preprocessing
    labels: Labels
    dataset: Dataset
    training: Training
    server: Server = Server()
    privacy: Privacy = NoPrivacy()
    aggregation: Aggregation = Aggregation()
    robustness: Robustness = Robustness()
    selection: Selection = Selection()
    evaluation: Evaluation = Evaluation()
    personalisation: Personalisation | None = None
    evidence: Evidence = Evidence()

    @model_validator(mode="after")
    def _sane(self) -> Self:
        check_sections(self)
        return self

    @property
    def server_learning_rate(self) -> float:
        """The plan's, or the strategy's usual one."""
        usual = 0.01 if self.training.strategy in ADAPTIVE else 1.0
        return usual if self.server.learning_rate is None else self.server.learning_rate

    @property
    def varies(self) -> bool:
        """Whether it is the plan's own wish that not the same hospitals are in every sum."""
        return self.selection.varies or self.robustness.leave_out

    @property
    def rounds_in_all(self) -> int:
        """With the one after the last in which hospitals personalise; it costs as much of a budget as each other."""
        return self.training.rounds + (self.personalisation is not None)

    @property
    def trains_beside(self) -> bool:
        """Whether hospitals train a model of their own beside each round's work."""
        return self.personalisation is not None and self.personalisation.method == "ditto"

    @property
    def has_controls(self) -> bool:
        """Whether hospitals correct their steps by control variates, one of which they are sent."""
        return self.training.strategy == "scaffold"

    @property
    def counts_steps(self) -> bool:
        """Whether a training reports its steps, and its change divided by them."""
        return self.training.strategy in {"fednova", "scaffold"}

    @property
    def bands(self) -> int:
        """How many bands of epsilon a training reports; 0 without a guarantee."""
        return 0 if self.privacy.mechanism == "none" else len(EPSILON_BANDS)

    @property
    def label(self) -> str:
        """`ct-contrast@3`: how people and the Prefect form name a plan."""
        return f"{self.name}@{self.revision}"

    @property
    def aim(self) -> str:
        """`to tell no from yes`, or `to outline liver and tumour in volumes of ...`: what the model is to do."""
        classes, preprocessing = self.labels.classes, self.preprocessing
        if self.task == "classification":
            return f"to tell {' from '.join(classes)}"
        sides = " x ".join(map(str, preprocessing.size))
        place = f"volumes of {sides} voxels" if len(preprocessing.size) == 3 else f"slices of {sides} pixels"
        if preprocessing.spacing is not None:
            place += f" of {' x '.join(f'{apart:g}' for apart in preprocessing.spacing)} mm"
        return f"to outline {' and '.join(classes[1:])} in {place}"

    @property
    def silos(self) -> tuple[str, ...]:
        return tuple(sorted(hospital.silo for hospital in self.hospitals))

    @property
    def keys(self) -> dict[str, PublicIdentity]:
        """The key the plan pins for each hospital."""
        return {hospital.silo: PublicIdentity(hospital.signing_key) for hospital in self.hospitals}


def to_json(plan: StudyPlan) -> bytes:
    """The canonical bytes that the digest is taken over and that travel to the hospitals."""
    return canonical_bytes(plan.model_dump(mode="json"))


def digest_of(plan: StudyPlan) -> Digest:
    return digest(to_json(plan))


def study_id(plan: StudyPlan) -> str:
    """`ct-contrast-7f3a90c1`: one plan digest is one study, and its name says so."""
    return f"{plan.name}-{digest_of(plan).removeprefix('sha256:')[:8]}"


def parse_plan(value: Any) -> StudyPlan:
    """From parsed JSON or TOML; raises `InvalidPlan` with the place and the reason, one per line."""
    try:
        return StudyPlan.model_validate(value)
    except ValidationError as why:
        raise InvalidPlan("\n".join(_explain(why))) from why


def plan_from_toml(text: str) -> StudyPlan:
    """Read a `study.toml`; raises `InvalidPlan`."""
    try:
        if len(text.encode()) > MAX_PLAN_BYTES:
            raise InvalidPlan(f"the plan is larger than {MAX_PLAN_BYTES} bytes")
        value = tomllib.loads(text)
    except (ValueError, RecursionError) as why:  # ValueError: also an integer of more than 4300 digits
        raise InvalidPlan(f"not TOML: {why}") from why
    return parse_plan(value)


def plan_from_json(value: Any) -> StudyPlan:
    """As `parse_plan` for what a peer sent: its fault, so `MalformedMessage`."""
    try:
        return parse_plan(value)
    except InvalidPlan as why:
        raise MalformedMessage(f"not a plan: {why}") from why


def _explain(why: ValidationError) -> list[str]:
    lines = []
    for error in why.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in error["loc"]) or "the plan"
        reason = _REASONS.get(error["type"], error["msg"])
        lines.append(f"{place}: {reason.removeprefix('Value error, ')}")
    return lines
