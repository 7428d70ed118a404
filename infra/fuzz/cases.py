"""Which damage a case is: a function of the seed of the campaign and the number of the case, and of nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Literal

from infra.fuzz.elements import elements_of
from infra.fuzz.mutations import MUTATIONS
from infra.fuzz.niftis import damaged as damaged_nifti
from infra.fuzz.niftis import niftis
from infra.fuzz.seeds import Seed, images, real_images, real_series, series

_SERIES_SHARE = 0.2  # of the cases; one takes several times as long as a single image
_NIFTI_SHARE = 0.05
_SPLICED = "the end is another file's"
_WRITTEN_HERE = 0.5  # of the cases of single images: most real ones are refused for what they are


@dataclass(frozen=True, slots=True)
class Case:
    """Damaged files. `done` tells what was done to them, in order."""

    number: int
    seed: str
    done: tuple[str, ...]
    files: tuple[bytes, ...] = field(repr=False)
    kind: Literal["image", "series", "nifti"]


@dataclass(frozen=True, slots=True)
class Source:
    """All seeds, in a fixed order."""

    written: tuple[Seed, ...]
    real: tuple[Seed, ...]
    series: tuple[Seed, ...]
    niftis: tuple[Seed, ...]


def load(real: Path | None) -> Source:
    """Write the seeds that are ours and read the real ones, if there are any."""
    with TemporaryDirectory(prefix="wardround-fuzz-") as folder:
        written, of_series = images(Path(folder)), series(Path(folder))
    if real is None:
        return Source(tuple(written), (), tuple(of_series), niftis())
    return Source(tuple(written), tuple(real_images(real)), (*of_series, *real_series(real)), niftis())


def make(campaign: int, number: int, source: Source) -> Case:
    chance = Random(f"{campaign}/{number}")  # noqa: S311 - reproducible damage, no secret
    share = chance.random()
    if share < _SERIES_SHARE:
        return _series_case(chance, number, source)
    if share > 1 - _NIFTI_SHARE:
        seed = chance.choice(source.niftis)
        done, data = damaged_nifti(chance, seed.files[0])
        return Case(number, seed.name, done, (data,), "nifti")
    real = source.real and chance.random() >= _WRITTEN_HERE
    seed = chance.choice(source.real if real else source.written)
    done, data = _damaged(chance, seed.files[0], [one.files[0] for one in (*source.written, *source.real)])
    return Case(number, seed.name, done, (data,), "image")


def _damaged(chance: Random, data: bytes, others: Sequence[bytes]) -> tuple[tuple[str, ...], bytes]:
    names = chance.choices((*MUTATIONS, _SPLICED), k=chance.choice((1, 1, 1, 2, 3)))
    for name in names:
        data = _splice(chance, data, chance.choice(others)) if name == _SPLICED else MUTATIONS[name](chance, data)
    return tuple(names), data


def _splice(chance: Random, data: bytes, other: bytes) -> bytes:
    if chance.random() < 0.5:
        return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]
    starts, ends = elements_of(data), elements_of(other)
    if not starts or not ends:
        return data
    return data[: chance.choice(starts).at] + other[chance.choice(ends).at :]


def _series_case(chance: Random, number: int, source: Source) -> Case:
    seed = chance.choice(source.series)
    files, done = list(seed.files), list[str]()
    others = [data for one in source.series for data in one.files]
    for at in chance.sample(range(len(files)), chance.choice((1, 1, 2)) if len(files) > 1 else 1):
        names, files[at] = _damaged(chance, files[at], others)
        done += names
    if len(files) > 1 and chance.random() < 0.2:
        shuffled = chance.choice(("a file is missing", "a file is there twice", "a file of another series is there"))
        done.append(shuffled)
        if shuffled == "a file is missing":
            del files[chance.randrange(len(files))]
        else:
            files.append(chance.choice(files if "twice" in shuffled else others))
    return Case(number, seed.name, tuple(done), tuple(files), "series")
