"""What a cohort is described by: counts that add up, in fixed bins. Nothing in it is of one patient.

The bins are fixed here and not by the data: a bin that followed a hospital's extremes would tell them.
"""

from collections.abc import Mapping

INTENSITY_BINS = 20  # of [0, 1], equally wide; the last holds 1 as well
IMAGES_PER_PATIENT = (1, 2, 3, 5, 9)  # from which count on: 1, 2, 3 to 4, 5 to 8, 9 and more
SIDES = ("training", "held_back")


def sizes(classes: int) -> Mapping[str, int]:
    """The numbers by section, in order: of each side patients, images, images of each class; then of both together.

    `intensities` adds up, over images, the share of the model's input in each bin, before any normalisation;
    `per_patient` counts patients by how many images of theirs are used.
    """
    of_sides = {
        f"{side}_{what}": size
        for side in SIDES
        for what, size in (("patients", 1), ("images", 1), ("classes", classes))
    }
    return of_sides | {"intensities": INTENSITY_BINS, "per_patient": len(IMAGES_PER_PATIENT)}
