"""One way of learning on one federation of hospitals, and how well the result tells the classes apart.

Three areas under the ROC curve are taken of every result, each the mean over what the hospitals end up with:

- `common`: of the common test, a mix of how all hospitals' devices show the same images;
- `own`: of the test as the hospital's own devices show it;
- `held_back`: of the hospital's own patients that it did not train on. There can be as few as two of them.

A network that all hospitals share is one network in all three. One that is a hospital's own is of use only there, and
`own` is what it is judged by.
"""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from boundary.guarantee import NoPrivacy, Privacy
from boundary.identity import SigningIdentity
from boundary.learning import Personalisation, Server, Training
from boundary.plan import StudyPlan, parse_plan
from boundary.robustness import Robustness
from boundary.tensors import Vector
from infra.hospitals.noniid import Hospital, NonIid
from infra.simulation.alone import FineTuning, alone, auroc, loaded, personalised
from infra.simulation.rounds import Simulation, Site
from models.training import LocalData

MODEL = "cnn-small"
NORMALISATION = ("*.adn.N.*",)  # names of the scales and shifts of `cnn-small`: what FedBN (Li et al. 2021) keeps home
_STUDY = """\
version = 1
name = "strategies"
revision = 1

[purpose]
title = "Benchmark"
statement = "Compares strategies in one process."
legal_basis = "none needed: public images, invented patients"
ethics_reference = "none"
expires = 2099-12-31

[preprocessing]
size = [28, 28]
intensity = "window"
low = 0.0
high = 1.0

[labels]
classes = ["0", "1"]

[dataset]
name = "archive"
modalities = ["CR"]
"""


@dataclass(frozen=True, slots=True)
class Arm:
    """A strategy with all its settings. `home` are patterns of parameters that never leave a hospital.

    With `ditto` what counts is each hospital's own network, trained beside the rounds.
    """

    name: str
    training: Training
    server: Server = field(default_factory=Server)
    home: tuple[str, ...] = ()
    privacy: Privacy = field(default_factory=NoPrivacy)
    robustness: Robustness = field(default_factory=Robustness)
    ditto: Personalisation | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """AUROC, 0.5 is guessing. See the head of the file."""

    common: float
    own: float
    held_back: float


def plan_of(arm: Arm, hospitals: Sequence[str], seed: int, groups: int = 0) -> StudyPlan:
    """The arm as a plan, whose network begins as the seed has it. Raises `InvalidPlan` for what no study may do.

    With `groups`, hospitals are dealt to so many in turn.
    """
    keyed = [
        {"silo": silo, "signing_key": SigningIdentity.generate().public.text}
        | ({"group": place % groups + 1} if groups else {})
        for place, silo in enumerate(hospitals)
    ]
    return parse_plan(
        tomllib.loads(_STUDY)
        | {
            "hospitals": keyed,
            "model": {"name": MODEL, "version": 1, "initial_seed": seed, "home": list(arm.home)},
            "training": arm.training.model_dump(),
            "server": arm.server.model_dump(),
            "privacy": arm.privacy.model_dump(),
            "robustness": arm.robustness.model_dump(),
            "personalisation": None if arm.ditto is None else arm.ditto.model_dump(),
        }
    )


def together(arm: Arm, federation: NonIid, seed: int) -> tuple[StudyPlan, list[Vector]]:
    """All rounds; what each hospital has then, float32 [n], which is the same network unless something stays home."""
    hospitals = federation.hospitals
    plan = plan_of(arm, [one.name for one in hospitals], seed)
    learned = Simulation(plan, [Site(one.training, one.most_patients) for one in hospitals], seed).run()
    return plan, [*learned.owns] or [learned.of(number) for number in range(len(hospitals))]


def fine_tuned(
    plan: StudyPlan, weights: Sequence[Vector], federation: NonIid, seed: int, how: FineTuning
) -> list[Vector]:
    """Each hospital's network after it has fine-tuned what it had."""
    pairs = zip(weights, federation.hospitals, strict=True)
    return [personalised(plan, mine, one.training, seed, how) for mine, one in pairs]


def apart(arm: Arm, federation: NonIid, seed: int) -> tuple[StudyPlan, list[Vector]]:
    """Each hospital alone, with the arm's optimiser and as many epochs."""
    plan = plan_of(arm, [one.name for one in federation.hospitals], seed)
    return plan, [alone(plan, one.training, seed) for one in federation.hospitals]


def in_one_place(arm: Arm, federation: NonIid, seed: int) -> tuple[StudyPlan, list[Vector]]:
    """All hospitals' images together, with the arm's optimiser and as many epochs."""
    plan = plan_of(arm, [one.name for one in federation.hospitals], seed)
    return plan, [alone(plan, federation.pooled, seed)] * len(federation.hospitals)


def scores(plan: StudyPlan, weights: Sequence[Vector], federation: NonIid) -> Scores:
    """Measure what each hospital has, float32 [n] for each."""

    def mean(data: Callable[[Hospital], LocalData]) -> float:
        return fmean(auroc(module, data(one)) for module, one in zip(modules, federation.hospitals, strict=True))

    modules = [loaded(plan, mine) for mine in weights]
    distinct = modules[:1] if all(mine is weights[0] for mine in weights) else modules
    common = fmean(auroc(module, federation.common_test) for module in distinct)
    return Scores(common, mean(lambda one: one.test), mean(lambda one: one.held_back))
