"""HTML, PDF, FHIR and the Art. 30 draft: all of the report, nothing from anywhere else, and no text becomes markup."""

import hashlib
import re
import uuid
from base64 import b64encode
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance import events as say
from compliance.evidence.drawing import Drawing, Line, apart, svg
from compliance.evidence.fhir import BALP_CREATE, audit_events
from compliance.evidence.figures import draw
from compliance.evidence.html import MOST_ROWS, render_html, shown
from compliance.evidence.pdf import render_pdf
from compliance.evidence.processing_record import HUMAN, processing_record
from compliance.evidence.report import build
from compliance.evidence.tables import Figure, figure
from compliance.merkle import leaf_hash
from tests.compliance.made_study import SILOS, made_bundle, made_plan, plain_plan

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"two\" 'one' 造影"
as_it_is = cache(made_bundle)


@cache
def page() -> str:
    return render_html(build(as_it_is()))


class Reader(HTMLParser):
    """Tags, attributes, and that every tag is closed by its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in {"meta", "polyline", "rect", "circle"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"polyline", "rect", "circle"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_loads_nothing() -> None:
    found = read(page())
    assert found.tags.count("script") == found.tags.count("style") == 1
    assert not {"a", "img", "link", "iframe", "object", "form", "base"} & set(found.tags)
    assert not {"href", "src", "style", "srcset", "action"} & {name for _, name, _ in found.attributes}
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert "url(" not in page()
    assert "@import" not in page()


def test_the_policy_allows_exactly_the_script_and_the_style_that_are_there() -> None:
    policy = re.search(r'content="(default-src[^"]+)"', page())
    assert policy is not None
    for tag in ("style", "script"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", page(), re.DOTALL)
        assert inner is not None
        digest = b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; ")


def test_all_of_the_contents_is_there_without_scripts() -> None:
    text = " ".join(read(page()).text)
    for one in build(as_it_is())["sections"]:
        assert f"{one['number']} {one['title']}" in text
        for table in one["tables"]:
            assert table["title"] in text


def test_text_of_a_plan_never_becomes_markup() -> None:
    report = build(made_bundle(made_plan(title=HOSTILE)))
    found = read(render_html(report))
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert HOSTILE in " ".join(found.text)
    assert render_pdf(report).startswith(b"%PDF-1.")


def test_a_long_table_is_cut_and_says_so() -> None:
    report = build(as_it_is())
    report["sections"] = report["sections"][7:8]
    report["sections"][0]["tables"][1]["rows"] *= 12
    more = len(report["sections"][0]["tables"][1]["rows"]) - MOST_ROWS
    assert f"<p>{more} more rows are in report.json.</p>" in render_html(report)
    assert render_pdf(report)


def test_an_empty_bundle_can_be_shown() -> None:
    report = build(made_bundle(logs={}, approvals={}, receipts={}, rounds=()))
    assert "of unknown time" in render_html(report)
    assert render_pdf(report)


def test_the_pdf_has_no_time_and_no_random_identifier() -> None:
    data = render_pdf(build(as_it_is()))
    assert b"20260" not in data.replace(b"2026-11-20", b"")


def test_numbers_are_shown_for_people() -> None:
    assert [shown(value) for value in (28412928, 0.5, 8.0, 640)] == ["28\u2009412\u2009928", "0.5", "8", "640"]


# --- figures -----------------------------------------------------------------------------------------
def lines(count: int, cap: float | None = 8.0) -> Figure:
    return figure(
        "epsilon",
        "e",
        cap=cap,
        lines=[{"name": f"silo-{at:02}", "points": [[1, 0.5 + at / 100], [2, 1.0 + at / 100]]} for at in range(count)],
    )


def matrix(hospitals: int, rounds: int) -> Figure:
    rows = [{"name": f"silo-{at:02}", "cells": ["absent"] * rounds} for at in range(hospitals)]
    return figure("cohort", "c", rounds=list(range(1, rounds + 1)), rows=rows)


FIGURES = {
    "epsilon of one": lines(1),
    "epsilon of many": lines(40),
    "epsilon without a cap": lines(3, None),
    "epsilon of a single round": figure("epsilon", "e", cap=None, lines=[{"name": "ucl", "points": [[4, 2.5]]}]),
    "a small matrix": matrix(3, 2),
    "many hospitals": matrix(90, 4),
    "many rounds": matrix(3, 300),
    "a matrix of a sample": figure(
        "cohort", "c", rounds=[1, 2], rows=[{"name": "ucl", "cells": ["not drawn", "contributed"]}]
    ),
    "many bytes": figure("bytes", "b", bars=[[f"silo-{at}", 10**at] for at in range(1, 12)]),
    "many bars": figure("bytes", "b", bars=[[f"silo-{at:02}", 500 + at] for at in range(60)]),
    "auroc below a coin": figure("auroc", "a", points=[[1, 0.31], [2, 0.44]]),
    "a hundred rounds": figure("loss", "l", points=[[at, 1 / at] for at in range(1, 101)]),
    "a loss of nothing": figure("loss", "l", points=[[1, 0.0]]),
}  # fmt: skip
EMPTY = {
    "no epsilon": figure("epsilon", "e", cap=1.0, lines=[]),
    "no rounds": figure("cohort", "c", rounds=[], rows=[{"name": "ucl", "cells": []}]),
    "no hospitals": figure("cohort", "c", rounds=[1], rows=[]),
    "no bytes": figure("bytes", "b", bars=[["ucl", 0]]),
    "no bars": figure("bytes", "b", bars=[]),
    "no metrics": figure("auroc", "a", points=[]),
    "no loss": figure("loss", "l", points=[]),
}


def texts(drawing: Drawing) -> list[tuple[float, float, float, float]]:
    """The box of each text, about."""
    found = []
    for match in re.finditer(
        r'<text x="([\d.-]+)" y="([\d.-]+)" font-size="([\d.]+)" text-anchor="(\w+)"[^>]*>([^<]*)<', svg(drawing)
    ):
        x, y, size = float(match[1]), float(match[2]), float(match[3])
        width = len(match[5]) * size * 0.5
        left = x - {"start": 0, "middle": width / 2, "end": width}[match[4]]
        found.append((left, y - size * 0.7, left + width, y))
    return found


@pytest.mark.parametrize("made", FIGURES.values(), ids=FIGURES)
def test_a_figure_stays_within_its_frame_and_no_text_covers_another(made: Figure) -> None:
    drawing = draw(made)
    assert drawing is not None
    boxes = texts(drawing)
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= drawing.width + 2
        assert bottom <= drawing.height
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart_by = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart_by, (one, other)
    read(svg(drawing))


@pytest.mark.parametrize("made", EMPTY.values(), ids=EMPTY)
def test_nothing_is_drawn_of_nothing(made: Figure) -> None:
    assert draw(made) is None


def test_lines_differ_by_more_than_colour() -> None:
    drawing = draw(lines(8))
    assert drawing is not None
    drawn = [shape for shape in drawing.shapes if isinstance(shape, Line) and shape.width == 1.8]
    assert len({shape.dash for shape in drawn}) == len(drawn) == 8


@given(st.lists(st.floats(20, 200), min_size=1, max_size=8))
def test_labels_keep_their_order_and_distance(wanted: list[float]) -> None:
    placed = apart(wanted, 13, 14, 220)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    for before, after in pairwise(order):
        assert placed[after] - placed[before] >= 13 - 1e-9
    assert max(placed) <= 220


# --- FHIR --------------------------------------------------------------------------------------------
def resources() -> list[dict[str, Any]]:
    bundle = audit_events(as_it_is())
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "collection")
    assert all(one["fullUrl"] == f"urn:uuid:{one['resource']['id']}" for one in bundle["entry"])
    return [one["resource"] for one in bundle["entry"]]


def test_every_audit_event_has_what_r4_requires() -> None:
    """http://hl7.org/fhir/R4/auditevent.html: type, recorded, agent.requestor and source.observer are 1..1."""
    instant = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
    found = resources()
    assert len(found) > 200
    for one in found:
        assert one["resourceType"] == "AuditEvent"
        assert set(one["type"]) == {"system", "code", "display"}
        assert instant.fullmatch(one["recorded"])
        assert one["action"] in set("CRUDE")
        assert one["outcome"] in {"0", "4", "8", "12"}
        assert one["agent"]
        assert all(isinstance(agent["requestor"], bool) and agent["who"] for agent in one["agent"])
        assert sum(agent["requestor"] for agent in one["agent"]) == 1
        assert one["source"]["observer"]["identifier"]["value"]
        assert all(("what" in entity) and not ({"name", "query"} <= set(entity)) for entity in one["entity"])
        assert all(detail["valueString"] for entity in one["entity"] for detail in entity.get("detail", ()))


