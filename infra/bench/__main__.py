"""`python -m infra.bench`: run benchmarks, print a table, write the same rows as JSON."""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from infra.bench.registry import BENCHMARKS, Benchmark
from infra.bench.rows import Row

_QUIET = 10.0  # percent of all cores, by anybody, above which figures are not to be quoted
_LISTEN_SECONDS = 2.0
_DESCRIPTION = """\
Measures what Wardround promises: each figure beside its limit, or beside a peer measured in the same run.

  make bench                              all of them, about ten minutes
  make bench ONLY=upload                  one; several as ONLY=upload,memory
  make bench ONLY=memory JSON=out.json    the same rows for machines"""
_EPILOG = """\
How to read the table: `ratio` is the figure divided by what stands under "against"; `target` says whether the figure
or the ratio counts. A figure of several runs is their median, with the best in brackets; all runs are in the JSON.
Times are only worth quoting from a quiet machine: how busy it was before each benchmark is said, and is in the JSON.
Figures of other systems are constants where their name says so, measured once on another machine of this kind.

Exit status: 0 when all ran, whether targets were met or not; 1 when one could not be run; 2 for a wrong option.

To add one, write a function that returns rows (infra/bench/rows.py) and name it in infra/bench/registry.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _options(arguments)
    if chosen.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:16} {benchmark.summary} (about {benchmark.minutes:g} min)")
        return 0
    console, results, failed = Console(width=None if sys.stdout.isatty() else 160), [], False
    for name in chosen.only or BENCHMARKS:
        result = run(name, BENCHMARKS[name], console)
        results.append(result)
        failed = failed or result["error"] is not None
        if chosen.json is not None:  # after each: an interrupted run keeps what it has
            chosen.json.write_text(json.dumps(report(results), indent=2) + "\n", "utf-8")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m infra.bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="name the benchmarks and what each measures")
    parser.add_argument("--only", type=_names, metavar="NAME[,NAME]", help="run these only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return parser.parse_args(arguments)


def _names(raw: str) -> list[str]:
    names = raw.split(",")
    for name in names:
        if name not in BENCHMARKS:
            raise argparse.ArgumentTypeError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return names


def run(name: str, benchmark: Benchmark, console: Console) -> dict[str, Any]:
    """Run one and print its table. An error is part of the result: the others still run."""
    busy = psutil.cpu_percent(_LISTEN_SECONDS)  # the load average would count the benchmark before this one
    begun, rows, error = time.monotonic(), [], None
    note = "" if busy <= _QUIET else f" [bold]not quiet: {busy:.0f} % busy, do not quote these times[/bold]"
    console.print(f"[bold]{name}[/bold]: {benchmark.summary}{note}", highlight=False)
    try:
        rows = benchmark.run()
    except Exception as why:  # noqa: BLE001 - whatever went wrong, it is said, and the next one runs
        traceback.print_exc()
        error = f"{type(why).__name__}: {why}"
        console.print(f"could not be run: {error}", markup=False)
    console.print(table(rows))
    return {
        "benchmark": name,
        "busy_percent_before": busy,
        "seconds": time.monotonic() - begun,
        "error": error,
        "rows": [row.to_json() for row in rows],
    }


def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the JSON file holds: the machine and the rows."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "results": results,
    }


def table(rows: list[Row]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, side in (("figure", "left"), ("value", "right"), ("against", "left"), ("ratio", "right"),
                         ("target", "left"), ("met", "left")):  # fmt: skip
        made.add_column(column, justify=side, no_wrap=column != "figure")  # type: ignore[arg-type]
    for row in rows:
        best = f" ({min(row.runs):.3g})" if len(row.runs) > 1 else ""
        made.add_row(
            row.figure,
            f"{row.value:.3g} {row.unit}{best}",
            row.against if row.reference is None else f"{row.reference:.3g} {row.unit}, {row.against}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.target is None else str(row.target),
            {None: "", True: "yes", False: "NO"}[row.met],
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
