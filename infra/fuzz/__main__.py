"""`python -m infra.fuzz`: damage files by the thousand, read them, and tell which promises were not kept."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.fuzz.campaign import Findings, run
from infra.fuzz.cases import Case, load, make
from infra.fuzz.child import judged, limit_memory
from infra.fuzz.judging import MiB

_REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
_DESCRIPTION = """\
Damages DICOM files and reads them as the agent's intake does: single images, and whole series as volumes. Whatever a
file holds, reading it must give an image or a code, within its limits, and say nothing; an image must have the values
that pydicom gives.

  python -m infra.fuzz --cases 10000 --seed 1           all of it, a few minutes
  python -m infra.fuzz --only 4711 --keep /tmp/broken   one case again, and its files to look at"""
_EPILOG = """\
Exit status: 0 when every promise was kept, 1 when one was not. The same seed, the same number and the same folder of
real files give the same damaged files."""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _options(arguments)
    real = chosen.data if chosen.data.is_dir() else None
    if chosen.only is not None:
        return _one(chosen.seed, chosen.only, real, chosen.keep)
    found = run(chosen.seed, range(chosen.cases), real, jobs=chosen.jobs, trace=chosen.trace, on_progress=_show)
    sys.stdout.write(f"\r{told(found)}\n")
    if chosen.keep is not None:
        source = load(real)
        for one in found.broken:
            keep(make(chosen.seed, one.number, source), chosen.keep)
    return 1 if found.broken else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m infra.fuzz",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, default=1, help="another one, other damage (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes side by side (one per core)")
    parser.add_argument("--trace", type=int, default=4, metavar="N", help="trace the memory of every Nth case (4)")
    parser.add_argument("--data", type=Path, default=_REAL, help="the folder of real files; without it fewer seeds")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this case alone")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the files of broken cases here")
    return parser.parse_args(arguments)


def _show(done: int) -> None:
    if sys.stdout.isatty() and done % 10 == 0:
        sys.stdout.write(f"\r{done} cases ")
        sys.stdout.flush()


def _one(seed: int, number: int, real: Path | None, folder: Path | None) -> int:
    case = make(seed, number, load(real))
    if folder is not None:
        keep(case, folder)
    limit_memory()
    with TemporaryDirectory(prefix="wardround-fuzz-") as empty:
        verdict = judged(case, Path(empty))
    sys.stdout.write(f"{case.seed}: {', then '.join(case.done)}\nends as {', '.join(verdict.ends) or 'nothing'}\n")
    sys.stdout.write("".join(f"BROKEN: {sentence}\n" for sentence in verdict.broken))
    return 1 if verdict.broken else 0


def keep(case: Case, folder: Path) -> None:
    """Write the files of a case, `NUMBER-FILE.dcm`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(case.files):
        (folder / f"{case.number}-{number:02}.dcm").write_bytes(data)


def told(found: Findings) -> str:
    """Say what a campaign found."""
    lines = [
        f"{found.cases} cases in {found.seconds:.0f} s, {len(found.broken)} of them broke a promise",
        f"values that pydicom confirms: {found.confirmed}; that it cannot say: {found.unconfirmed}",
        f"most memory in one case: {found.peak / MiB:.0f} MiB of Python's, {found.grown / MiB:.0f} MiB of the process",
        "ends: " + ", ".join(f"{end} {count}" for end, count in found.ends.most_common()),
        *(str(one) for one in found.broken),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
