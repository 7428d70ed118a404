"""One train sum from the sums of several groups: their median, coordinate by coordinate (`boundary.groups`).

What one group may say, a hospital in it may have made up. So the median is taken of everything that decides how the
study goes on: of the mean changes, the losses, the largest weight and the number of clipped ones, which fit the next
round's scale. Counts that each group bounds by its hospitals are added up.
"""

from collections.abc import Iterable, Sequence
from statistics import median, median_low

import numpy as np

from boundary.errors import BadTensors
from boundary.groups import Groups, groups_of, has_groups
from boundary.plan import StudyPlan
from boundary.robustness import Median, Robustness
from boundary.tensors import Vector
from flows.summing import Total, TrainSum, read_train_sum

_PIECE = 1 << 20  # weights at a time, so that the groups' means are in memory once


def read_round(plan: StudyPlan, totals: Iterable[Total], silos: Iterable[str]) -> tuple[TrainSum, Median | None]:
    """What a round's training over these hospitals came to: their sum, or the median of their groups' where there are.

    `totals` has the sum of each group, in the order of `boundary.groups.groups_of`. Raises `BadTensors`.
    """
    groups = groups_of(plan, "train", silos)
    if has_groups(plan):
        return read_groups(totals, groups, plan.robustness)
    ((total, everybody),) = zip(totals, groups, strict=True)
    return read_train_sum(total, hospitals=len(everybody)), None


def read_groups(totals: Iterable[Total], groups: Groups, robustness: Robustness) -> tuple[TrainSum, Median]:
    """The median of the groups' sums, each over the hospitals of its group, and of how many it is.

    A sum that is none of changes, or too long for honest ones, is spoiled, and the median is taken without it. Where
    half of them are, it is taken of all that can be read, for the verdict on the round to name. Hospitals are counted
    in all that can be read: they are in the round's sum. Raises `BadTensors` if half of them cannot be read.
    """
    read = [
        found
        for total, group in zip(totals, groups, strict=True)
        if (found := _read(total, hospitals=len(group))) is not None
    ]
    if 2 * len(read) <= len(groups):
        raise BadTensors(f"the sums of {len(groups) - len(read)} of {len(groups)} groups are none of changes")
    sound = [one for one in read if not robustness.is_too_long(float(np.linalg.norm(one.mean_delta)))]
    said = Median(groups=len(groups), spoiled=len(groups) - len(sound))
    return median_of(sound if said.has_majority else read, counted_in=read), said


def _read(total: Total, *, hospitals: int) -> TrainSum | None:
    """One group's sum; None if it is none of changes."""
    try:
        found = read_train_sum(total, hospitals=hospitals)
    except BadTensors:
        return None
    return found if np.isfinite(found.mean_delta).all() else None


def median_of(sums: Sequence[TrainSum], counted_in: Sequence[TrainSum] | None = None) -> TrainSum:
    """Give the coordinate-wise median of at least one sum; of an even number the mean of the middle two.

    `counted_in` are the sums whose hospitals are counted, the same ones by default.
    """
    counted = sums if counted_in is None else counted_in
    losses = [one.mean_loss for one in sums if one.mean_loss is not None]
    return TrainSum(
        mean_delta=_middle([one.mean_delta for one in sums]),
        mean_loss=median(losses) if losses else None,
        mean_steps=None,
        weight=sum(one.weight for one in sums),
        largest=median(one.largest for one in sums),
        clipped=median_low(one.clipped for one in sums),
        bands=tuple(sum(counts) for counts in zip(*(one.bands for one in counted), strict=True)),
        shortened=_added([one.shortened for one in counted]),
        late=_added([one.late for one in sums]),
    )


def _middle(changes: Sequence[Vector]) -> Vector:
    """The median of float32 [n] each, float32 [n]."""
    found = np.empty_like(changes[0])
    for start in range(0, len(found), _PIECE):
        piece = slice(start, start + _PIECE)
        np.median(np.stack([change[piece] for change in changes]), axis=0, out=found[piece], overwrite_input=True)
    return found


def _added(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
