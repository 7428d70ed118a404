"""What a federation is compared with, and what a hospital makes of its result: training of one network in one place."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from boundary.learning import Personalisation
from boundary.parts import parts_of, tuned_of
from boundary.plan import StudyPlan
from boundary.tensors import Vector, flatten, manifest_of, unflatten
from compliance.empirical import area, roc
from infra.simulation.rounds import entropy, network_of, quiet, seed_of
from models.parameters import load_tensors, to_tensors
from models.personal import alone_training, personalise
from models.training import LocalData, train

_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class FineTuning:
    """What a hospital does with the last global model: `epochs` over its own training images, with Adam.

    Only parameters whose names match one of `trained` are changed: all of them, or a head.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    trained: tuple[str, ...] = ("*",)


def alone(plan: StudyPlan, data: LocalData, seed: int) -> Vector:
    """Train the plan's network in one place with as many epochs as all its rounds have; float32 [n].

    With one hospital's images that is what it has without the others, with all hospitals' what nobody may have. The
    optimiser's state is kept through all of it.
    """
    module, _ = network_of(plan)
    train(module, data, alone_training(plan.training), seed=seed_of(entropy(seed)), on_step=quiet)
    return _weights(module)


def personalised(plan: StudyPlan, weights: Vector, data: LocalData, seed: int, how: FineTuning) -> Vector:
    """Fine-tune a whole network, float32 [n], on one hospital's training images: the result is that hospital's own.

    Wang et al. 2019, "Federated evaluation of on-device personalization".
    """
    module = loaded(plan, weights)
    federated = to_tensors(module)
    parts = parts_of(plan.model.model_copy(update={"home": ()}), manifest_of(federated))
    training = plan.training.model_copy(update={"batch_size": how.batch_size, "optimizer": "adam"})
    tuning = Personalisation(parameters=how.trained, epochs=how.epochs, learning_rate=how.learning_rate)
    personalise(
        module, data, training, tuning,
        federated=federated, own=None, tuned=tuned_of(parts, how.trained), seed=seed_of(entropy(seed, 2)),
        on_step=quiet,
    )  # fmt: skip
    return _weights(module)


def loaded(plan: StudyPlan, weights: Vector) -> nn.Module:
    """The plan's network with these weights, float32 [n]."""
    module, _ = network_of(plan)
    load_tensors(module, unflatten(weights, manifest_of(to_tensors(module))))
    return module


def auroc(module: nn.Module, data: LocalData) -> float:
    """The exact AUROC of class 1 against class 0. A round's own (`models.metrics`) is of histograms, good to a bin."""
    scores = margins(module, data)
    return area(roc(scores.tolist(), (data.labels == 1).tolist()))


def margins(module: nn.Module, data: LocalData) -> NDArray[np.float32]:
    """Logit of class 1 less that of class 0, [n]."""
    module.eval()
    with torch.inference_mode():
        logits = [module(torch.from_numpy(data.images[at : at + _AT_ONCE])) for at in range(0, len(data), _AT_ONCE)]
    answer: NDArray[np.float32] = torch.cat([part[:, 1] - part[:, 0] for part in logits]).numpy()
    return answer


def _weights(module: nn.Module) -> Vector:
    tensors = to_tensors(module)
    return flatten(tensors, manifest_of(tensors))
