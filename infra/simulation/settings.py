"""Settings of the comparison of strategies, and how they were chosen: never by an image of the test.

    python -m infra.simulation.settings breast      (10 minutes on two cores; pneumonia half an hour)

prints the AUROC of every candidate, on federations drawn from the training images alone, a fifth of which are its test
(`Archive.for_tuning`), with seeds that the comparison does not use. The best are written below, one for all seeds; of
two that came out alike, the one that is better on each hospital's own images. Most were chosen with the first two or
three of the seeds, `proximal` and pneumonia's `nova` with all six: a first run of the benchmark had shown that two are
too few, and that fedprox and fednova were ahead. One rate of hospitals' Adam serves all strategies of an archive.
More epochs gave all methods the same: breast, pooled, 0.71 after 40 and after 100; pneumonia, pooled and fedprox,
0.988 and 0.986 after 20, 0.989 and 0.987 after 30.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from statistics import fmean

import torch

from boundary.guarantee import PatientPrivacy
from boundary.learning import Personalisation, Server, Training
from boundary.strategies import StrategyName
from infra.hospitals.noniid import ARCHIVES, Archive, split
from infra.simulation.alone import FineTuning
from infra.simulation.comparison import (
    NORMALISATION,
    Arm,
    Scores,
    apart,
    fine_tuned,
    in_one_place,
    scores,
    together,
)

BATCH = 32
HEAD = ("5.*",)  # of `cnn-small`: its one linear layer
EPSILON = 8.0
PRIVATE_ROUNDS = 10  # of four steps: the fewer steps, the less noise in each
PRIVACY = PatientPrivacy(mechanism="patient-dp", epsilon=EPSILON, patients_per_step=64, steps=4)
_ON_SERVER: tuple[StrategyName, ...] = ("fedavgm", "fedadagrad", "fedadam", "fedyogi")
TUNING_SEEDS = range(100, 106)


@dataclass(frozen=True, slots=True)
class Rates:
    """What is chosen for one archive. Rates of hospitals are Adam's; `nova`, `scaffold`, `private` are of plain SGD.

    `server` has the learning rates of the server, `private_server` with a guarantee; where there is none it is 1.
    """

    rounds: int  # of one epoch
    local: float
    pooled: float
    hospital: float
    proximal: float
    momentum: float
    server: Mapping[StrategyName, float]
    nova: float
    scaffold: float
    private: float
    private_server: Mapping[StrategyName, float]
    fine_tuning: FineTuning
    ditto: float = 0.1  # of Ditto's pull; the middle of what its authors tried, not chosen for the archive

    def training(self, rate: float) -> Training:
        return Training(rounds=self.rounds, batch_size=BATCH, learning_rate=rate)

    @property
    def local_arm(self) -> Arm:
        return Arm("local-only", self.training(self.local))

    @property
    def pooled_arm(self) -> Arm:
        return Arm("pooled", self.training(self.pooled))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every strategy without noise, and those that a plan may have with a guarantee."""
        plain = self.training(self.hospital)
        nova = self.training(self.nova).model_copy(update={"strategy": "fednova", "optimizer": "sgd"})
        corrected = self.training(self.scaffold).model_copy(
            update={"strategy": "scaffold", "optimizer": "sgd", "weighting": "equal"}
        )
        shared = [
            Arm("fedavg", plain),
            Arm("fedprox", plain.model_copy(update={"proximal": self.proximal})),
            self._on_server("rfa", plain, self.server),
            *[self._on_server(strategy, plain, self.server) for strategy in _ON_SERVER],
        ]
        others = (Arm("fednova", nova), Arm("scaffold", corrected), Arm("fedbn", plain, home=NORMALISATION))
        alike = Arm("fedavg, equal weights", plain.model_copy(update={"weighting": "equal"}))
        others = (alike, *others, Arm("ditto", plain, ditto=Personalisation(method="ditto", strength=self.ditto)))
        return (*shared, *others, *map(self._private, shared))

    def _on_server(self, strategy: StrategyName, training: Training, rates: Mapping[StrategyName, float]) -> Arm:
        # the momentum of fedavgm is chosen; that of the adaptive ones is beta 1, the authors' 0.9
        server = Server(learning_rate=rates.get(strategy), momentum=self.momentum if strategy == "fedavgm" else 0.9)
        return Arm(strategy, training.model_copy(update={"strategy": strategy}), server)

    def _private(self, arm: Arm) -> Arm:
        """The arm under DP-SGD: declared weights, for a true count would not be covered by the noise."""
        training = arm.training.model_copy(
            update={
                "rounds": PRIVATE_ROUNDS,
                "optimizer": "sgd",
                "learning_rate": self.private,
                "weighting": "declared",
            }
        )
        server = arm.server
        if training.strategy in self.private_server:
            server = server.model_copy(update={"learning_rate": self.private_server[training.strategy]})
        return replace(arm, name=f"{arm.name}, epsilon {EPSILON:g}", training=training, server=server, privacy=PRIVACY)


