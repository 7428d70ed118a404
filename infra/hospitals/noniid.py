"""Five invented hospitals that differ as real ones do, from an archive of labelled images and a seed.

They differ in their shares of the labels and in size: the patients of each label are dealt by shares drawn from a
Dirichlet distribution (Yurochkin et al. 2019, "Bayesian nonparametric federated learning of neural networks"), with
concentration 0.3. And in the look of their images: each has a vendor's gamma, gain and offset. Patients are invented,
of one to four images; a fifth of each hospital's patients is held back.

What makes a figure too good is kept out: images that occur twice are taken once, the common test is of other files than
the patients, without those that occur among them, and every hospital's look is in it equally often. Which children or
women the images are of, the archives do not tell; two images of one may be in both parts, for every method alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from infra.hospitals.from_npz import NAMES, Patient, invent_patients, load_images
from models.training import LocalData

SHARED_DATA = Path(__file__).parents[2].parent / "shared/data"
ARCHIVES = {
    "pneumonia": SHARED_DATA / "pneumonia-cxr-28/pneumoniamnist_dev.npz",
    "breast": SHARED_DATA / "breast-us-28/breastmnist_dev.npz",
}
HOSPITALS = 5
CONCENTRATION = 0.3  # what the literature calls strong label skew (Li et al. 2022, "Federated learning on non-IID ...")
HELD_BACK = 0.2
LEAST_TRAINED = 2  # patients of each label in each hospital, so that it can be trained on and tuned with
MOST_DRAWS = 100_000  # one in some hundred draws is good for 60 patients of the rarer label

Images = NDArray[np.integer]
Labels = NDArray[np.int64]


class NoSuchSplit(ValueError):
    """So few patients, or so many hospitals, that no draw gives every hospital both labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """Images uint8 [n, h, w] and labels int64 [n] for hospitals, and others for the common test; none is in both."""

    images: Images
    labels: Labels
    test_images: Images
    test_labels: Labels

    @classmethod
    def of(cls, images: Images, labels: Labels, test_images: Images, test_labels: Labels) -> Self:
        """Each image once, and none for testing that is there for training."""
        once, fresh = _firsts(images, ()), _firsts(test_images, images)
        return cls(images[once], labels[once], test_images[fresh], test_labels[fresh])

    @classmethod
    def read(cls, path: Path) -> Self:
        """MedMNIST's arrays: `train` for hospitals, `val` for the test. Raises `BadArchive`, `FileNotFoundError`."""
        return cls.of(*load_images(path, ["train"]), *load_images(path, ["val"]))

    def for_tuning(self, seed: int, share: float = 0.2) -> Self:
        """Another archive out of the training images alone, of which `share` are its test: for choosing settings."""
        rows = np.random.default_rng(seed).permutation(len(self.images))
        test, rest = np.split(rows, [round(share * len(rows))])
        return type(self)(self.images[rest], self.labels[rest], self.images[test], self.labels[test])


