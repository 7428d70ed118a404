"""The study plan: one TOML file, one frozen value, one digest. Any change is another plan.

The digest is SHA-256 over the RFC 8785 form of the parsed value, so comments and layout of the TOML do not
matter and nothing else is left out. Unknown keys are refused at every level.
"""

import math
import tomllib
import unicodedata
from datetime import date, datetime, time
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from boundary.canonical import Digest, canonical_bytes, digest
from boundary.drawing import Selection, check_selection
from boundary.errors import InvalidPlan, MalformedMessage
from boundary.guarantee import EPSILON_BANDS, MECHANISMS, NoPrivacy, Privacy
from boundary.identity import PublicIdentity
from boundary.low_rank import ADAPTERS, LowRank
from boundary.names import DigestStr, Frozen, SiloId, StudyName, VersionOne, list_in, whole
from boundary.pretrained import Pretrained
from boundary.robustness import Robustness
from boundary.series import SeriesRule
from boundary.stored import Dtype
from boundary.strategies import ADAPTIVE, Strategy

SMALLEST_COHORT = 3  # hospitals in one sum; two could subtract themselves from it (secure-aggregation.md)
MAX_HOSPITALS = 200
MAX_PLAN_BYTES = 512 * 1024
MOST_VOXELS = 2**24  # of one model input: 64 MB as float32
MOST_IN_A_STEP = 2**27  # voxels of a segmentation's batch, or of one answer: 512 MB as float32
MOST_MODELS = 20  # finished ones that one plan evaluates
MOST_ROUNDS = 10_000  # `boundary.names.RoundNumber`
LARGEST_SUM = 2**39  # of the numbers of all hospitals (`boundary.secagg.encoding`)
_REASONS = {
    "extra_forbidden": "unknown key",
    "union_tag_not_found": f"say mechanism, one of {', '.join(MECHANISMS)}",
    "union_tag_invalid": f"the mechanism is none of {', '.join(MECHANISMS)}",
}
_JOINERS = "\u200c\u200d"  # the only invisible characters that some scripts are written with


def _date_in(raw: Any) -> Any:
    if isinstance(raw, str):
        day = date.fromisoformat(raw)
        if day.isoformat() != raw:  # 20261231 and 2026-W53-4 are the same day in other words
            raise ValueError("a date has one form, for example 2026-12-31")
        return day
    if isinstance(raw, datetime | time):
        raise ValueError("a plain date, for example 2026-12-31")  # noqa: TRY004 - pydantic reports ValueError
    return raw


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names something twice")
    return values


def _readable(text: str) -> str:
    """A steward signs what she reads: no terminal escapes, no reordering, nothing invisible."""
    for char in text:
        if unicodedata.category(char) in {"Cc", "Cf", "Co", "Zl", "Zp"} and char not in _JOINERS + "\n":
            raise ValueError(f"holds the invisible character U+{ord(char):04X}")
    return text


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("holds a line break")
    return _readable(text)


def _sound_key(key: str) -> str:
    """No second name for a key, and no key whose owner could disown what it signed (`boundary.identity`)."""
    try:
        return PublicIdentity(key).text
    except MalformedMessage as why:
        raise ValueError("not a public key, or not one that binds its owner") from why


