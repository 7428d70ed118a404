"""Turn an .npz of images and labels into hospitals: DICOM folders with invented patients and a label table.

    python -m infra.hospitals.from_npz pneumonia.npz out --hospitals 3 --modality CR --label-name pneumonia

The file may have MedMNIST's arrays (`train_images`, `train_labels`, `val_images`, ...) or `images` and
`labels`. Images are uint8 or uint16 [N,H,W], labels integers [N] or [N,1].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from infra.hospitals.writing import Identity, LabelRow, write_image, write_labels

MAX_IMAGES_PER_PATIENT = 4
MAX_HOSPITALS = 50
UNEVEN = 2.0  # concentration of the Dirichlet draws: sizes and label shares differ up to several times
HELD_BACK = "held-back"
NAMES = (
    *("north-general", "harbour-clinic", "hill-university", "lake-infirmary"),
    *("west-childrens", "old-town", "river-valley", "south-memorial"),
)
_VENDORS = ("SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "Canon")

app = typer.Typer(add_completion=False)


class Kind(StrEnum):
    """Modalities this script can write."""

    CR = "CR"
    US = "US"
    CT = "CT"


@dataclass(frozen=True, slots=True)
class Patient:
    """An invented patient: the images (row numbers) and the one label that all of them have."""

    images: tuple[int, ...]
    label: int


class BadArchive(ValueError):
    """The .npz is not what this script reads. The sentence says what is missing."""


def load_images(path: Path, splits: Sequence[str]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Return images [N,H,W] and labels int64 [N] of the named splits; raises `BadArchive`."""
    with np.load(path, allow_pickle=False) as archive:
        pairs = [(f"{split}_images", f"{split}_labels") for split in splits]
        if "images" in archive and "labels" in archive:
            pairs = [("images", "labels")]
        missing = [name for pair in pairs for name in pair if name not in archive]
        if missing:
            raise BadArchive(f"{path} has no {', '.join(missing)}; it has {', '.join(archive)}")
        images = np.concatenate([archive[name] for name, _ in pairs])
        labels = np.concatenate([archive[name].reshape(len(archive[name])) for _, name in pairs])
    if images.ndim != 3 or images.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise BadArchive(f"images are {images.dtype} {images.shape}, not uint8 or uint16 [N,H,W]")
    if len(images) != len(labels) or labels.dtype.kind not in "iu":
        raise BadArchive(f"labels are {labels.dtype} {labels.shape}, not integers, one per image")
    return images, labels.astype(np.int64)


def invent_patients(labels: NDArray[np.int64], rng: np.random.Generator) -> list[Patient]:
    """Group images of one label into patients of 1 to 4, in random order; every image belongs to one."""
    patients = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label)).tolist()
        while rows:
            size = int(rng.integers(1, MAX_IMAGES_PER_PATIENT + 1))
            patients.append(Patient(tuple(rows[:size]), int(label)))
            rows = rows[size:]
    return [patients[index] for index in rng.permutation(len(patients))]


def share_out(patients: Sequence[Patient], hospitals: int, rng: np.random.Generator) -> list[list[Patient]]:
    """Deal patients to hospitals of unequal size and label share; each gets one of every label, if there is one."""
    dealt: list[list[Patient]] = [[] for _ in range(hospitals)]
    size = rng.dirichlet([UNEVEN * 4] * hospitals)
    for label in sorted({patient.label for patient in patients}):
        having = [patient for patient in patients if patient.label == label]
        weight = size * rng.dirichlet([UNEVEN * 2] * hospitals)
        later = rng.choice(hospitals, size=max(len(having) - hospitals, 0), p=weight / weight.sum())
        for patient, hospital in zip(having, [*range(hospitals), *later.tolist()], strict=False):
            dealt[hospital].append(patient)
    return dealt


