"""What a hospital trains for itself: alone, on from the model that all have learned together, or beside it.

Where the plan asks for it (`boundary.learning.Personalisation`). None of what comes out of here is ever sent.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from boundary.learning import Personalisation, Training
from models.parameters import Tensors, load_tensors, to_tensors, train_only
from models.training import LocalData, TrainingOutcome, train


def alone_training(training: Training) -> Training:
    """As many epochs as all rounds of the study have together, and no pull to others; what a round may be cut to too.

    The optimiser's state is kept through all of it, which no federation can.
    """
    return training.model_copy(
        update={
            "local_epochs": training.local_epochs * training.rounds,
            "max_steps": training.max_steps * training.rounds,
            "proximal": 0.0,
        }
    )


def personal_training(training: Training, how: Personalisation) -> Training:
    """The plan's training as its personalisation changes it; `proximal` is the pull of Ditto."""
    return training.model_copy(
        update={
            "local_epochs": how.epochs,
            "learning_rate": how.learning_rate or training.learning_rate,
            "proximal": how.strength if how.method == "ditto" else 0.0,
        }
    )


def personalise(  # noqa: PLR0913 - two of them are for who watches
    module: nn.Module,
    data: LocalData,
    training: Training,
    how: Personalisation,
    *,
    federated: Tensors,
    own: Mapping[str, NDArray[np.float32]] | None,
    tuned: Collection[str],
    seed: int,
    on_step: Callable[[int, int], None],
    **watched: Any,
) -> TrainingOutcome:
    """Train `module` in place to a hospital's own model, from `own` if there is one yet, else from `federated`.

    Only parameters in `tuned` are trained; all others are those of `federated`. For Ditto each step is
    v <- v - rate * (gradient(v) + strength * (v - federated)), by the plan's optimiser (Li et al. 2021, Algorithm 1).
    Raises as `models.training.train`.
    """
    start = federated if own is None else federated | {name: own[name] for name in tuned}
    load_tensors(module, start)
    train_only(module, tuned)
    changed = personal_training(training, how)
    return train(module, data, changed, seed=seed, on_step=on_step, towards=federated, **watched)


def weights_of(module: nn.Module) -> Tensors:
    """A copy of all parameters, from wherever the module was trained."""
    return to_tensors(module.to("cpu"))
