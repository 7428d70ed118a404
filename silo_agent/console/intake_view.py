"""The intake report as a steward reads it: how many files became images of the study, and why the others did not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from silo_agent.console.charts import Chart, Row, chart
from silo_agent.intake.refusals import Refusal

_UNKNOWN = "This agent does not know the code: refused.csv in its cache folder names the files."


@dataclass(frozen=True, slots=True)
class RefusedFiles:
    """`was_meant` is whether such files count as lost to the study (`Refusal.counts_as_excluded`)."""

    code: str
    count: int
    explanation: str
    was_meant: bool


@dataclass(frozen=True, slots=True)
class IntakeView:
    """Counts for the hospital's own people; no file, no path, no patient."""

    funnel: Chart | None
    bars: Chart | None
    refused: tuple[RefusedFiles, ...]
    problems: tuple[str, ...]


def intake_view(report: Mapping[str, Any]) -> IntakeView:
    """From `report.json` of a scan, as `silo_agent.steward.dossier` gives it."""
    refused = tuple(_refused(code, count) for code, count in _most_first(report["refused"]))
    rows = [Row(one.code, one.count, f"{one.count:,}", "warning" if one.was_meant else "plain") for one in refused]
    return IntakeView(
        chart("funnel", "From files to images of this study", funnel(report, refused)),
        chart("refused", "Files that are not used, by code", rows),
        refused,
        tuple(report["problems"]),
    )


def funnel(report: Mapping[str, Any], refused: tuple[RefusedFiles, ...]) -> list[Row]:
    """Each row is a part of the one above it, the last two together are all of it."""
    meant = report["used"] + sum(one.count for one in refused if one.was_meant)
    splits = [
        (said, sum(report["images"].get(split, {}).values()), report["patients"].get(split, 0))
        for split, said in (("training", "to train on"), ("holdout", "held back"))
    ]
    return [
        Row("files found", report["files"], f"{report['files']:,}"),
        Row("meant for a study", meant, f"{meant:,}"),
        Row("used", report["used"], f"{report['used']:,}", "good"),
        *(Row(said, images, f"{images:,} ({patients:,} patients)", "good") for said, images, patients in splits),
    ]


def _most_first(refused: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(refused.items(), key=lambda one: (-one[1], one[0]))


def _refused(code: str, count: int) -> RefusedFiles:
    try:
        known = Refusal(code)
    except ValueError:
        return RefusedFiles(code, count, _UNKNOWN, was_meant=True)
    return RefusedFiles(code, count, known.explanation, known.counts_as_excluded)
