"""The comparison as text: tables first, then Markdown for the terminal and one HTML file that loads nothing."""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from flows import readings
from flows.comparison.rows import ABSENT, Compared, cautions, differences, final_told, interval_told, verdict
from flows.measured_pages import INDEPENDENT
from flows.pages import size
from flows.personalisation import NAMES, signed

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.lead{font-size:1.1rem}.caution{border-left:4px solid #b45309;padding:.2rem .8rem;background:#fff7ed;margin:.4rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem .3rem 0;border-bottom:1px solid #d0d7de;text-align:left;vertical-align:top}
th{font-weight:600}td.n,th.n{text-align:right;white-space:nowrap}img{max-width:100%;height:auto;margin-top:1.2rem}
.small{color:#57606a;font-size:.9rem}code{font-size:.85rem;overflow-wrap:anywhere}
"""


@dataclass(frozen=True, slots=True)
class Table:
    """`numbers` are the columns that are set to the right."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


def tables(studies: Sequence[Compared]) -> list[Table]:
    """Results, whether they are worth it, what they cost, by round, what differs, which models."""
    worth = [_worth(studies)] if any(one.study.personalised for one in studies) else []
    return [_results(studies), *worth, _costs(studies), _by_round(studies), _differences(studies), _models(studies)]


def _results(studies: Sequence[Compared]) -> Table:
    names, apart = readings.headings(studies[0].plan), any(one.external_points for one in studies)
    rows = []
    for one in studies:
        last = one.last
        figures = [said for _, said in final_told(None if last is None else last.metrics)]
        outside = one.external_points
        external = [interval_told(outside[-1].value, outside[-1].interval) if outside else ABSENT] if apart else []
        done = f"{ABSENT if last is None else last.round} of {one.plan.training.rounds}"
        rows.append((one.label, one.method, done, *figures, *external))
    head = ("study", "strategy", "round", *names, *([f"{names[0]}, external"] if apart else []))
    return Table("After the last measured round", head, tuple(rows), frozenset(range(2, len(head))))


def _worth(studies: Sequence[Compared]) -> Table:
    """At how many hospitals which model is better for their own patients: nobody but they know at which."""
    rows = tuple(
        (
            one.label, NAMES[pair.one], NAMES[pair.other], str(pair.better), str(pair.same), str(pair.worse),
            signed(pair.difference),
        )
        for one in studies
        for pair in (one.study.personalised.compared if one.study.personalised else ())
    )  # fmt: skip
    head = ("study", "", "compared with", "better", "same", "worse", "mean difference")
    return Table("Is it worth it: hospitals, by their own held-back patients", head, rows, frozenset(range(3, 7)))


def _costs(studies: Sequence[Compared]) -> Table:
    head = ("study", "sent", "received", "without some hospital", "rolled back", "not measured", "hours", "guarantee")
    rows = tuple(
        (
            one.label, size(one.up), size(one.down), str(one.partial), str(one.rolled_back), str(one.unmeasured),
            f"{one.hours:.2f}", one.privacy,
        )
        for one in studies
    )  # fmt: skip
    return Table("What it cost: bytes of one hospital in a round, rounds, hours", head, rows, frozenset(range(1, 7)))


def _by_round(studies: Sequence[Compared]) -> Table:
    name = readings.headings(studies[0].plan)[0]
    columns = [{point.round: point for point in one.points} for one in studies]
    numbers = sorted(set().union(*columns))
    rows = tuple(
        (
            str(number),
            *(interval_told(at[number].value, at[number].interval) if number in at else ABSENT for at in columns),
        )
        for number in numbers
    )
    head = ("round", *(one.label for one in studies))
    return Table(f"{name} by round, on held-back patients", head, rows, frozenset(range(len(head))))


def _differences(studies: Sequence[Compared]) -> Table:
    rows = tuple((key, *values) for key, values in differences(studies))
    return Table("What differs between the plans", ("in the plan", *(one.label for one in studies)), rows)


def _models(studies: Sequence[Compared]) -> Table:
    rows = tuple((one.label, one.records[-1].model_out.digest) for one in studies if one.records)
    return Table("Last models", ("study", "weights"), rows)


def markdown(studies: Sequence[Compared]) -> str:
    lines = [f"# {title(studies)}", "", verdict(studies), *(f"\n> {one}" for one in cautions(studies))]
    for table in tables(studies):
        marks = ["---:" if place in table.numbers else "---" for place in range(len(table.head))]
        lines += ["", f"## {table.title}", "", _row(table.head), _row(marks), *map(_row, table.rows)]
    return "\n".join([*lines, "", INDEPENDENT, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def title(studies: Sequence[Compared]) -> str:
    return f"{' against '.join(one.label for one in studies)}"


def html(studies: Sequence[Compared], figure: bytes) -> str:
    """One file; `figure` is a PNG. A content security policy allows its style sheet and that image, nothing else."""
    style = _STYLE.strip()
    allowed = f"'sha256-{b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
    policy = f"default-src 'none'; style-src {allowed}; img-src data:; base-uri 'none'; form-action 'none'"
    name, heading = readings.headings(studies[0].plan)[0], escape(title(studies))
    image = f'<img alt="{name} by round and after the last" src="data:image/png;base64,{b64encode(figure).decode()}">'
    first, *others = map(_table, tables(studies))
    said = "".join(f'<p class="caution">{escape(one)}</p>' for one in cautions(studies))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n"
        f'<p class="lead">{escape(verdict(studies))}</p>\n{said}\n{first}\n{image}\n{"".join(others)}\n'
        f'<p class="small">{escape(INDEPENDENT)}</p>\n</body>\n</html>\n'
    )


def _table(table: Table) -> str:
    if not table.rows:
        return ""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = (' class="n"' if place in table.numbers else "" for place in range(len(row)))
        return "".join(f"<{tag}{kind}>{_cell(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    head, body = cells("th", table.head), "\n".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _cell(text: str) -> str:
    return f"<code>{escape(text)}</code>" if text.startswith("sha256:") else escape(text)
