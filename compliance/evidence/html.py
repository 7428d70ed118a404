"""The report as one HTML file that loads nothing: MLflow shows it in a sandboxed frame in which links go nowhere.

The one script makes the list of contents clickable; a content security policy allows exactly that script and this style
sheet by their hashes, and nothing from anywhere. Without scripts all of it can be read.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from compliance.evidence.drawing import svg
from compliance.evidence.figures import draw
from compliance.evidence.opening import LOUD
from compliance.evidence.tables import Cell, Figure, Section, Table, moment
from compliance.evidence.verdicts import Verdict

MOST_ROWS = 400  # of a table; all are in report.json
IN_ORDER = ("FAIL", "NOT-MEASURED", "NEEDS-HUMAN", "PASS", "N/A")
_WORDS = frozenset(verdict.value for verdict in Verdict)
_DIGEST = "sha256:"
_KEPT = len(_DIGEST) + 16  # of a digest in a table
_SHORT = 22  # characters that need not be wrapped


@cache
def _part(name: str) -> str:
    return files("compliance.evidence").joinpath(name).read_text("utf-8").strip()


def render_html(report: dict[str, Any]) -> str:
    """The whole file."""
    style, script = _part("report.css"), _part("report.js")
    allowed = f"style-src {_hashed(style)}; script-src {_hashed(script)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    title = escape(f"Evidence: {report['label']}")
    body = "\n".join((_top(report), *map(_section, report["sections"])))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _hashed(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _top(report: dict[str, Any]) -> str:
    """What somebody needs who reads for a minute."""
    said = [f"<p{_loud(sentence)}>{escape(sentence)}</p>" for sentence in report["summary"]]
    counts = "".join(f"<li><b>{report['verdicts'][word]}</b>{_verdict(word)}</li>" for word in IN_ORDER)
    contents = "".join(
        f'<li data-section="s{one["number"]}">{one["number"]} {escape(one["title"])}</li>' for one in report["sections"]
    )
    return (
        f'<header>\n<p class="quiet">Evidence report on {escape(report["label"])}, {escape(as_of(report))}</p>\n'
        f"<h1>{escape(report['title'])}</h1>\n"
        f'<div class="summary">{"".join(said)}</div>\n<ul class="counts">{counts}</ul>\n'
        f"{_table(report['open'])}\n</header>\n"
        f'<nav><h3>Contents</h3><ol class="contents">{contents}</ol></nav>'
    )


def as_of(report: dict[str, Any]) -> str:
    """To the second, for people."""
    time: str | None = report["as_of"]
    return f"as of {moment(time)}" if time else "of unknown time: no entry of the coordinator is shown"


def _section(section: Section) -> str:
    parts = [
        f'<section id="s{section["number"]}">',
        f"<h2>{section['number']} {escape(section['title'])}</h2>",
        f"<p>{escape(section['lead'])}</p>",
    ]
    parts += [f"<p{_loud(note)}>{escape(note)}</p>" for note in section["notes"]]
    if section["fields"]:
        rows = "".join(
            f'<tr><th scope="row">{escape(str(name))}</th>{_cell(value, exact=True)}</tr>'
            for name, value in section["fields"]
        )
        parts.append(f'<div class="wide"><table class="facts"><tbody>{rows}</tbody></table></div>')
    parts += map(_figure, section["figures"])
    parts += map(_table, section["tables"])
    parts += [f"<h3>{escape(title)}</h3>\n<pre>{escape(text)}</pre>" for title, text in section["texts"]]
    return "\n".join((*filter(None, parts), "</section>"))


def _loud(note: str) -> str:
    return ' class="loud"' if note.startswith(LOUD) else ""


def _figure(figure: Figure) -> str:
    drawing = draw(figure)
    if drawing is None:
        return ""
    return f"<figure><figcaption>{escape(figure['title'])}</figcaption>{svg(drawing)}</figure>"


def _table(table: Table) -> str:
    title = f"<h3>{escape(table['title'])}</h3>\n"
    if not table["rows"]:
        return title + "<p>None.</p>"
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table["columns"])
    rows = "".join(_row(row, exact=table["exact"]) for row in table["rows"][:MOST_ROWS])
    more = len(table["rows"]) - MOST_ROWS
    rest = f"<p>{more} more rows are in report.json.</p>" if more > 0 else ""
    return f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{rest}'


def _row(row: Sequence[Cell], *, exact: bool) -> str:
    return f"<tr>{''.join(_cell(value, exact=exact) for value in row)}</tr>"


def _cell(value: Cell, *, exact: bool) -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, int | float):
        return f'<td class="number">{shown(value)}</td>'
    if value in _WORDS:
        return f'<td class="short">{_verdict(value)}</td>'
    if value.startswith(_DIGEST):
        return f"<td><code>{escape(value if exact else shortened(value))}</code></td>"
    short = ' class="short"' if len(value) <= _SHORT else ""
    return f"<td{short}>{escape(value)}</td>"


def shown(value: float) -> str:
    """A number as people read it: thousands apart by a thin space."""
    return f"{value:,}".replace(",", "\u2009") if isinstance(value, int) else f"{value:g}"


def shortened(digest: str) -> str:
    return digest[:_KEPT] + "…"


def _verdict(word: str) -> str:
    name = "na" if word == "N/A" else word.lower()
    return f'<span class="verdict v-{name}">{escape(word)}</span>'
