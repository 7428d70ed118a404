"""`make bench`: measure, print a table, write the same rows as JSON."""

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra.bench.rows import Row

# name -> (module, function): imported when it is run, because some of them import torch
BENCHMARKS = {
    "round-25mb": ("rounds", "round_25mb"),
    "round-100mb": ("rounds", "round_100mb"),
    "tiny-training": ("tiny", "tiny_training"),
    "upload": ("upload", "upload"),
    "memory": ("memory", "memory"),
    "agent-footprint": ("footprint", "agent_footprint"),
    "demo": ("demo", "demo"),
}


def main(
    only: Annotated[str | None, typer.Option(help="One benchmark by name; without it, all of them.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows as JSON.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the names and stop.")] = False,
) -> None:
    """Measure what has a target, each figure beside a limit or a peer. Quote the load: machines are shared."""
    if listing:
        print("\n".join(BENCHMARKS))
        return
    if only is not None and only not in BENCHMARKS:
        raise typer.BadParameter(f"no benchmark {only!r}; there are {', '.join(BENCHMARKS)}", param_hint="--only")
    rows: list[Row] = []
    for name in [only] if only else list(BENCHMARKS):
        print(f"{name} (load {os.getloadavg()[0]:.1f}) ...", file=sys.stderr)
        module, function = BENCHMARKS[name]
        measure: Callable[[], list[Row]] = getattr(import_module(f"infra.bench.{module}"), function)
        rows += measure()
    Console(width=160).print(table_of(rows))
    if json_file is not None:
        json_file.write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n", "utf-8")


def table_of(rows: list[Row]) -> Table:
    table = Table("figure", "value", "unit", "against", "reference", "ratio", "target", "met")
    words = {True: "met", False: "NOT met", None: ""}
    for row in rows:
        table.add_row(
            row.figure, f"{row.value:.3g}", row.unit, row.against,
            "" if row.reference is None else f"{row.reference:.3g}", "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.target is None else str(row.target), words[row.met],
        )  # fmt: skip
    return table


if __name__ == "__main__":
    typer.run(main)