def write_hospitals(
    out: Path,
    dealt: Sequence[tuple[str, Sequence[Patient]]],
    images: NDArray[np.integer],
    *,
    modality: Kind,
    label_name: str,
) -> Iterator[None]:
    """Write each hospital's folder, yielding once per image, for progress."""
    for index, (hospital, patients) in enumerate(dealt):
        rows = []
        for number, patient in enumerate(patients, start=1):
            for image, row in enumerate(patient.images, start=1):
                vendor = _VENDORS[index % len(_VENDORS)]
                who = Identity(hospital, f"P{number:05d}", image=image, manufacturer=vendor)
                path = out / hospital / "dicom" / who.patient / f"{image:02d}.dcm"
                write_image(path, images[row], identity=who, modality=modality.value)
                rows.append(LabelRow(who, str(patient.label)))
                yield
        (out / hospital).mkdir(parents=True, exist_ok=True)
        write_labels(out / hospital / "labels.csv", label_name, rows)


@app.command()
def main(  # noqa: PLR0913, PLR0917 - a command's options
    archive: Annotated[Path, typer.Argument(help="The .npz to read.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the hospitals; must be new or empty.")],
    hospitals: Annotated[int, typer.Option(help="How many hospitals.", min=1, max=MAX_HOSPITALS)] = 3,
    modality: Annotated[Kind, typer.Option(help="What the images are written as.")] = Kind.CR,
    label_name: Annotated[str, typer.Option(help="Name of the label column in labels.csv.")] = "label",
    splits: Annotated[str, typer.Option(help="Which arrays to take, as train,val.")] = "train,val",
    limit: Annotated[int | None, typer.Option(help="Take only so many images, at random.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.", min=0)] = 7,
    names: Annotated[str | None, typer.Option(help="Hospital names, as st-olavs,charite.")] = None,
    hold_back: Annotated[
        float,
        typer.Option(help=f"Share of patients put aside in OUT/{HELD_BACK}, seen by no hospital.", min=0, max=0.9),
    ] = 0.0,
) -> None:
    """Write invented hospitals: unequal sizes and label shares, 1 to 4 images per patient, split by patient."""
    if out.exists() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} is not empty", param_hint="OUT")
    chosen_names = _names(names, hospitals)
    try:
        images, labels = load_images(archive, [split.strip() for split in splits.split(",") if split.strip()])
    except ValueError as why:
        raise typer.BadParameter(str(why), param_hint="ARCHIVE") from why
    rng = np.random.default_rng(seed)
    if limit is not None and limit < len(images):
        rows = rng.choice(len(images), size=limit, replace=False)
        images, labels = images[rows], labels[rows]
    patients = invent_patients(labels, rng)
    aside = round(len(patients) * hold_back)
    dealt = list(zip(chosen_names, share_out(patients[aside:], hospitals, rng), strict=True))
    if aside:
        dealt.append((HELD_BACK, patients[:aside]))
    console = Console(stderr=True)
    writing = write_hospitals(out, dealt, images, modality=modality, label_name=label_name)
    for _ in track(writing, description="writing DICOM", total=len(images), console=console):
        pass
    console.print(_summary(dealt))


def _names(given: str | None, hospitals: int) -> list[str]:
    if given is None:
        return [NAMES[index] if index < len(NAMES) else f"hospital-{index + 1}" for index in range(hospitals)]
    names = [name.strip() for name in given.split(",") if name.strip()]
    if len(set(names)) != hospitals or len(names) != hospitals or HELD_BACK in names:
        raise typer.BadParameter(f"give {hospitals} different names", param_hint="--names")
    return names


def _summary(dealt: Sequence[tuple[str, Sequence[Patient]]]) -> Table:
    labels = sorted({patient.label for _, patients in dealt for patient in patients})
    table = Table("hospital", "patients", "images", *(f"label {label}" for label in labels))
    for name, patients in dealt:
        counts = [sum(len(one.images) for one in patients if one.label == label) for label in labels]
        table.add_row(name, str(len(patients)), str(sum(counts)), *map(str, counts))
    return table


if __name__ == "__main__":
    app()
