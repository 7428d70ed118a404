"""The tables of policy.toml, each a frozen value. A key that is not named here is refused.

Where the design page and the code had different names for one thing, this is what becomes of it:

| policy.toml | in the code so far |
|---|---|
| `dataset.X.n_max_patients` | `PatientCaps.most_patients`, the public constant: delta = 1 / (10 n_max_patients) |
| `dataset.X.population` | `PatientCaps.population`: data sets of one population may share patients |
| `privacy.max_epsilon_per_study` | `PatientCaps.study_epsilon` |
| `privacy.max_epsilon_lifetime` | `PatientCaps.lifetime_epsilon` |
| `privacy.required` | `PatientCaps.required` |
| `release.min_parties_in_sum` | `Sums.least_hospitals` |

`privacy.max_delta` is a ceiling over every data set's own delta; it does not replace it.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from boundary.aggregation import MAX_HOSPITALS, SMALLEST_COHORT
from boundary.fields import Day, Names, PublicKeyStr, Sentence, Word
from boundary.names import DigestStr, Frozen, StudyName, list_in
from compliance.events import CELL
from silo_agent.intake.dicomweb.endpoint import Endpoint
from silo_agent.intake.dicomweb.errors import NotDicomweb

MODALITIES = frozenset({"CT", "CR", "DX", "US", "MR"})  # those that plans can ask for (boundary.images.Dataset)
ROLE_PATTERN = r"^[a-z][a-z_]{1,30}$"  # as in boundary.approval
Megabytes = Annotated[int, Field(ge=1, le=100_000)]  # of 10^6 bytes
Role = Annotated[str, Field(pattern=ROLE_PATTERN)]


def _absolute(path: str) -> str:
    if not path.startswith("/") or not path.isprintable() or ".." in path.split("/"):
        raise ValueError("an absolute path without .. and without invisible characters, for example /data/ct")
    return path


def _archive_address(url: str) -> str:
    try:
        Endpoint(url).root()
    except NotDicomweb as why:
        raise ValueError(str(why)) from None
    return url


def _known(modalities: tuple[str, ...]) -> tuple[str, ...]:
    if not modalities or set(modalities) - MODALITIES:
        raise ValueError(f"some of {', '.join(sorted(MODALITIES))}")
    return modalities


LocalPath = Annotated[str, Field(max_length=1000), AfterValidator(_absolute)]


class Validity(Frozen):
    """First and last day, both included, in UTC like the days of plans."""

    first: Annotated[Day, Field(alias="from")]
    last: Annotated[Day, Field(alias="until")]

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.last < self.first:
            raise ValueError("until lies before from")
        return self


class Approvers(Frozen):
    """Who signs. The n-th key belongs to the n-th role; a role with two keys has a deputy.

    `required` is how many different roles have to sign, each with its own key.
    """

    required: Annotated[int, Field(ge=2, le=10)]
    roles: Annotated[tuple[Role, ...], BeforeValidator(list_in), Field(max_length=50)]
    keys: Annotated[tuple[PublicKeyStr, ...], BeforeValidator(list_in), Field(max_length=50)]

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if len(self.roles) != len(self.keys):
            raise ValueError("roles and keys go in pairs: the n-th key belongs to the n-th role")
        if len(set(self.keys)) != len(self.keys):
            raise ValueError("keys: names a key twice; each person has a key of their own")
        if len(set(self.roles)) < self.required:
            raise ValueError("required: more than there are different roles")
        return self

    @property
    def members(self) -> frozenset[tuple[str, str]]:
        """(role, key) pairs."""
        return frozenset(zip(self.roles, self.keys, strict=True))


class Destination(Frozen):
    """One address the agent may dial, and the SHA-256 of its certificate's public key (RFC 7469), as hex digits."""

    host: Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$|^[0-9a-f:]+$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    spki_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Network(Frozen):
    """Where the agent dials, and how much goes out and comes in per round.

    `max_model_mb` is for the incoming model; without it a model may be as large as what leaves in a round.
    """

    allow: Annotated[tuple[Destination, ...], BeforeValidator(list_in), Field(max_length=50)]
    max_egress_mb_per_round: Megabytes
    max_model_mb: Megabytes

    @model_validator(mode="before")
    @classmethod
    def _as_large(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "max_egress_mb_per_round" in raw:
            return {"max_model_mb": raw["max_egress_mb_per_round"], **raw}
        return raw


class FolderSource(Frozen):
    """DICOM files in a folder tree."""

    kind: Literal["folder"]
    path: LocalPath


class DicomwebSource(Frozen):
    """An archive that speaks DICOMweb (PS3.18). Credentials do not belong into its address."""

    kind: Literal["dicomweb"]
    url: Annotated[str, Field(max_length=1000), AfterValidator(_archive_address)]


class LabelSource(Frozen):
    """A table keyed by a UID, or masks: DICOM SEG or NIfTI."""

    kind: Literal["csv", "parquet", "seg", "nifti"]
    path: LocalPath


class Exclusions(Frozen):
    """The list of those who withdrew or opted out, and how old it may be at the start of a round."""

    path: LocalPath
    max_age_hours: Annotated[float, Field(gt=0, le=24 * 366)]


class DatasetRules(Frozen):
    """One data set, by the name that plans use, and what may be taken from it.

    `n_max_patients` is a public number that the archive will not outgrow, never a count: the sampling rate and
    delta = 1 / (10 n_max_patients) come from it. Fewer than `min_patients` do not take part in anything.
    """

    source: Annotated[FolderSource | DicomwebSource, Field(discriminator="kind")]
    labels: LabelSource
    modalities: Annotated[Names, AfterValidator(_known)]
    exclusions: Exclusions
    min_patients: Annotated[int, Field(ge=1, le=10_000_000)]
    max_images_per_patient: Annotated[int, Field(ge=1, le=1000)]
    n_max_patients: Annotated[int, Field(ge=1, le=10_000_000)]
    population: StudyName = "everybody"
    lossy: Literal["refuse", "allow"]
    burned_in: Literal["refuse", "allow"]

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.min_patients > self.n_max_patients:
            raise ValueError("min_patients: more than n_max_patients, so no number of patients would do")
        return self


class WeightsRules(Frozen):
    """Where this hospital keeps files of pretrained weights, by whatever way they came: never from the coordinator.

    Which of them a study may begin with stands in its plan, by SHA-256, and with it in `study.X.plan_digest`.
    """

    folder: LocalPath


class PrivacyRules(Frozen):
    """What patients may be exposed to. Epsilons are at each data set's delta, which `max_delta` bounds.

    `required` turns down plans without a guarantee per patient.
    """

    max_epsilon_per_study: Annotated[float, Field(gt=0, le=100)]
    max_epsilon_lifetime: Annotated[float, Field(gt=0, le=1000)]
    max_delta: Annotated[float, Field(gt=0, le=0.1)]
    min_noise_multiplier: Annotated[float, Field(ge=0.1, le=60)]
    required: bool = True

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.max_epsilon_per_study > self.max_epsilon_lifetime:
            raise ValueError("max_epsilon_per_study: more than max_epsilon_lifetime, which would hold it back anyway")
        return self


class ReleaseRules(Frozen):
    """What may be said: in sums over how many hospitals, which metrics, counts of how many at least."""

    min_parties_in_sum: Annotated[int, Field(ge=SMALLEST_COHORT, le=MAX_HOSPITALS)]
    metrics: Annotated[Names, Field(max_length=50)]
    smallest_cell: Annotated[int, Field(ge=CELL, le=1_000_000)]


class Legal(Frozen):
    """The study's papers in this hospital: ethics reference, impact assessment, and the last day of both, in UTC."""

    irb: Word
    dpia: DigestStr
    expires: Day


class StudyRules(Frozen):
    """A study that may run here: these exact plans and no others."""

    plan_digest: Annotated[tuple[DigestStr, ...], BeforeValidator(list_in), Field(max_length=100)]
    purpose: Sentence
    legal: Legal
    max_rounds: Annotated[int, Field(ge=1, le=10_000)]


class ResourceRules(Frozen):
    """How many GPUs (0: only processors), and for how many hours a round."""

    devices: Annotated[int, Field(ge=0, le=64)]
    max_hours_per_round: Annotated[float, Field(gt=0, le=24 * 14)]


class AuditRules(Frozen):
    """How long the log is kept, how many others have to cosign it, and what a log that was changed leads to."""

    retain_years: Annotated[int, Field(ge=1, le=100)]
    cosigners: Annotated[int, Field(ge=0, le=MAX_HOSPITALS)]
    on_fork: Literal["halt"]
