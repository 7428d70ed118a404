"""Scanning series for a plan of volumes once more: an archive of which everything is known, beside the bare `os.stat`.

As the rows of `intake` for single images; a file is a slice, or the segmentation of a series. How long the first scan
took is a row too: that is what every scan took before anything was remembered of series.
"""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan
from infra.bench.rows import Row, ratio_at_most
from infra.hospitals.segmentations import write_segmentation
from infra.hospitals.volumes import Lie, write_series
from infra.hospitals.writing import Identity, uid
from silo_agent.intake.reading import Means, Memory
from silo_agent.intake.reuse import OtherScan
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.volumes.scan import scan_volumes

SERIES, SLICES, SIDE, INPUT_SIDE, RUNS = 20, 100, 128, 64, 3
_LIE = Lie(spacing=(2.0, 2.0), gap=2.0)
_KEY = bytes(range(32))


def series_again(folder: Path) -> list[Row]:
    archive = write_archive(folder / "series")
    first = OtherScan(folder / "volumes" / "first", _KEY)
    # files are remembered once they have not changed for a while
    memory = Memory(folder / "volumes.sqlite", datetime.now(UTC) + timedelta(hours=1), (first,))
    once = _each(_scan_seconds(archive, _plan(), first.cache, memory))
    files = [os.fspath(path) for path in sorted(archive.rglob("*.dcm"))]
    peer = median(_each(_stat_seconds(files)) for _ in range(RUNS))
    nothing = _plan(orientation="sagittal")
    unused, used = (
        [_each(_scan_seconds(archive, plan, folder / "volumes" / "again", memory)) for _ in range(RUNS)]
        for plan in (nothing, _plan())
    )
    what = f"{SERIES} series of {SLICES} slices"
    return [
        Row.of_runs(f"{what}, unchanged, none of use to the plan, each", unused, "us",
                    against="os.stat", reference=peer, target=ratio_at_most(20)),
        Row.of_runs(f"{what}, unchanged, all used, each", used, "us", against="os.stat", reference=peer),
        Row.of_runs(f"{what}, scanned for the first time, each", [once], "us"),
    ]  # fmt: skip


def write_archive(folder: Path) -> Path:
    """A series of each patient, with two balls of it outlined."""
    for number in range(SERIES):
        rng, who = np.random.default_rng(number), Identity("bench", f"{number:03}")
        values = rng.integers(-900, 900, (SLICES, SIDE, SIDE)).astype(np.int16)
        z, y, x = np.ogrid[:SLICES, :SIDE, :SIDE]
        mask = np.zeros(values.shape, np.uint8)
        for one, centre in ((1, 40), (2, 70)):
            mask[(z - 50) ** 2 + (y - centre) ** 2 + (x - 64) ** 2 < 20**2] = one
        write_series(folder / who.patient, values, identity=who, lie=_LIE)
        write_segmentation(
            folder / who.patient / "mask.dcm", mask, {1: "one", 2: "other"}, identity=replace(who, image=900),
            series=uid(who.series_uid, 1), lie=_LIE,
        )  # fmt: skip
    return folder


def _each(seconds: float) -> float:
    return seconds / (SERIES * (SLICES + 1)) * 1e6


def _stat_seconds(files: list[str]) -> float:
    begun = time.perf_counter()
    for file in files:
        os.stat(file)  # noqa: PTH116 - the bare call
    return time.perf_counter() - begun


def _scan_seconds(archive: Path, plan: StudyPlan, cache: Path, memory: Memory) -> float:
    begun = time.perf_counter()
    source = FolderSource(archive, archive, "seg")
    scan_volumes(source, plan, _KEY, cache, lambda _done, _files: None, means=Means(memory=memory))
    return time.perf_counter() - begun


def _plan(**rule: Any) -> StudyPlan:
    purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "none: no data of persons")
    hospitals = [{"silo": f"hospital-{n}", "signing_key": SigningIdentity.generate().public.text} for n in range(3)]
    side, spacing = INPUT_SIDE, 4.0
    return parse_plan(
        {
            "version": 1,
            "name": "bench",
            "revision": 1,
            "task": "segmentation",
            "purpose": {**purpose, "expires": "2099-12-31"},
            "hospitals": hospitals,
            "model": {"name": "unet-small", "version": 1},
            "preprocessing": {
                "size": [side, side, side],
                "spacing": [spacing, spacing, spacing],
                "intensity": "window",
                "low": -1000.0,
                "high": 1000.0,
            },
            "labels": {"classes": ["none", "one", "other"]},
            "dataset": {"name": "bench", "modalities": ["CT"], "series": {"modality": "CT", **rule}},
            "training": {"rounds": 1},
        }
    )