Day = Annotated[date, BeforeValidator(_date_in), PlainSerializer(date.isoformat, return_type=str, when_used="json")]
Word = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_one_line)]
Names = Annotated[tuple[Word, ...], BeforeValidator(list_in), AfterValidator(_distinct)]
Sentence = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_readable)]
PublicKeyStr = Annotated[str, Field(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$"), AfterValidator(_sound_key)]
Unit = Annotated[float, Field(ge=-1e6, le=1e6)]  # HU, percent: within what the digest's JSON can carry
Millimetres = Annotated[float, Field(ge=0.05, le=50)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Purpose(Frozen):
    """Why the study may be done, in the words a steward and a reviewer read."""

    title: Sentence
    statement: Sentence
    legal_basis: Sentence
    ethics_reference: Sentence
    expires: Day
    retain_years: Annotated[int, Field(ge=1, le=100)] = 6


class Hospital(Frozen):
    """A hospital by name *and* key, so that a coordinator cannot invent or swap a party.

    One that only validates trains nothing: it holds all of its patients back and measures models on them
    (`boundary.parties`).
    """

    silo: SiloId
    signing_key: PublicKeyStr
    role: Literal["train", "validate"] = "train"


class ModelChoice(Frozen):
    """A network of the catalogue in `models/`, by name and version, and which of its parameters are learned where.

    `trained` and `home` are patterns of parameters' names (`*` any text, `?` any character, `[seq]`; case counts). Only
    what matches `trained` is trained; all else stays as the study begins and is sent to a hospital once. Of the trained
    ones, those that match `home` are every hospital's own and never leave it: normalisation for FedBN (Li et al. 2021),
    a head for FedPer (Arivazhagan et al. 2019). What is left moves: it alone is summed and sent in each round.

    `pretrained` is a file that every party has, with which the network begins in the place of the seed's draw. With
    `lora` linear layers get adapters, parameters of their own that `trained` has to name; the layers stay as they are.
    """

    name: StudyName
    version: Annotated[int, Field(ge=1, le=1_000_000)]
    initial_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    trained: Names = ("*",)
    home: Names = ()
    pretrained: Pretrained | None = None
    lora: LowRank | None = None

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.lora is not None and "*" in self.trained:
            raise ValueError(f'trained: with lora say what is trained, ["{ADAPTERS}"] and for example the head')
        return self

    @property
    def needs_a_look(self) -> bool:
        """Whether a hospital has to build the network before it can say whether the plan fits here."""
        return self.pretrained is not None or self.lora is not None

    @property
    def moves_whole(self) -> bool:
        """Whether every parameter is trained and sent."""
        return "*" in self.trained and not self.home


class Preprocessing(Frozen):
    """How every hospital turns a stored image into the model's input: one channel, size (height, width) px.

    For a model of volumes size is (depth, height, width) in voxels and `spacing` their distances in mm, to which each
    volume is resampled; then it is cut or padded to size around its centre. So are slices for which `spacing` is given,
    (between rows, between columns); without it an image is fitted into size with its aspect ratio kept.

    `window` maps [low, high] of the modality's unit (HU for CT) to [0, 1]; `percentiles` does so with two
    percentiles of the image itself, for modalities whose values have no unit. With `normalise = "federated"` the mean
    over the training images of all hospitals is then taken off and the rest divided by their standard deviation; both
    come from a masked sum before round 1.
    """

    size: Annotated[tuple[int, ...], BeforeValidator(list_in)]
    spacing: Annotated[tuple[Millimetres, ...] | None, BeforeValidator(list_in)] = None
    intensity: Literal["window", "percentiles"]
    low: Unit
    high: Unit
    normalise: Literal["none", "federated"] = "none"

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if len(self.size) not in (2, 3):
            raise ValueError("size: (height, width), or (depth, height, width) for volumes")
        if not all(16 <= side <= 1024 for side in self.size) or math.prod(self.size) > MOST_VOXELS:
            raise ValueError(f"size: each side has 16 to 1024 pixels, and all of it at most {MOST_VOXELS}")
        if self.spacing is None and len(self.size) == 3:
            raise ValueError("spacing: a volume is resampled, say to which distances in mm")
        if self.spacing is not None and len(self.spacing) != len(self.size):
            raise ValueError("spacing: one distance for each side of size, in the same order")
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.intensity == "percentiles" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        return self


class Labels(Frozen):
    """The label contract, checked on the hospital's own table before approval is offered.

    `classes` lists the values of the column in the order of the model's outputs; for two classes the second
    is the positive one. Without `column` the table must have exactly one column that is not a UID. For segmentation the
    first class is the background, and the others are the Segment Labels of the masks; there is no table then, and an
    image counts for every class that it shows.
    """

    column: Word | None = None
    classes: Names
    minimum_per_class: Annotated[int, Field(ge=0, le=10_000_000)] = 1

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if not 2 <= len(self.classes) <= 100:
            raise ValueError("classes: two to one hundred")
        return self


class Dataset(Frozen):
    """Which of a hospital's images take part. `name` is the data set in the hospital's own configuration.

    With `series` images are volumes, one of each imaging study, or their slices where the model is of two dimensions.
    With `described` the cohort is counted once, in a masked sum: patients, images and classes on each side, images per
    patient, intensities of the model's inputs (`boundary.description`).
    """

    name: StudyName
    modalities: Names
    max_images_per_patient: Annotated[int, Field(ge=1, le=1000)] = 8
    min_patients: Annotated[int, Field(ge=1, le=10_000_000)] = 2
    max_excluded_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    holdout_share: Fraction = 0.2
    series: SeriesRule | None = None
    described: bool = False

    @model_validator(mode="after")
    def _sane(self) -> Self:
        unknown = set(self.modalities) - {"CT", "CR", "DX", "US", "MR"}
        if unknown or not self.modalities:
            raise ValueError("modalities: some of CT, CR, DX, US, MR")
        if self.series is not None and self.modalities != (self.series.modality,):
            raise ValueError("series.modality: the one modality of the data set")
        return self


class Training(Frozen):
    """What happens between two global models. The seed is for initialisation and shuffling only.

    With a guarantee per patient (`PatientPrivacy`) a round is its `steps`, not epochs, and `batch_size` does not apply.
    `proximal` is the strength of FedProx's pull towards the round's model. A hospital's weight in the sum is its number
    of training images or patients, 1, or what it declares as its most patients, which is public. With 0 `rounds`
    nothing is trained: finished models are evaluated (`Evaluation`), or the data described.
    """

    strategy: Strategy = "fedavg"
    rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)]
    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    proximal: Annotated[float, Field(ge=0, le=1000)] = 0.0
    weighting: Literal["images", "patients", "equal", "declared"] = "images"


class Server(Frozen):
    """What the strategy does with the mean change of a round (Reddi et al. 2021, "Adaptive Federated Optimization").

    `learning_rate` (eta) is 1 where the plan names none, and 0.01 for the adaptive strategies, whose steps have about
    that length. `momentum` (beta 1) and `second_moment` (beta 2) are what is kept of the past in each round;
    `adaptivity` (tau) keeps small changes from being blown up. A strategy looks at what it needs. For RFA, `smoothing`
    (nu) is the length of a change below which a shorter one counts no more (Pillutla et al. 2022).
    """

    learning_rate: Annotated[float, Field(gt=0, le=100)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    second_moment: Annotated[float, Field(ge=0, lt=1)] = 0.99
    adaptivity: Annotated[float, Field(gt=0, le=1)] = 1e-3
    smoothing: Annotated[float, Field(ge=1e-6, le=1000)] = 0.01


class Aggregation(Frozen):
    """How many hospitals a sum needs, how long it waits, what is summed, how large an incoming model may be.

    `ready_minutes` is for the work itself, `step_minutes` for each step of the masked sum after it. A hospital's weight
    (images or patients) is at most `max_weight`; its change of a weight of the model, times its weight, is clipped to
    `delta_bound` times `max_weight`, in later rounds to 16 times the largest of the last sum. `ring` is how many bits
    that has in the sum. With `random_share` below 1 only that share of the weights, drawn anew for each round and the
    same for all hospitals, is in it; with `error_feedback` a hospital adds what it did not send to its next change.
    `downlink` is how the weights of a round's model come down: in `bfloat16` they are half the bytes, and rounded.
    """

    quorum: Annotated[int, Field(ge=SMALLEST_COHORT, le=MAX_HOSPITALS)] = SMALLEST_COHORT
    ready_minutes: Annotated[float, Field(gt=0, le=60 * 24 * 14)] = 120.0
    step_minutes: Annotated[float, Field(gt=0, le=60 * 24)] = 10.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    ring: Annotated[Literal[16, 32], BeforeValidator(whole)] = 32
    delta_bound: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    max_weight: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    random_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    error_feedback: bool = False
    downlink: Dtype = "float32"
    lost_after_seconds: Annotated[float, Field(ge=2, le=60 * 60 * 24)] = 120.0
    max_model_norm: Annotated[float, Field(gt=0, le=1e12)] = 1e4

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.error_feedback and self.random_share == 1:
            raise ValueError("error_feedback: nothing is left over when all weights are sent; lower random_share")
        return self

    def summed_weights(self, parameters: int) -> int:
        """How many of the model's weights are in a round's sum."""
        return max(1, round(self.random_share * parameters))

    def largest_weight(self, training: Training) -> int:
        """The largest weight one hospital can have in a sum."""
        return 1 if training.weighting == "equal" else self.max_weight


class Evaluation(Frozen):
    """Finished models that a plan which trains nothing evaluates, by the digests of their weights, in this order.

    A steward approves exactly these. They are of the plan's `model`, and all of a hospital's patients are held back.
    """

    models: Annotated[
        tuple[DigestStr, ...], BeforeValidator(list_in), AfterValidator(_distinct), Field(max_length=MOST_MODELS)
    ] = ()


class Personalisation(Frozen):
    """What each hospital makes of the last model for itself, and compares on its own held-back patients.

    `fine-tune` trains on from it for `epochs` (Wang et al. 2019, "Federated evaluation of on-device personalization").
    `ditto` trains a model of its own beside each round's work, `epochs` each, pulled to the round's model with
    `strength`, lambda of Li et al. 2021 ("Ditto: fair and robust federated learning through personalization").
    `parameters` are patterns of names as in `ModelChoice`, of those that are trained. `learning_rate` is training's
    where none is given. With a guarantee per patient fine-tuning is the steps of one more round, and costs as much.
    """

    method: Literal["fine-tune", "ditto"] = "fine-tune"
    parameters: Names = ("*",)
    epochs: Annotated[int, Field(ge=1, le=100)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    strength: Annotated[float, Field(gt=0, le=1000)] = 0.1


Task = Literal["classification", "segmentation"]
Disclosed = Literal["budget", "intake", "withdrawals"]


class Evidence(Frozen):
    """Which entries of its log a hospital shows to the others and to reviewers; of all others they see hashes.

    What the coordinator was told anyway is always shown. `budget` is what was spent on patients, from which the most
    patients a hospital declares can be worked out; `intake` how many files were used and refused, in tens;
    `withdrawals` that somebody withdrew consent, and when. None of it is covered by a guarantee per patient.
    """

    disclose: Annotated[tuple[Disclosed, ...], BeforeValidator(list_in), AfterValidator(_distinct)] = ()


class StudyPlan(Frozen):
    """All that a steward approves. Compare by `digest_of`, never by name."""

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
        silos = [hospital.silo for hospital in self.hospitals]
        if not SMALLEST_COHORT <= len(silos) <= MAX_HOSPITALS:
            raise ValueError(f"hospitals: {SMALLEST_COHORT} to {MAX_HOSPITALS}")
        if len(set(silos)) != len(silos) or len({h.signing_key for h in self.hospitals}) != len(silos):
            raise ValueError("hospitals: a name or a key appears twice")
        self._check_task()
        if self.privacy.mechanism != "none":
            self._check_guarantee()
        if self.aggregation.quorum > len(silos):
            raise ValueError("aggregation.quorum: more than there are hospitals")
        self._check_roles()
        self._check_strategy()
        if self.training.strategy == "rfa":
            self._check_rfa()
        check_selection(self)
        self._check_personalisation()
        return self

    def _check_guarantee(self) -> None:
        """What a guarantee per patient does not cover, or does already."""
        if self.aggregation.error_feedback:
            raise ValueError(
                "aggregation.error_feedback: what is carried from round to round is not covered by privacy noise"
            )
        if self.preprocessing.normalise != "none":
            raise ValueError("preprocessing.normalise: the sums before round 1 are not covered by privacy noise")
        if self.training.weighting in {"images", "patients"}:
            raise ValueError("training.weighting: a true count is not covered by privacy noise; take equal or declared")
        if self.training.strategy == "fednova":
            raise ValueError("training.strategy: with a guarantee per patient all hospitals take the same steps")
        if self.training.strategy == "scaffold":
            raise ValueError("training.strategy: scaffold's control variates are not covered by privacy noise")
        if self.dataset.described:
            raise ValueError("dataset.described: its counts are not covered by privacy noise; describe in another plan")
        if self.robustness.clip is not None:
            raise ValueError("robustness.clip: with a guarantee per patient every patient's part is clipped already")

    def _check_roles(self) -> None:
        if self.training.rounds == 0:
            self._check_untrained()
            return
        if self.evaluation.models:
            raise ValueError(
                "evaluation.models: a plan that trains evaluates its own model; finished ones belong in another plan, "
                "with training.rounds = 0"
            )
        training = [hospital for hospital in self.hospitals if hospital.role == "train"]
        least = self.aggregation.quorum
        if len(training) < least:
            raise ValueError(f"hospitals: {len(training)} train, {least} are needed in every sum (aggregation.quorum)")
        if len(training) < len(self.hospitals) and self.model.home:
            raise ValueError("model.home: a hospital that only validates has trained no parameters of its own")

    def _check_untrained(self) -> None:
        if not self.evaluation.models and not self.dataset.described:
            raise ValueError("training.rounds: 0, and there is neither evaluation.models nor dataset.described")
        if self.privacy.mechanism != "none":
            raise ValueError("privacy.mechanism: nothing is trained, so there is nothing to guarantee; take none")
        if self.preprocessing.normalise != "none":
            raise ValueError("preprocessing.normalise: nothing is trained, so there are no training images; take none")
        if self.robustness.may_roll_back or self.selection.varies:
            raise ValueError("robustness, selection: nothing is trained, so nothing to clip, to vote on or to draw for")
        if self.model.pretrained is not None:
            raise ValueError("model.pretrained: nothing is trained, so nothing begins with it; name it in evaluation")
        if not self.model.moves_whole:
            raise ValueError("model.trained, model.home: nothing is trained, and a finished model is whole")

    def _check_strategy(self) -> None:
        training = self.training
        if training.strategy in {"fednova", "scaffold"} and (training.optimizer != "sgd" or training.proximal):
            raise ValueError(f"training.strategy: {training.strategy} counts on steps of plain sgd, without a pull")
        if self.counts_steps:
            largest = self.aggregation.largest_weight(training) * training.max_steps * len(self.hospitals)
            if largest >= LARGEST_SUM:
                raise ValueError("training.max_steps: times aggregation.max_weight too large to be summed")
        if training.strategy == "scaffold":
            if self.aggregation.random_share < 1:
                raise ValueError("aggregation.random_share: scaffold's control variates are made of whole changes")
            if training.weighting != "equal":
                raise ValueError("training.weighting: scaffold's control variates have to average out; take equal")
            if self.aggregation.downlink != "float32":
                raise ValueError("aggregation.downlink: scaffold's control variates come down in float32; take that")
        if not self.model.trained:
            raise ValueError("model.trained: nothing to train")
        if self.robustness.leave_out and not self.robustness.may_roll_back:
            raise ValueError("robustness.leave_out: nothing is ever rolled back; add vote or clip")

    def _check_rfa(self) -> None:
        if self.aggregation.error_feedback:
            raise ValueError("aggregation.error_feedback: rfa weighs a hospital by its whole change")
        if self.aggregation.largest_weight(self.training) / self.server.smoothing * len(self.hospitals) >= LARGEST_SUM:
            raise ValueError("server.smoothing: too small for aggregation.max_weight to be summed; raise it")

    def _check_personalisation(self) -> None:
        how = self.personalisation
        if how is None:
            return
        if self.training.rounds == 0:
            raise ValueError("personalisation: nothing is trained, so there is no model to go on from; leave it out")
        if not how.parameters:
            raise ValueError("personalisation.parameters: nothing to train")
        if self.training.rounds >= MOST_ROUNDS:
            raise ValueError(f"training.rounds: at most {MOST_ROUNDS - 1}, hospitals personalise in the one after")
        if how.method == "ditto" and self.privacy.mechanism != "none":
            raise ValueError(
                "personalisation.method: ditto trains twice in each round, and its half has no budget; take fine-tune"
            )
        if how.method == "ditto" and self.model.home:
            raise ValueError("personalisation.method: what stays home is a hospital's own already; take fine-tune")

    def _check_task(self) -> None:
        if self.task == "segmentation":
            if self.dataset.series is None:
                raise ValueError("dataset.series: say which series of an imaging study is segmented")
            voxels = math.prod(self.preprocessing.size)
            if voxels * len(self.labels.classes) > MOST_IN_A_STEP:
                raise ValueError("labels.classes: too many, every voxel is answered for each of them")
            if voxels * self.training.batch_size > MOST_IN_A_STEP and self.privacy.mechanism == "none":
                raise ValueError(f"training.batch_size: at most {MOST_IN_A_STEP // voxels} inputs of this size")
            if self.labels.column is not None:
                raise ValueError("labels.column: masks have no column; name their segments in labels.classes")
        elif self.dataset.series is not None or self.preprocessing.spacing is not None:
            raise ValueError("dataset.series, preprocessing.spacing: volumes are for the task segmentation so far")

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
