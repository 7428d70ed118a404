"""A cohort in counts (`boundary.description`), from a finished scan. Whoever has withdrawn is not in it."""

import numpy as np
from numpy.typing import NDArray

from boundary.description import IMAGES_PER_PATIENT, INTENSITY_BINS
from silo_agent.intake.cache import CohortArrays


def described(arrays: CohortArrays, classes: int) -> NDArray[np.float64]:
    """The numbers of `boundary.description.sizes`, in its order, float64.

    One image at a time: the memory is that of one.
    """
    rows = np.flatnonzero(~arrays.withdrawn)
    sides = [_side(arrays, rows[arrays.holdout[rows] == held_back], classes) for held_back in (False, True)]
    shares = np.zeros(INTENSITY_BINS)
    for row in rows:
        image = np.asarray(arrays.images[row])
        shares += np.histogram(image, bins=INTENSITY_BINS, range=(0.0, 1.0))[0] / image.size
    _, images = np.unique(arrays.patients[rows], return_counts=True)
    per_patient, _ = np.histogram(images, bins=[*IMAGES_PER_PATIENT, np.inf])
    return np.concatenate([*sides, shares, per_patient])


def _side(arrays: CohortArrays, rows: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Patients, images, images of each class; one with a mask counts for every class that it shows."""
    shown = np.zeros(classes)
    for row in rows:
        shown[np.unique(arrays.labels[row] if arrays.masks is None else arrays.masks[row])] += 1
    return np.array([len(np.unique(arrays.patients[rows])), len(rows), *shown])
