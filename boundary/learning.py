"""What is learned and how: the network, a hospital's training, the server's step, what each makes of the last model.

A plan that trains nothing names finished models instead (`Evaluation`).
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from boundary.fields import Names, distinct
from boundary.low_rank import ADAPTERS, LowRank
from boundary.names import DigestStr, Frozen, StudyName, list_in
from boundary.pretrained import Pretrained
from boundary.strategies import Strategy

MOST_MODELS = 20  # finished ones that one plan evaluates
MOST_ROUNDS = 10_000  # `boundary.names.RoundNumber`


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


class Evaluation(Frozen):
    """Finished models that a plan which trains nothing evaluates, by the digests of their weights, in this order.

    A steward approves exactly these. They are of the plan's `model`, and all of a hospital's patients are held back.
    """

    models: Annotated[
        tuple[DigestStr, ...], BeforeValidator(list_in), AfterValidator(distinct), Field(max_length=MOST_MODELS)
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
