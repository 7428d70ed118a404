"""Attacks a training to see what it gives away: many models, each with a random half of the canaries in its data.

Membership inference: a canary is a patient with a wrong label, which only a model that was trained on it has reason to
believe. Some wrong labels are easier to believe than others (Carlini et al. 2022, "Membership inference attacks from
first principles"), so what is judged is a model's confidence above the mean of all models.

The attacker never uses a coin. Their likelihood ratios do, those of the other models: then guesses about several models
are right or wrong together, and the bound of `compliance.empirical`, which counts them as apart, refutes a training
that gives nothing away in 10 of 100 audits instead of 5 (simulated: 16 models, 60 canaries).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.private.keystream import KeyStream
from models.training import LocalData

Scores = NDArray[np.float64]
Members = NDArray[np.bool_]
_SUREST = 50.0  # nats of log-odds; a model that diverged must not drown the others in their mean


@dataclass(frozen=True, eq=False)
class Attack:
    """`scores` [models, canaries]: how sure it is that the canary was in; `members`, the same shape: whether it was."""

    scores: Scores
    members: Members

    def guesses(self, share: float) -> tuple[int, int]:
        """Guess of each model's canaries the surest `share` in, as many out, and abstain from the rest: (right, made).

        The share is given beforehand: choosing it by the outcome would spoil the bound.
        """
        right = made = 0
        for scores, members in zip(self.scores, self.members, strict=True):
            each = min(len(scores) // 2, max(1, round(share * len(scores) / 2)))
            order = np.argsort(scores)
            right += int(members[order[len(scores) - each :]].sum()) + int((~members[order[:each]]).sum())
            made += 2 * each
        return right, made


def with_canaries(data: LocalData, count: int, classes: int) -> tuple[LocalData, NDArray[np.int64]]:
    """Give the first `count` patients wrong labels; also the patients' numbers.

    Raises `ValueError` for too few, and for masks: there is no one wrong label of an image.
    """
    if data.has_masks:
        raise ValueError("the images have masks: the audit is of plans for classification")
    patients = np.unique(data.patients)
    if len(patients) < 2 * count:
        raise ValueError(f"{len(patients)} patients: {count} canaries need at least as many others beside them")
    canaries = patients[:count]
    wrong = np.isin(data.patients, canaries)
    labels = np.where(wrong, (data.labels + 1) % classes, data.labels)
    return LocalData(data.images, labels, data.patients), canaries


def attack(
    data: LocalData,
    canaries: NDArray[np.int64],
    train_one: Callable[[LocalData, int], nn.Module],
    *,
    models: int,
    key: bytes,
    on_model: Callable[[int, int], None],
) -> Attack:
    """Train `models` models, each on everybody else and the canaries that its coins say, and judge every one of them.

    `train_one` gives a trained network for data and the model's number; `key` is 32 fresh bytes, for the coins.
    """
    stream = KeyStream(key)
    members = np.stack([stream.words(len(canaries)) >> np.uint64(63) for _ in range(models)]).astype(bool)
    confidence = np.empty(members.shape)
    for number, coins in enumerate(members):
        keep = ~np.isin(data.patients, canaries[~coins])
        module = train_one(LocalData(data.images[keep], data.labels[keep], data.patients[keep]), number)
        confidence[number] = [_confidence(module, data, patient) for patient in canaries]
        on_model(number + 1, models)
    return Attack(confidence - confidence.mean(axis=0), members)


def _confidence(module: nn.Module, data: LocalData, patient: int) -> float:
    """Log-odds of the (wrong) label, the mean over the patient's images: nearly normal, says the paper."""
    rows = np.flatnonzero(data.patients == patient)
    module.eval()
    with torch.inference_mode():
        logits = module(torch.from_numpy(data.images[rows])).double()
    wanted = torch.from_numpy(data.labels[rows])
    own = logits.gather(1, wanted[:, None])[:, 0]
    others = logits.scatter(1, wanted[:, None], -math.inf).logsumexp(dim=1)
    return float(torch.nan_to_num((own - others).mean(), nan=0.0).clamp(-_SUREST, _SUREST))
