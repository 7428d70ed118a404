"""The report as a PDF of the same content, for printing and filing. reportlab is imported late: few need it.

`invariant` leaves out the time and the random identifier, so the same report gives the same bytes with the same
reportlab. The standard fonts are used; what they lack is written as U+ and its number.
"""

import io
from collections.abc import Sequence
from html import escape
from typing import Any, assert_never

from compliance.evidence.drawing import Box, Dot, Drawing, Line, Shape, Word
from compliance.evidence.figures import draw
from compliance.evidence.html import IN_ORDER, MOST_ROWS, as_of, shortened, shown
from compliance.evidence.tables import Cell, Section, Table

_MARGIN = 42.0  # points
_WIDTH = 842.0 - 2 * _MARGIN  # A4, lying
_LEAST = 34.0  # points for a column
_SCALE = 0.75  # points of a pixel
_BREAK_AFTER = 24  # characters of one word


def render_pdf(report: dict[str, Any]) -> bytes:
    """The whole file."""
    from reportlab.lib.pagesizes import A4, landscape
    from reportlab.platypus import SimpleDocTemplate

    out = io.BytesIO()
    document = SimpleDocTemplate(
        out,
        pagesize=landscape(A4),
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        title=_latin(f"Evidence: {report['label']}"),
        author="wardround",
        invariant=1,
    )
    label = _latin(f"{report['label']}, {as_of(report)}. {report['statement']}")

    def foot(canvas: Any, _document: Any) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(_MARGIN, 24, label)
        canvas.drawRightString(842 - _MARGIN, 24, f"page {canvas.getPageNumber()}")

    story = _Story()
    story.top(report)
    for section in report["sections"]:
        story.section(section)
    document.build(story.parts, onFirstPage=foot, onLaterPages=foot)
    return out.getvalue()


class _Story:
    """The parts of the document in order."""

    def __init__(self) -> None:
        from reportlab.lib.styles import ParagraphStyle

        plain = ParagraphStyle("plain", fontName="Helvetica", fontSize=9, leading=12.5, spaceAfter=3)
        self._styles = {
            "plain": plain,
            "title": ParagraphStyle("title", plain, fontName="Helvetica-Bold", fontSize=17, leading=21, spaceAfter=6),
            "bold": ParagraphStyle("bold", plain, fontName="Helvetica-Bold", fontSize=11, leading=15),
            "head": ParagraphStyle(
                "head", plain, fontName="Helvetica-Bold", fontSize=13, leading=17, spaceBefore=14, keepWithNext=1
            ),
            "small": ParagraphStyle("small", plain, fontName="Helvetica-Bold", spaceBefore=8, keepWithNext=1),
            "cell": ParagraphStyle("cell", plain, fontSize=7, leading=8.8, spaceAfter=0),
            "column": ParagraphStyle("column", plain, fontName="Helvetica-Bold", fontSize=7, leading=8.8, spaceAfter=0),
            "code": ParagraphStyle("code", plain, fontName="Courier", fontSize=7.5, leading=10, spaceAfter=0),
        }
        self.parts: list[Any] = []

    def say(self, text: str, style: str = "plain") -> None:
        self.parts.append(self._paragraph(text, style))

    def _paragraph(self, text: str, style: str) -> Any:
        from reportlab.platypus import Paragraph

        return Paragraph(escape(_latin(text)), self._styles[style])

    def top(self, report: dict[str, Any]) -> None:
        self.say(f"Evidence report on {report['label']}, {as_of(report)}")
        self.say(report["title"], "title")
        for index, sentence in enumerate(report["summary"]):
            self.say(sentence, "plain" if index else "bold")
        self.say(", ".join(f"{report['verdicts'][word]} {word}" for word in IN_ORDER), "bold")
        self._table(report["open"])

    def section(self, section: Section) -> None:
        self.say(f"{section['number']} {section['title']}", "head")
        self.say(section["lead"])
        for note in section["notes"]:
            self.say(note)
        if section["fields"]:
            self._grid(section["fields"], [170.0, _WIDTH - 170.0], exact=True)
        for figure in section["figures"]:
            drawing = draw(figure)
            if drawing is not None:
                self.say(figure["title"], "small")
                self.parts.append(_picture(drawing))
        for table in section["tables"]:
            self._table(table)
        for title, text in section["texts"]:
            self.say(title, "small")
            for line in text.splitlines():
                self.say(line or " ", "code")

    def _table(self, table: Table) -> None:
        self.say(table["title"], "small")
        rows = table["rows"][:MOST_ROWS]
        if not rows:
            self.say("None.")
            return
        exact = table["exact"]
        widths = _widths(table["columns"], [[_text(cell, exact=exact) for cell in row] for row in rows])
        self._grid(rows, widths, exact=exact, head=table["columns"])
        if len(table["rows"]) > MOST_ROWS:
            self.say(f"{len(table['rows']) - MOST_ROWS} more rows are in report.json.")

    def _grid(
        self, rows: Sequence[Sequence[Cell]], widths: list[float], *, exact: bool, head: Sequence[str] = ()
    ) -> None:
        from reportlab.lib.colors import HexColor
        from reportlab.platypus import Table as Grid

        cells = [
            [self._paragraph(_text(cell, exact=exact), "column" if cell in IN_ORDER else "cell") for cell in row]
            for row in rows
        ]
        if head:
            cells.insert(0, [self._paragraph(name, "column") for name in head])
        style: list[tuple[Any, ...]] = [
            ("GRID", (0, 0), (-1, -1), 0.4, HexColor("#999999")),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LEFTPADDING", (0, 0), (-1, -1), 3),
            ("RIGHTPADDING", (0, 0), (-1, -1), 3),
            ("TOPPADDING", (0, 0), (-1, -1), 1.5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
        ]
        if head:
            style.append(("BACKGROUND", (0, 0), (-1, 0), HexColor("#eeeeee")))
        self.parts.append(Grid(cells, colWidths=widths, repeatRows=1 if head else 0, style=style))


def _text(cell: Cell, *, exact: bool) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int | float):
        return shown(cell).replace("\u2009", " ")
    text = shortened(cell) if cell.startswith("sha256:") and not exact else cell
    return " ".join(_broken(word) for word in text.split(" "))


