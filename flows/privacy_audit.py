"""`wardround audit-privacy`: attack a plan's training, with its noise and without, and say what the attack shows.

Runs where the images are given, on public or invented ones: no hospital's data comes near it. What is attacked is
one hospital's own model after the whole study, which nobody but that hospital ever sees: a stronger attacker than any
real one.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boundary.guarantee import PatientPrivacy
from boundary.images import Preprocessing
from boundary.learning import ModelChoice, Training
from boundary.parts import parts_of
from boundary.tensors import manifest_of
from compliance.empirical import Guesses, area, epsilon_lower_bound, most_true, roc
from compliance.terms import PlanTerms

GUESSED = 0.2  # share of the canaries that the attacker commits himself on, given beforehand
EXPERIMENT = "privacy-audit"
OnModel = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is trained: `models` of each kind, on `patients` of whom `canaries` have a wrong label."""

    models: int
    patients: int
    canaries: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of training under attack. `epsilon` is refuted from below at 95 %, at the plan's delta."""

    name: str
    curve: list[tuple[float, float]]
    area: float
    guesses: Guesses
    epsilon: float


@dataclass(frozen=True, slots=True)
class Audit:
    """Both kinds, and what the accountant promises for the private one."""

    terms: PlanTerms
    without: Finding
    private: Finding

    @property
    def holds(self) -> bool:
        """Whether what was shown stays under what was promised."""
        return self.private.epsilon <= self.terms.epsilon

    @property
    def can_tell(self) -> bool:
        """Whether the attack works at all: a weak one that finds nothing proves nothing."""
        return self.without.epsilon > self.private.epsilon and self.without.area > 0.6


def read_images(path: Path | None, preprocessing: Preprocessing, patients: int) -> "Any":
    """Give `models.training.LocalData` of an .npz (images, labels, patients if any), or of phantoms drawn here.

    MedMNIST's own names of the arrays are understood. Raises `ValueError` for a file that holds no such arrays.
    """
    from models.preprocessing import to_input
    from models.training import LocalData

    images, labels, owners = _phantoms(patients) if path is None else _arrays(path)
    _, owners = np.unique(owners, return_inverse=True)
    keep = owners < patients
    inputs = np.stack([to_input(image.astype(np.float32), preprocessing) for image in images[keep]])
    return LocalData(inputs, labels[keep].astype(np.int64), owners[keep].astype(np.int64))


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        for images, labels in (("images", "labels"), ("train_images", "train_labels")):
            if images in file and labels in file:
                found = file[images], file[labels].reshape(-1)
                return *found, file["patients"] if "patients" in file else np.arange(len(found[1]))
    raise ValueError(f"{path} holds no arrays `images` [n, h, w] and `labels` [n]")


def _phantoms(patients: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    from infra.hospitals.phantoms import SCANNERS, chest

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, patients)
    images = np.stack([chest(SCANNERS[0], enhanced=bool(label), rng=rng) for label in labels])
    return images, labels, np.arange(patients)


def audit(
    model: ModelChoice, classes: int, training: Training, privacy: PatientPrivacy, data: "Any", effort: Effort,
    on_model: OnModel,
) -> Audit:  # fmt: skip
    """Train and attack both ways what the model's choice has trained; `training.rounds` are all that are paid for.

    Raises `ValueError` for too few patients, `OutOfReach` for an unreachable epsilon.
    """
    from models.catalogue import build
    from models.parameters import initial_tensors, load_tensors, train_only
    from models.private.audit import attack, with_canaries
    from models.private.training import PrivateSteps, PrivateTraining
    from models.training import train

    begin = initial_tensors(model, classes)
    trained = parts_of(model, manifest_of(begin)).trained
    terms = PlanTerms.of(privacy, training.rounds, len(np.unique(data.patients)))
    steps = PrivateSteps(
        steps=privacy.steps * training.rounds, rate=terms.rate, denominator=terms.denominator, clip=privacy.clip,
        noise_multiplier=terms.noise_multiplier, images=privacy.images_per_patient,
    )  # fmt: skip
    overfit = Training(rounds=1, local_epochs=effort.epochs, batch_size=16, learning_rate=2e-3)

    def start() -> "Any":
        module = build(model, classes)
        load_tensors(module, begin)
        train_only(module, trained)
        return module

    def without(data: "Any", number: int) -> "Any":
        module = start()
        train(module, data, overfit, seed=number, on_step=lambda _step, _steps: None)
        return module

    def private(data: "Any", _number: int) -> "Any":
        module = start()
        run = PrivateTraining(steps, secrets.token_bytes(32), at_once=64)
        run.run(module, data, training, on_step=lambda _step, _steps: None)
        return module

    marked, canaries = with_canaries(data, effort.canaries, classes)
    found = {}
    for name, one in (("no noise, overfitted", without), (f"epsilon {terms.epsilon:.2g}", private)):
        seen = attack(
            marked, canaries, one, models=effort.models, key=secrets.token_bytes(32), on_model=partial(on_model, name)
        )  # fmt: skip
        right, made = seen.guesses(GUESSED)
        guesses = Guesses(right, made, seen.members.size)
        curve = roc(seen.scores.ravel().tolist(), seen.members.ravel().tolist())
        found[name] = Finding(name, curve, area(curve), guesses, epsilon_lower_bound(guesses, terms.delta))
    return Audit(terms, *found.values())


def draw(done: Audit) -> "Any":
    """The attacker's curves on a logarithmic scale, where membership inference hurts, under the promised bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    least = 1 / max(2, done.without.guesses.canaries)
    grid = np.geomspace(least, 1, 200)
    epsilon, delta = done.terms.epsilon, done.terms.delta
    axes.plot(
        grid, [most_true(epsilon, delta, x) for x in grid], "k--", label=f"most that epsilon {epsilon:.2g} allows"
    )
    for finding in (done.without, done.private):
        x, y = np.array(finding.curve).T
        shown = f"{finding.name}: area {finding.area:.2f}, epsilon at least {finding.epsilon:.2f}"
        axes.plot(np.maximum(x, least), np.maximum(y, least), label=shown)
    axes.plot(grid, grid, ":", color="grey", label="guessing")
    axes.set(
        xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1), xlabel="patients wrongly called members",
        ylabel="members found", title="Who was in the training data? An attack on one hospital's model",
    )  # fmt: skip
    axes.legend(loc="lower right")
    return figure


def log_to_mlflow(url: str, label: str, done: Audit) -> str:
    """Log numbers and figure to the experiment `privacy-audit`; gives the run's page. Raises `BookUnreachable`."""
    from flows.mlflow_client import open_book

    params = {
        "plan": label, "epsilon_promised": done.terms.epsilon, "delta": done.terms.delta,
        "noise_multiplier": done.terms.noise_multiplier, "sampling_rate": done.terms.rate,
        "patients": done.terms.most_patients, "canaries": done.private.guesses.canaries,
    }  # fmt: skip
    metrics = {"private/holds": float(done.holds), "without/attack_works": float(done.can_tell)}
    for key, finding in (("without", done.without), ("private", done.private)):
        right = finding.guesses.right / finding.guesses.made
        metrics |= {f"{key}/epsilon_lower_bound": finding.epsilon, f"{key}/area": finding.area, f"{key}/right": right}
    return open_book(url).log_once(EXPERIMENT, label, params, metrics, draw(done))
