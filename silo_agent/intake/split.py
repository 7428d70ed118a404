"""Training or holdout, by patient: a keyed coin per patient, and as few exceptions as a tiny hospital needs.

Each patient's reference is hashed under the hospital's key to a number in [0, 1); below the plan's holdout
share the patient is held out. The coin depends on nothing but the patient, so a growing archive moves nobody:
a patient the model was tested on last month is not trained on this month.

With six patients the coins may leave a side empty, or without one of the classes. Then, and only then,
patients are moved against their coin, in this order:

1. if nobody is left to train on, the patient with the highest number trains;
2. a class that nobody trains on: the held-out patient with the highest number who has it trains;
3. if nobody is held out (of two or more), the patient with the lowest number is;
4. a class that nobody is held out for: the patient with the lowest number who has it, if training keeps
   every class it has.

So growth can move a patient only out of such an exception, and never once the coins alone have put every
class on both sides. A patient with images of several classes counts for each of them. Stratifying the coins
themselves would balance the sides better and make every newcomer able to move others; we prefer stability.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NewType

PatientRef = NewType("PatientRef", str)  # 64 hex digits, never the Patient ID


def patient_ref(key: bytes, patient_id: str) -> PatientRef:
    """HMAC-SHA256 of the Patient ID under this hospital's key, hex.

    The Issuer of Patient ID is not part of it: two issuers' equal ids become one patient, which can only
    make the protection of a patient stricter.
    """
    return PatientRef(hmac.new(key, b"patient" + patient_id.encode(), hashlib.sha256).hexdigest())


def coin(key: bytes, ref: PatientRef) -> float:
    """Return the patient's own number in [0, 1), the same for ever under one key."""
    drawn = hmac.new(key, b"split" + ref.encode(), hashlib.sha256).digest()
    return float(int.from_bytes(drawn[:8]) >> 11) / (1 << 53)


def held_out(classes_of: Mapping[PatientRef, frozenset[int]], *, key: bytes, share: float) -> frozenset[PatientRef]:
    """Choose the held-out patients: at least one of two or more, and never all. See the module's rules."""
    by_coin = sorted(classes_of, key=lambda ref: (coin(key, ref), ref))
    chosen = {ref for ref in by_coin if coin(key, ref) < share}
    if by_coin and len(chosen) == len(by_coin):
        chosen.discard(by_coin[-1])
    every_class = sorted(frozenset[int]().union(*classes_of.values()))
    for label in every_class:
        _train_on(label, by_coin, chosen, classes_of)
    if not chosen and len(by_coin) > 1:
        chosen.add(_spare(by_coin, chosen, classes_of) or by_coin[0])
    for label in every_class:
        having = [ref for ref in by_coin if label in classes_of[ref]]
        if chosen.isdisjoint(having) and (spare := _spare(having, chosen, classes_of)):
            chosen.add(spare)
    return frozenset(chosen)


def by_coins_alone(
    classes_of: Mapping[PatientRef, frozenset[int]], *, key: bytes, share: float
) -> frozenset[PatientRef]:
    """Choose the held-out patients by their coins alone: no patient can move another, and a side may be empty."""
    return frozenset(ref for ref in classes_of if coin(key, ref) < share)


def _train_on(
    label: int,
    by_coin: Sequence[PatientRef],
    chosen: set[PatientRef],
    classes_of: Mapping[PatientRef, frozenset[int]],
) -> None:
    having = [ref for ref in by_coin if label in classes_of[ref]]
    if chosen.issuperset(having):
        chosen.discard(having[-1])


def _spare(
    candidates: Sequence[PatientRef],
    chosen: set[PatientRef],
    classes_of: Mapping[PatientRef, frozenset[int]],
) -> PatientRef | None:
    """Return the first candidate without whom training keeps somebody for each class it has."""
    trained_on = Counter(label for ref, labels in classes_of.items() if ref not in chosen for label in labels)
    spare = (ref for ref in candidates if all(trained_on[label] > 1 for label in classes_of[ref]))
    return next(spare, None)