def _broken(word: str) -> str:
    """A space into words longer than a narrow column."""
    if len(word) <= _BREAK_AFTER:
        return word
    return " ".join(word[at : at + _BREAK_AFTER] for at in range(0, len(word), _BREAK_AFTER))


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[float]:
    """By the square root of how much is in each column: much text gets more room, little is not squeezed."""
    amounts = [max(len(name), *(len(row[index]) for row in rows)) ** 0.5 for index, name in enumerate(columns)]
    free = _WIDTH - _LEAST * len(columns)
    return [_LEAST + free * amount / sum(amounts) for amount in amounts]


def _picture(drawing: Drawing) -> Any:
    from reportlab.graphics.shapes import Drawing as Picture

    picture = Picture(drawing.width * _SCALE, drawing.height * _SCALE)
    picture.scale(_SCALE, _SCALE)
    for shape in drawing.shapes:
        picture.add(_drawn(shape, drawing.height))
    return picture


def _drawn(shape: Shape, height: float) -> Any:
    """Origin at the bottom left here."""
    from reportlab.graphics.shapes import Circle, PolyLine, Rect, String
    from reportlab.lib.colors import HexColor

    match shape:
        case Line():
            points = [coordinate for x, y in shape.points for coordinate in (x, height - y)]
            dash = list(shape.dash) or None
            return PolyLine(points, strokeColor=HexColor(shape.colour), strokeWidth=shape.width, strokeDashArray=dash)
        case Box():
            colours = {"fillColor": HexColor(shape.fill), "strokeColor": HexColor(shape.stroke)}
            return Rect(shape.x, height - shape.y - shape.height, shape.width, shape.height, **colours)
        case Dot():
            fill = HexColor(shape.colour if shape.is_filled else "#ffffff")
            return Circle(shape.x, height - shape.y, shape.radius, fillColor=fill, strokeColor=HexColor(shape.colour))
        case Word():
            font = "Helvetica-Bold" if shape.is_bold else "Helvetica"
            looks = {"fontName": font, "fontSize": shape.size, "fillColor": HexColor(shape.colour)}
            return String(shape.x, height - shape.y, _latin(shape.text), textAnchor=shape.anchor, **looks)
        case _:
            assert_never(shape)


def _latin(text: str) -> str:
    """What the standard fonts can show, which is Windows-1252."""
    return "".join(char if _is_shown(char) else f"[U+{ord(char):04X}]" for char in text)


def _is_shown(char: str) -> bool:
    try:
        char.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True
