"""Which clause asks about what: read from `crosswalk.toml`, which says where each row comes from and as of when."""

import tomllib
from collections import defaultdict
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import BeforeValidator, Field

from boundary.names import Frozen, list_in


class Row(Frozen):
    """A clause, in our own words what it asks, and where this report has something about it."""

    framework: str
    clause: str
    asks: str
    controls: Annotated[tuple[str, ...], BeforeValidator(list_in)]
    fields: Annotated[tuple[Annotated[int, Field(ge=1, le=12)], ...], BeforeValidator(list_in)]
    source: str
    as_of: date

    @property
    def name(self) -> str:
        return f"{self.framework} {self.clause}"


@cache
def rows() -> tuple[Row, ...]:
    """All rows, in the order of the file."""
    text = files("compliance.evidence").joinpath("crosswalk.toml").read_text("utf-8")
    return tuple(Row.model_validate(row) for row in tomllib.loads(text)["row"])


@cache
def clauses_by_control() -> dict[str, tuple[str, ...]]:
    """Control id -> the clauses it bears on."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows():
        for control in row.controls:
            found[control].append(row.name)
    return {control: tuple(names) for control, names in found.items()}