RATES = {
    "pneumonia": Rates(
        rounds=20, local=2e-3, pooled=2e-3, hospital=1e-3, proximal=0.3, momentum=0.5,
        server={"fedadagrad": 0.03, "fedadam": 0.003, "fedyogi": 0.003}, nova=0.05, scaffold=0.05,
        private=1.0, private_server={"fedadagrad": 0.03, "fedadam": 0.03, "fedyogi": 0.03},
        fine_tuning=FineTuning(1, 1e-4, BATCH),
    ),
    "breast": Rates(
        rounds=40, local=1e-3, pooled=2e-3, hospital=1e-3, proximal=0.1, momentum=0.5,
        server={"fedadagrad": 0.01, "fedadam": 0.01, "fedyogi": 0.01}, nova=0.03, scaffold=0.03,
        private=1.0, private_server={"fedadagrad": 0.01, "fedadam": 0.03, "fedyogi": 0.03},
        fine_tuning=FineTuning(3, 1e-3, BATCH, HEAD),
    ),
}  # fmt: skip


def candidates(chosen: Rates) -> Iterator[tuple[str, Rates]]:
    """What one setting could be instead, all others as they are: the arm's name that shows it, and the rates."""
    ends = (("local-only", "local"), ("pooled", "pooled"), ("fedavg", "hospital"))
    for (name, field), rate in product(ends, (1e-3, 2e-3, 4e-3)):
        yield name, replace(chosen, **{field: rate})  # type: ignore[arg-type]
    for proximal in (0.01, 0.1, 0.3, 1.0):
        yield "fedprox", replace(chosen, proximal=proximal)
    for rate in (0.003, 0.01, 0.03, 0.05, 0.1, 0.3):
        yield "fednova", replace(chosen, nova=rate)
    for rate in (0.01, 0.03, 0.05, 0.1):
        yield "scaffold", replace(chosen, scaffold=rate)
    for strength in (0.01, 0.1, 1.0):
        yield "ditto", replace(chosen, ditto=strength)
    yield from _servers(chosen)
    for rate in (0.25, 0.5, 1.0, 2.0):
        yield f"fedavg, epsilon {EPSILON:g}", replace(chosen, private=rate)
    for epochs, rate, trained in product((1, 3), (1e-4, 3e-4, 1e-3), (("*",), HEAD)):
        yield "fine-tuned", replace(chosen, fine_tuning=FineTuning(epochs, rate, BATCH, trained))


def _servers(chosen: Rates) -> Iterator[tuple[str, Rates]]:
    for momentum, rate in ((0.9, 0.1), (0.9, 0.3), (0.9, 1.0), (0.5, 1.0)):
        yield "fedavgm", replace(chosen, momentum=momentum, server={**chosen.server, "fedavgm": rate})
    for strategy, rate in product(_ON_SERVER[1:], (0.003, 0.01, 0.03)):
        yield strategy, replace(chosen, server={**chosen.server, strategy: rate})
    for strategy, rate in product(_ON_SERVER[1:], (0.01, 0.03, 0.1)):
        private = {**chosen.private_server, strategy: rate}
        yield f"{strategy}, epsilon {EPSILON:g}", replace(chosen, private_server=private)


def tried(archive: str, name: str, rates: Rates, seed: int) -> Scores:
    """How a candidate does on a federation that is made of training images alone."""
    federation = split(Archive.read(ARCHIVES[archive]).for_tuning(seed), seed)
    arms = {arm.name: arm for arm in (rates.local_arm, rates.pooled_arm, *rates.arms)}
    learn = {"local-only": apart, "pooled": in_one_place}.get(name, together)
    plan, weights = learn(arms["fedavg" if name == "fine-tuned" else name], federation, seed)
    if name == "fine-tuned":
        weights = fine_tuned(plan, weights, federation, seed, rates.fine_tuning)
    return scores(plan, weights, federation)


def main(archive: str) -> None:
    """Print every candidate's means over the tuning seeds: common test, own images, held back."""
    todo = [(name, rates, seed) for name, rates in candidates(RATES[archive]) for seed in TUNING_SEEDS]
    found: dict[str, list[Scores]] = defaultdict(list)
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        done = pool.map(partial(tried, archive), *zip(*todo, strict=True))
        for (name, rates, _), score in zip(todo, done, strict=True):
            label = f"{name}: {_changed(rates, RATES[archive])}"
            found[label].append(score)
            if len(found[label]) == len(TUNING_SEEDS):
                means = (fmean(getattr(one, part.name) for one in found[label]) for part in fields(Scores))
                print(*(f"{mean:.4f}" for mean in means), label, flush=True)  # noqa: T201 - a command


def _changed(rates: Rates, chosen: Rates) -> str:
    """What is other than chosen, as `proximal = 0.01`."""
    pairs = ((field.name, getattr(rates, field.name)) for field in fields(Rates))
    return ", ".join(f"{name} = {value}" for name, value in pairs if value != getattr(chosen, name)) or "as chosen"


if __name__ == "__main__":
    main(sys.argv[1])
