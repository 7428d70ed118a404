"""Which entries of a hospital's log others may read. Of the rest they get hashes, and can verify the log as well."""

from collections.abc import Callable

from boundary.agreement import Disclosed
from compliance.events import (
    AnyEvent,
    BudgetCommitted,
    BudgetRefused,
    BudgetReserved,
    DataPurged,
    GateRefused,
    GatesPassed,
    IntakeCounted,
    LateUpdateOffered,
    PatientWithdrawn,
    TrainingStarted,
    WithdrawalEffective,
)
from compliance.merkle import HASH_BYTES, leaf_hash
from compliance.trail import read_leaf

_ON_REQUEST: dict[type[AnyEvent], Disclosed] = {
    BudgetReserved: "budget",
    BudgetCommitted: "budget",
    BudgetRefused: "budget",
    TrainingStarted: "budget",  # how long a training takes follows the number of patients drawn for it
    LateUpdateOffered: "budget",  # it stands for a start
    GatesPassed: "budget",  # one for each start of a training
    GateRefused: "budget",
    IntakeCounted: "intake",
    DataPurged: "intake",  # the bytes of a cache are those of its images
    PatientWithdrawn: "withdrawals",
    WithdrawalEffective: "withdrawals",
}


def shown(leaf: bytes, disclosed: Callable[[str | None], frozenset[Disclosed]]) -> bytes:
    """The entry itself, or its hash. `disclosed` gives what the plan of a study shows; None is for no study at all."""
    event = read_leaf(leaf).event
    asked = _ON_REQUEST.get(type(event))
    if asked is None or asked in disclosed(getattr(event, "study", None)):
        return leaf
    return leaf_hash(leaf)


def hash_of(entry: bytes) -> bytes:
    """Of an entry that is shown either way; 32 bytes are a hash already, every leaf is longer."""
    return entry if len(entry) == HASH_BYTES else leaf_hash(entry)
