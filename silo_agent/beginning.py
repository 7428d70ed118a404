"""What a study begins with, held against what the plan says it is: the hospital's own draw, or its own file.

Weights that are made for it tell more of an image than any training would (Fowl et al. 2022, "Robbing the Fed"). What
is frozen stays for the whole study, so it is compared in every round. What is trained is ours to change and comes back
changed by all: only the first round can be compared, and it is where the plan pins a file. Later on nobody can tell.
"""

from pathlib import Path

import numpy as np

from boundary.bfloat16 import rounded
from boundary.errors import BadTensors
from boundary.learning import ModelChoice
from boundary.parts import Parts
from boundary.plan import StudyPlan
from boundary.tensors import TensorManifest, Vector, check_values, flatten, unflatten, unpack_file
from models.parameters import initial_tensors

TOLERANCE = 1e-5  # another processor rounds the same draw otherwise; weights begin at about 1e-2
ONE_PLACE = 2.0**-7  # a draw at the middle between two bfloat16 numbers may become either
_begun: dict[tuple[ModelChoice, int], Vector] = {}


def beginning(plan: StudyPlan, parts: Parts, weights: Path | None) -> Vector:
    """The whole network as the study begins by the plan alone, float32 [parts.whole.size]; kept for the next round.

    `weights` is the hospital's folder of pretrained files. Raises a `ModelError` for a file that is not there, not the
    pinned one or not fit, `BadTensors` for a norm that the plan does not allow.
    """
    wanted = (plan.model, len(plan.labels.classes))
    if wanted not in _begun:
        _begun.clear()
        found = flatten(initial_tensors(*wanted, weights), parts.whole)
        check_values(found, plan.aggregation.max_model_norm)
        _begun[wanted] = found
    return _begun[wanted]


def checked_base(path: Path, plan: StudyPlan, parts: Parts, weights: Path | None) -> Vector:
    """The base that came, float32 [parts.whole.size]. Raises `BadTensors` if it is not the plan's, and removes it."""
    base, own = unpack_file(path, parts.whole), beginning(plan, parts, weights)
    if not _is_same(base, own, parts.whole, plan.model, TOLERANCE):
        path.unlink(missing_ok=True)  # a right one may still come
        raise BadTensors(
            f"what is not trained is not what the plan's {_source(plan)} gives here: the coordinator has another "
            "version of torch or MONAI, or has exchanged it"
        )
    return base


def check_first(moving: Vector, plan: StudyPlan, parts: Parts, weights: Path | None) -> None:
    """Of a plan with a pinned file, that the first round's model is what it begins with. Raises as `checked_base`.

    `moving` is float32 [parts.moving.size], as it came.
    """
    if plan.model.pretrained is None:
        return
    own = beginning(plan, parts, weights)
    if not parts.moves_whole:
        own = parts.moving_of(own)
    tolerance = np.full(own.shape, TOLERANCE, np.float32)
    if plan.aggregation.downlink == "bfloat16":
        own = rounded(own)
        tolerance += np.float32(ONE_PLACE) * np.abs(own)
    if not _is_same(moving, own, parts.moving, plan.model, tolerance):
        raise BadTensors(
            f"the first round's model is not what the plan begins with ({_source(plan)}): the coordinator has another "
            "version of torch or MONAI, or has exchanged it"
        )


def _is_same(
    came: Vector, own: Vector, manifest: TensorManifest, choice: ModelChoice, tolerance: Vector | float
) -> bool:
    """To the bit what is from a file, within `tolerance` (one for all, or float32 [size]) what is drawn."""
    allowed = np.empty_like(own)
    allowed[...] = tolerance
    if choice.pretrained is not None:
        for name, part in unflatten(allowed, manifest).items():
            if choice.pretrained.takes(name):
                part[...] = 0
    return bool((np.abs(came - own) <= allowed).all())  # False for NaN


def _source(plan: StudyPlan) -> str:
    pinned = plan.model.pretrained
    return "seed" if pinned is None else f"file {pinned.file}"