def test_an_audit_event_leads_back_to_its_entry() -> None:
    hashes = {leaf_hash(entry).hex() for log in as_it_is().logs.values() for entry in log.entries}
    found = resources()
    assert {one["entity"][0]["what"]["identifier"]["value"] for one in found} <= hashes
    assert len({one["id"] for one in found}) == len(found)
    assert all(uuid.UUID(one["id"]).version == 5 for one in found)


def test_only_uploads_claim_a_profile_and_have_what_it_asks() -> None:
    """IHE BALP Create: rest, create, success, a client and a server with network, an entity of type 2 with a role."""
    claiming = [one for one in resources() if "meta" in one]
    sent = sum(isinstance(entry.event, say.ContributionReleased) for log in facts_logs() for entry in log.everything())
    assert len(claiming) == sent
    for one in claiming:
        assert one["meta"]["profile"] == [BALP_CREATE]
        assert (one["type"]["code"], one["action"], one["outcome"]) == ("rest", "C", "0")
        assert one["subtype"][0]["code"] == "create"
        assert [agent["type"]["coding"][0]["code"] for agent in one["agent"]] == ["110153", "110152"]
        assert all(agent["network"]["address"] for agent in one["agent"])
        assert [entity["role"]["code"] for entity in one["entity"] if entity["type"]["code"] == "2"] == ["4"]


def facts_logs() -> Any:
    from compliance.evidence.facts import facts_of

    return facts_of(as_it_is()).logs


def test_refusals_are_told_as_failures() -> None:
    refused = [one for one in resources() if one["subtype"][0]["code"] == "work-refused"]
    assert [one["outcome"] for one in refused] == ["4"]


# --- Art. 30 -----------------------------------------------------------------------------------------
def test_the_record_has_every_letter_of_both_paragraphs() -> None:
    text = processing_record(made_plan())
    controller, processor = text.split("## As processor")
    assert [letter for letter in "abcdefg" if f"**({letter})" in controller] == list("abcdefg")
    assert [letter for letter in "abcd" if f"**({letter})" in processor] == list("abcd")
    assert text.count(HUMAN) > 10
    assert all(silo in text for silo in SILOS)
    assert "no noise per patient" in processing_record(plain_plan())


def test_the_records_plan_text_is_one_line_without_markup() -> None:
    text = processing_record(made_plan(title="# A *title* [link](http://x) <b>"))
    assert "**(b) Purposes**: \\# A \\*title\\* \\[link\\]\\(http://x\\) \\<b\\>. Find out" in text
