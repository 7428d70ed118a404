import hashlib
import random

from hypothesis import given
from hypothesis import strategies as st

from boundary.images import Dataset
from silo_agent.intake.cohort import Candidate, Cohort, build_cohort
from silo_agent.intake.refusals import Refusal

KEY = bytes(32)
Row = tuple[str, str, int, int]
DATASET = Dataset(name="chest-ct", modalities=("CT",), max_images_per_patient=3)


def image(
    file: int, *, sop: str | None = None, patient: str = "P1", pixels: object = None, label: int = 0
) -> Candidate:
    content = hashlib.sha256(str(file if pixels is None else pixels).encode()).digest()
    return Candidate(file, label, sop or f"1.{file}", patient, content)


def cohort(*candidates: Candidate, dataset: Dataset = DATASET, key: bytes = KEY) -> Cohort:
    return build_cohort(candidates, dataset, key=key)


def test_the_same_instance_twice_is_used_once() -> None:
    built = cohort(image(0, sop="1.1", pixels="a"), image(1, sop="1.1", pixels="a"))
    assert [member.file for member in built.members] == [0]
    assert built.refused == {1: Refusal.DUPLICATE}


def test_the_same_pixels_under_another_uid_are_used_once() -> None:
    built = cohort(image(0, pixels="a"), image(1, pixels="a"))
    assert list(built.refused.values()) == [Refusal.DUPLICATE_PIXELS]
    assert len(built.members) == 1


def test_the_same_pixels_with_different_labels_are_not_used_at_all() -> None:
    built = cohort(image(0, pixels="a", label=0), image(1, pixels="a", label=1), image(2))
    assert built.refused == dict.fromkeys((0, 1), Refusal.LABEL_CONFLICT)
    assert [member.file for member in built.members] == [2]


def test_one_instance_that_two_studies_label_differently_is_not_used_at_all() -> None:
    built = cohort(image(0, sop="1.1", pixels="a", label=0), image(1, sop="1.1", pixels="a", label=1))
    assert built.refused == dict.fromkeys((0, 1), Refusal.LABEL_CONFLICT)


def test_one_uid_on_different_images_or_patients_is_not_used_at_all() -> None:
    built = cohort(
        image(0, sop="1.1", pixels="a"),
        image(1, sop="1.1", pixels="b"),
        image(2, sop="1.2", pixels="c", patient="P1"),
        image(3, sop="1.2", pixels="c", patient="P2"),
    )
    assert built.members == ()
    assert built.refused == dict.fromkeys(range(4), Refusal.UID_CONFLICT)


def test_a_patient_gives_no_more_than_the_plan_takes() -> None:
    built = cohort(*(image(file) for file in range(5)), image(9, patient="P2"))
    assert list(built.refused.values()) == [Refusal.OVER_PATIENT_CAP] * 2
    assert sum(member.patient == built.members[0].patient for member in built.members) in {1, 3}


def test_the_digest_is_keyed_and_sees_every_change() -> None:
    first = cohort(image(0), image(1, patient="P2"))
    changes = {
        "label": cohort(image(0, label=1), image(1, patient="P2")),
        "patient": cohort(image(0), image(1, patient="P3")),
        "image": cohort(image(0, pixels="x"), image(1, patient="P2")),
        "key": cohort(image(0), image(1, patient="P2"), key=b"x" * 32),
        "fewer": cohort(image(0)),
    }
    assert len({first.digest, *(one.digest for one in changes.values())}) == 1 + len(changes)


candidates = st.lists(
    st.builds(
        lambda sop, patient, pixels, label: (f"1.{sop}", f"P{patient}", pixels, label),
        st.integers(0, 12),
        st.integers(0, 5),
        st.integers(0, 12),
        st.integers(0, 1),
    ),
    max_size=20,
)


def numbered(rows: list[Row]) -> list[Candidate]:
    return [image(n, sop=s, patient=p, pixels=x, label=y) for n, (s, p, x, y) in enumerate(rows)]


@given(candidates)
def test_every_candidate_ends_in_exactly_one_state_and_no_patient_on_both_sides(rows: list[Row]) -> None:
    built = cohort(*numbered(rows))
    used = [member.file for member in built.members]
    assert sorted([*used, *built.refused]) == list(range(len(rows)))
    sides = {(rows[member.file][1], member.holdout) for member in built.members}
    assert len(sides) == len({patient for patient, _ in sides})
    numbers = {(rows[member.file][1], member.patient) for member in built.members}
    assert len(numbers) == len({patient for patient, _ in numbers}) == len({number for _, number in numbers})


@given(candidates, st.randoms(use_true_random=False))
def test_the_order_of_files_changes_nothing(rows: list[Row], chance: random.Random) -> None:
    shuffled = rows[:]
    chance.shuffle(shuffled)
    one, other = cohort(*numbered(rows)), cohort(*numbered(shuffled))
    assert one.digest == other.digest
    assert [(m.label, m.patient, m.holdout) for m in one.members] == [
        (m.label, m.patient, m.holdout) for m in other.members
    ]


# --- with a guarantee per patient --------------------------------------------------------------------
PEOPLE = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=30
)  # patient, pixels, instance, label


def alone(rows: list[tuple[int, int, int, int]]) -> dict[str, list[tuple[int, int, bool]]]:
    """What is used of each patient: file, label, side."""
    found = [
        Candidate(file, label, f"1.2.{instance}", f"P{patient}", bytes([pixels]) * 32)
        for file, (patient, pixels, instance, label) in enumerate(rows)
    ]
    cohort = build_cohort(found, DATASET.model_copy(update={"max_images_per_patient": 2}), key=KEY, each_alone=True)
    used: dict[str, list[tuple[int, int, bool]]] = {}
    for member in cohort.members:
        used.setdefault(found[member.file].patient_id, []).append((member.file, member.label, member.holdout))
    assert len(cohort.members) + len(cohort.refused) == len(rows)
    return {patient: sorted(images) for patient, images in used.items()}


@given(PEOPLE, st.integers(0, 5))
def test_with_a_guarantee_one_patient_moves_nothing_of_another(
    rows: list[tuple[int, int, int, int]], leaves: int
) -> None:
    """Without one patient, whatever copies that patient holds, everybody else's part is the same to the file."""
    everybody = alone(rows)
    without = [row for row in rows if row[0] != leaves]
    place = [file for file, row in enumerate(rows) if row[0] != leaves]
    rest = {
        patient: sorted((place[file], label, held) for file, label, held in images)
        for patient, images in (alone(without) if without else {}).items()
    }
    everybody.pop(f"P{leaves}", None)
    assert everybody == rest


def test_without_a_guarantee_a_patient_could() -> None:
    """What the rule above is for: copies of others' images under another label take those images out."""
    pixels = [bytes([i]) * 32 for i in range(4)]
    others = [Candidate(i, 0, f"1.2.{i}", f"P{i}", one) for i, one in enumerate(pixels)]
    copies = [Candidate(4 + i, 1, f"1.3.{i}", "Q", one) for i, one in enumerate(pixels)]
    assert len(build_cohort(others, DATASET, key=KEY).members) == 4
    assert len(build_cohort([*others, *copies], DATASET, key=KEY).members) == 0
    assert (
        len(build_cohort([*others, *copies], DATASET, key=KEY, each_alone=True).members) == 4 + 3
    )  # of one patient, three
