"""Which images of an archive stand alone, and which are slices of a volume: told without a plan, by what lies together.

A plan says whether it wants volumes; whoever looks at a folder before there is one has only the files. A radiograph or
an ultrasound is an image by itself, and so is a slice of CT or MR that is all its series has.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable

from silo_agent.intake.volumes.headers import Slice
from silo_agent.intake.volumes.losses import Losses, Lost

_STACKED = frozenset({"CT", "MR"})


def parted(slices: Iterable[Slice], lost: Iterable[Lost] = ()) -> tuple[list[Slice], list[Slice]]:
    """(images that stand alone, slices of volumes), each in the order given. Copies make no series of one slice.

    Nor does a slice stand alone that is all that is left of its series, `lost` being files that were refused.
    """
    slices = list(slices)
    losses = Losses(slices, (), lost)
    instances: dict[Hashable, set[Hashable]] = defaultdict(set)
    for one in slices:
        instances[one.identifiers.series].add((one.identifiers.sop_uid, one.frame))
    alone, together = list[Slice](), list[Slice]()
    for one in slices:
        is_all = len(instances[one.identifiers.series]) == 1 and losses.of(one.identifiers) is None
        is_alone = one.modality not in _STACKED or is_all
        (alone if is_alone else together).append(one)
    return alone, together
