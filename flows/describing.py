"""What the one sum over images says: what to normalise by, and the cohort in counts. Small cells are not told."""

from math import sqrt

from boundary.description import IMAGES_PER_PATIENT, INTENSITY_BINS, SIDES
from boundary.images import SMALLEST_DEVIATION, Normalisation
from boundary.plan import StudyPlan
from compliance.events import CELL
from flows.records import Description, Side, Statistics
from flows.store.studies import Study
from flows.summing import Total


def normalisation_in(total: Total) -> Normalisation | None:
    """Mean and standard deviation over the training images; None if there are none."""
    images = total.number("images")
    if images < 0.5:
        return None
    mean = min(1.0, max(0.0, total.number("intensity") / images))
    variance = max(0.0, total.number("squares") / images - mean**2)
    return Normalisation(mean=mean, deviation=min(1.0, max(SMALLEST_DEVIATION, sqrt(variance))))


def counts(total: Total, name: str) -> tuple[int, ...]:
    """A section of whole numbers."""
    return tuple(max(0, round(count)) for count in total.numbers[total.layout.where(name)])


def description_in(total: Total) -> Description:
    """The cohort, from a sum whose layout has the sections of `boundary.description`."""
    training, held_back = (
        Side(
            patients=counts(total, f"{side}_patients")[0],
            images=counts(total, f"{side}_images")[0],
            classes=counts(total, f"{side}_classes"),
        )
        for side in SIDES
    )
    shares = [max(0.0, float(share)) for share in total.numbers[total.layout.where("intensities")]]
    whole = sum(shares) or 1.0
    return Description(
        training=training,
        held_back=held_back,
        intensities=tuple(round(share / whole, 4) for share in shares),
        per_patient=counts(total, "per_patient"),
    )


def description_page(study: Study, found: Statistics) -> str:
    """The cohort of all hospitals together as markdown: what the first table of a paper is made from."""
    cohort, plan = found.description, study.plan
    if cohort is None:
        raise ValueError(f"{study.label} does not ask for a description (dataset.described)")
    members = found.decision.members
    lines = [
        f"# {study.label}: the data of {len(members)} hospitals together",
        "",
        f"One masked sum over {', '.join(members)}: no hospital's own numbers are known. Counts below {CELL} are not "
        "told; a patient is on one side only.",
        "",
        "| | to train on | held back |",
        "|---|---:|---:|",
        f"| patients | {told(cohort.training.patients)} | {told(cohort.held_back.patients)} |",
        f"| images | {told(cohort.training.images)} | {told(cohort.held_back.images)} |",
    ]
    of = "images of" if plan.task == "classification" else "images that show"
    sides = zip(plan.labels.classes, *(shown_of(side) for side in (cohort.training, cohort.held_back)), strict=True)
    lines += [f"| {of} {name} | {training} | {held_back} |" for name, training, held_back in sides]
    lines += ["", "| images of one patient | patients |", "|---|---:|"]
    lines += [f"| {name} | {count} |" for name, count in zip(bins_told(plan), shown_per_patient(cohort), strict=True)]
    lines += ["", "| intensity of the model's input | share of pixels |", "|---|---:|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in zip(intensity_bins(), cohort.intensities, strict=True)]
    return "\n".join(lines)


def told(count: int) -> str:
    """A count that is small enough to point at somebody is not told."""
    return f"fewer than {CELL}" if 0 < count < CELL else f"{count:,}"


def shown_of(side: Side) -> tuple[str, ...]:
    """Images by class."""
    return hidden(side.classes)


def shown_per_patient(cohort: Description) -> tuple[str, ...]:
    """Patients by how many images of theirs are used: all of these counts are told, or none.

    They add up to the patients of both sides, and times their images to the images, so that a small side follows from
    them, and a small cell from the totals and from which cells are 0.
    """
    small = any(0 < n < CELL for n in (cohort.training.patients, cohort.held_back.patients, *cohort.per_patient))
    return tuple("not told" if small else f"{count:,}" for count in cohort.per_patient)


def hidden(cells: tuple[int, ...]) -> tuple[str, ...]:
    """Cells whose total is told elsewhere: with a small one go the next larger ones, until it cannot be worked out.

    Otherwise it would be what the others leave of the total (Hundepool et al. 2012, "Statistical Disclosure Control",
    secondary suppression): at least two are not told, and together they are at least twice the smallest cell.
    """
    by_size = sorted((place for place, count in enumerate(cells) if count), key=lambda place: cells[place])
    gone: list[int] = [place for place in by_size if cells[place] < CELL]
    for place in by_size[len(gone) :] if gone else []:
        if len(gone) > 1 and sum(cells[one] for one in gone) >= 2 * CELL:
            break
        gone.append(place)
    return tuple("not told" if place in gone else f"{count:,}" for place, count in enumerate(cells))


def bins_told(plan: StudyPlan) -> tuple[str, ...]:
    """`1`, `2`, `3 to 4`, ..., `9 to 16`: the last up to what the plan takes of a patient."""
    starts, most = IMAGES_PER_PATIENT, plan.dataset.max_images_per_patient
    ends = (*(after - 1 for after in starts[1:]), max(most, starts[-1]))
    return tuple(str(start) if start == end else f"{start} to {end}" for start, end in zip(starts, ends, strict=True))


def intensity_bins() -> tuple[str, ...]:
    width = 1 / INTENSITY_BINS
    return tuple(f"{place * width:.2f} to {(place + 1) * width:.2f}" for place in range(INTENSITY_BINS))