@dataclass(frozen=True, slots=True)
class Vendor:
    """How a hospital's devices show what others show: gain * x^gamma + offset, cut to [0, 1]; x is in [0, 1]."""

    gamma: float
    gain: float
    offset: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Gamma from 1/2 to 2, as often below 1 as above; contrast and brightness within a fifth."""
        return cls(2.0 ** rng.uniform(-1, 1), rng.uniform(0.7, 1.1), rng.uniform(-0.1, 0.2))

    def shows(self, images: Images) -> NDArray[np.float32]:
        """Uint8 [n, h, w] to float32 [n, 1, h, w] in [0, 1]."""
        exact = (images.astype(np.float32) / np.float32(255))[:, None]
        shown = np.float32(self.gain) * exact ** np.float32(self.gamma) + np.float32(self.offset)
        cut: NDArray[np.float32] = np.clip(shown, 0, 1).astype(np.float32)
        return cut


@dataclass(frozen=True, slots=True, eq=False)
class Hospital:
    """One hospital. `test` holds the images of the common test as this hospital's devices would show them."""

    name: str
    vendor: Vendor
    training: LocalData
    held_back: LocalData
    test: LocalData

    @property
    def most_patients(self) -> int:
        """What it would declare: all its patients, the held-back ones too, and up to the next twenty."""
        patients = sum(len(np.unique(part.patients)) for part in (self.training, self.held_back))
        return -(-patients // 20) * 20


@dataclass(frozen=True)
class NonIid:
    """A federation of hospitals that differ, and what it is measured on."""

    hospitals: tuple[Hospital, ...]

    @cached_property
    def common_test(self) -> LocalData:
        """Every test image once as each hospital would show it: the mix of all hospitals' kinds of images."""
        return joined([one.test for one in self.hospitals])

    @cached_property
    def pooled(self) -> LocalData:
        """All training images in one place, each as its hospital shows it."""
        return joined([one.training for one in self.hospitals])


def split(archive: Archive, seed: int, hospitals: int = HOSPITALS, concentration: float = CONCENTRATION) -> NonIid:
    """Deal an archive to hospitals. The same archive and seed give the same federation.

    Patients are invented once. Shares are then drawn, from the same generator, again and again until each hospital has
    `LEAST_TRAINED` patients of each label to train on and one held back. Raises `NoSuchSplit`.
    """
    rng = np.random.default_rng(seed)
    patients = invent_patients(archive.labels, rng)
    vendors = [Vendor.draw(rng) for _ in range(hospitals)]
    made, dealt = [], _deal(patients, hospitals, rng, concentration)
    for number, (vendor, (trained, held)) in enumerate(zip(vendors, dealt, strict=True)):
        test = LocalData(vendor.shows(archive.test_images), archive.test_labels, np.arange(len(archive.test_labels)))
        training, held_back = (_data(archive, patients, numbers, vendor) for numbers in (trained, held))
        made.append(Hospital(_name(number), vendor, training, held_back, test))
    return NonIid(tuple(made))


def joined(parts: Sequence[LocalData]) -> LocalData:
    """The images of all parts, in their order; patients' numbers are as they were."""
    images, labels, patients = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels", "patients")
    )
    return LocalData(images, labels, patients)


def _name(number: int) -> str:
    return NAMES[number] if number < len(NAMES) else f"hospital-{number + 1}"


def _deal(
    patients: Sequence[Patient], hospitals: int, rng: np.random.Generator, concentration: float
) -> list[tuple[list[int], list[int]]]:
    """For each hospital the numbers of the patients it trains on, and of those it holds back."""
    of_label = [
        np.array([number for number, patient in enumerate(patients) if patient.label == label])
        for label in sorted({patient.label for patient in patients})
    ]
    for _ in range(MOST_DRAWS):
        ends = [
            np.rint(np.cumsum(rng.dirichlet([concentration] * hospitals))[:-1] * len(numbers)).astype(int)
            for numbers in of_label
        ]
        parts = [np.split(numbers, end) for numbers, end in zip(of_label, ends, strict=True)]
        if all(len(part) - _held(part) >= LEAST_TRAINED for label in parts for part in label):
            break
    else:
        raise NoSuchSplit(f"{[len(numbers) for numbers in of_label]} patients of each label, {hospitals} hospitals")
    dealt: list[tuple[list[int], list[int]]] = []
    for hospital in range(hospitals):
        trained, held = [], []
        for label in parts:  # whose patients are in random order already
            apart = _held(label[hospital])
            held += label[hospital][:apart].tolist()
            trained += label[hospital][apart:].tolist()
        dealt.append((trained, held))
    return dealt


def _held(numbers: NDArray[np.int64]) -> int:
    """How many of a hospital's patients of one label are held back."""
    return max(1, round(HELD_BACK * len(numbers)))


def _data(archive: Archive, patients: Sequence[Patient], numbers: Sequence[int], vendor: Vendor) -> LocalData:
    rows = np.array([row for number in numbers for row in patients[number].images])
    owners = np.array([number for number in numbers for _ in patients[number].images], np.int64)
    return LocalData(vendor.shows(archive.images[rows]), archive.labels[rows], owners)


def _firsts(images: Images, before: Sequence[Images] | Images) -> NDArray[np.int64]:
    """Rows of the images that are not among `before`, each once, in their order."""
    seen, rows = {image.tobytes() for image in before}, []
    for row, image in enumerate(images):
        if (content := image.tobytes()) not in seen:
            seen.add(content)
            rows.append(row)
    return np.array(rows, np.int64)
