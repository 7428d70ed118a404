"""Properties of the invented hospitals, on drawn archives and on the real ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.hospitals.noniid import (
    ARCHIVES,
    HELD_BACK,
    HOSPITALS,
    LEAST_TRAINED,
    Archive,
    NoSuchSplit,
    Vendor,
    split,
)
from models.training import LocalData


def archive(count: int = 400, *, seed: int = 0, share: float = 0.4) -> Archive:
    """Random images, no two alike."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < share).astype(np.int64)
    images = rng.integers(0, 256, (count, 8, 8)).astype(np.uint8)
    return Archive.of(images[:-80], labels[:-80], images[-80:], labels[-80:])


def patients_of(data: LocalData) -> set[int]:
    return set(data.patients.tolist())


def same(one: LocalData, other: LocalData) -> bool:
    return all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in ("images", "labels", "patients")
    )


def test_the_same_seed_gives_the_same_hospitals_and_another_seed_others() -> None:
    first, again, other = (split(archive(), seed).hospitals for seed in (5, 5, 6))
    for one, two in zip(first, again, strict=True):
        assert one.vendor == two.vendor
        assert all(same(getattr(one, part), getattr(two, part)) for part in ("training", "held_back", "test"))
    assert not any(same(one.training, two.training) for one, two in zip(first, other, strict=True))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_a_patient_is_in_one_hospital_and_in_one_part_of_it(seed: int) -> None:
    source = archive()
    parts = [part for one in split(source, seed).hospitals for part in (one.training, one.held_back)]
    owners = [patient for part in parts for patient in patients_of(part)]
    assert len(owners) == len(set(owners))
    assert sum(map(len, parts)) == len(source.images)
    for part in parts:
        images = np.unique(part.patients, return_counts=True)[1]
        assert (images.min() >= 1, images.max() <= 4) == (True, True)
        for patient in patients_of(part):
            assert len(set(part.labels[part.patients == patient].tolist())) == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_every_hospital_has_both_labels_to_train_on_and_to_be_measured_on(seed: int) -> None:
    for one in split(archive(), seed).hospitals:
        for label in (0, 1):
            trained, held = (patients_of(_of(part, label)) for part in (one.training, one.held_back))
            assert len(trained) >= LEAST_TRAINED
            assert len(held) == max(1, round(HELD_BACK * len(trained | held)))


def _of(data: LocalData, label: int) -> LocalData:
    rows = data.labels == label
    return LocalData(data.images[rows], data.labels[rows], data.patients[rows])


def test_sizes_and_label_shares_differ_between_hospitals() -> None:
    """Over twenty federations the largest hospital has many times the smallest, and label shares are far apart."""
    ratios, spreads = [], []
    for seed in range(20):
        trained = [one.training for one in split(archive(), seed).hospitals]
        sizes, shares = [len(data) for data in trained], [data.labels.mean() for data in trained]
        ratios.append(max(sizes) / min(sizes))
        spreads.append(max(shares) - min(shares))
    assert np.median(ratios) > 3
    assert np.median(spreads) > 0.4


def test_images_look_as_their_hospital_shows_them_and_the_test_as_each_shows_it() -> None:
    source = archive()
    made = split(source, 3)
    exact = {image.tobytes(): image for image in source.images}
    for one in made.hospitals:
        shown = one.vendor.shows(source.images).reshape(len(source.images), -1)
        assert {row.tobytes() for row in one.training.images} <= {row.tobytes() for row in shown}
        assert one.test.images.tobytes() == one.vendor.shows(source.test_images).tobytes()
        assert (one.test.images.dtype, one.test.images.shape[1:]) == (np.float32, (1, 8, 8))
        assert one.test.labels.tolist() == source.test_labels.tolist()
    assert len(made.common_test) == HOSPITALS * len(source.test_images)
    assert len({one.vendor for one in made.hospitals}) == HOSPITALS
    assert len(exact) == len(source.images)


def test_a_vendor_keeps_the_order_of_intensities_and_stays_within_one() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    rng = np.random.default_rng(0)
    for _ in range(50):
        shown = Vendor.draw(rng).shows(ramp).ravel()
        assert (np.diff(shown) >= 0).all()
        assert (shown.min() >= 0, shown.max() <= 1, shown.max() - shown.min() > 0.5) == (True, True, True)
    assert Vendor(1, 1, 0).shows(ramp).ravel()[255] == 1


def test_an_image_that_occurs_twice_is_taken_once_and_never_trained_and_tested_on() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4)).astype(np.uint8)
    labels = np.arange(6)
    made = Archive.of(images[[0, 1, 0, 2]], labels[[0, 1, 0, 2]], images[[2, 3, 3, 4]], labels[[2, 3, 3, 4]])
    assert (made.labels.tolist(), made.test_labels.tolist()) == ([0, 1, 2], [3, 4])
    assert made.test_images.tobytes() == images[[3, 4]].tobytes()


def test_settings_are_chosen_without_a_look_at_the_test() -> None:
    source = archive()
    tuning = source.for_tuning(1)
    known = {image.tobytes() for image in source.images}
    trained, tested = ({image.tobytes() for image in part} for part in (tuning.images, tuning.test_images))
    assert (trained | tested, trained & tested) == (known, set())
    assert len(tested) == round(0.2 * len(known))
    assert not tested & {image.tobytes() for image in source.test_images}


def test_too_few_patients_for_the_hospitals_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.hospitals.noniid.MOST_DRAWS", 50)
    with pytest.raises(NoSuchSplit, match="5 hospitals"):
        split(archive(90), 0)


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_real_archives_give_five_hospitals_for_every_seed_of_the_benchmark(name: str) -> None:
    path = ARCHIVES[name]
    if not path.exists():
        pytest.skip(f"{path} is not there: the real archives are not part of the project")
    source = Archive.read(path)
    known = {image.tobytes() for image in source.images}
    assert not known & {image.tobytes() for image in source.test_images}
    for seed in range(5):
        made = split(source, seed)
        assert len(made.hospitals) == HOSPITALS
        assert sum(len(one.training) + len(one.held_back) for one in made.hospitals) == len(known)
        sizes = sorted(len(one.training) for one in made.hospitals)
        assert sizes[-1] > 2 * sizes[0]
