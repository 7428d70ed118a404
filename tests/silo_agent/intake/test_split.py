from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from silo_agent.intake.split import PatientRef, coin, held_out, patient_ref

KEY = bytes(32)
patients = st.dictionaries(
    st.text("abcdef0123456789", min_size=4, max_size=8),
    st.frozensets(st.integers(0, 2), min_size=1),
    max_size=14,
)
shares = st.floats(0.05, 0.9)


def classes(refs: Iterable[PatientRef], classes_of: dict[PatientRef, frozenset[int]]) -> frozenset[int]:
    return frozenset[int]().union(*(classes_of[ref] for ref in refs))


@given(patients, shares)
def test_both_sides_have_somebody_as_soon_as_there_are_two(
    classes_of: dict[PatientRef, frozenset[int]], share: float
) -> None:
    holdout = held_out(classes_of, key=KEY, share=share)
    assert holdout <= classes_of.keys()
    assert len(classes_of) == 0 or len(holdout) < len(classes_of)
    assert len(classes_of) < 2 or holdout


@given(patients, shares)
def test_a_class_with_two_patients_of_its_own_is_on_both_sides(
    classes_of: dict[PatientRef, frozenset[int]], share: float
) -> None:
    holdout = held_out(classes_of, key=KEY, share=share)
    for label in range(3):
        only = [ref for ref, labels in classes_of.items() if labels == {label}]
        if len(only) >= 2:
            assert label in classes(classes_of.keys() - holdout, classes_of)
            assert label in classes(holdout, classes_of)


@given(patients, shares)
def test_the_order_of_patients_does_not_matter(classes_of: dict[PatientRef, frozenset[int]], share: float) -> None:
    backwards = dict(reversed(classes_of.items()))
    assert held_out(classes_of, key=KEY, share=share) == held_out(backwards, key=KEY, share=share)


@given(patients, patients, shares)
def test_growth_moves_nobody_once_the_coins_cover_every_class(
    classes_of: dict[PatientRef, frozenset[int]], newcomers: dict[PatientRef, frozenset[int]], share: float
) -> None:
    by_coin = {ref for ref in classes_of if coin(KEY, ref) < share}
    covered = classes(classes_of, classes_of)
    sides = (by_coin, classes_of.keys() - by_coin)
    if not covered or any(classes(side, classes_of) != covered for side in sides):
        return
    grown = newcomers | classes_of
    before, after = (held_out(one, key=KEY, share=share) for one in (classes_of, grown))
    assert after & classes_of.keys() == before == by_coin


@given(patients, shares)
def test_at_most_one_patient_per_class_and_side_stands_against_its_coin(
    classes_of: dict[PatientRef, frozenset[int]], share: float
) -> None:
    holdout = held_out(classes_of, key=KEY, share=share)
    against = [ref for ref in classes_of if (coin(KEY, ref) < share) != (ref in holdout)]
    assert len(against) <= 2 * 3 + 2


def test_about_the_share_is_held_out_of_many() -> None:
    classes_of = {patient_ref(KEY, str(number)): frozenset({number % 2}) for number in range(2000)}
    assert 330 < len(held_out(classes_of, key=KEY, share=0.2)) < 470


def test_a_reference_depends_on_the_key_and_shows_nothing_of_the_id() -> None:
    assert patient_ref(KEY, "Müller") != patient_ref(b"x" * 32, "Müller")
    assert len(patient_ref(KEY, "Müller")) == 64
