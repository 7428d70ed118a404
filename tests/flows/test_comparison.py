"""Studies side by side: what stands in the report, what it does not claim, and what cannot be compared."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from boundary.parts import parts_of
from boundary.plan import StudyPlan, parse_plan, to_json
from boundary.robustness import RolledBack
from compliance.records import GlobalMetrics, RoundRecord, Traffic
from flows.comparison.compare import HTML, compare
from flows.comparison.figure import draw, png
from flows.comparison.page import html, markdown
from flows.comparison.rows import Compared, NotComparable, cautions, check_comparable, differences, verdict
from flows.personalisation import Compared as OfHospitals
from flows.personalisation import Personalised
from flows.publication import begin_study
from flows.records import Measurement, ModelStart
from flows.store.studies import Study
from infra import golden
from infra.driving import PARAMETERS, one_round, run, work_of
from infra.federation import SimulatedFederation, make_federation

Make = Callable[..., RoundRecord]
SILOS = golden.plan().silos


def plan_with(**changes: dict[str, object]) -> StudyPlan:
    value = json.loads(to_json(golden.plan()))
    for section, changed in changes.items():
        value[section] = value[section] | changed
    return parse_plan(value)


def metrics(auroc: float, of: int = 100) -> GlobalMetrics:
    cells = ((of // 2, 0), (0, of - of // 2))
    return GlobalMetrics(count=of, loss=0.3, accuracy=0.9, auroc=auroc, balanced_accuracy=0.9, confusion=cells)


@pytest.fixture
def study_of(round_record: Make) -> Callable[..., Compared]:
    def made(label: str, *scores: float, plan: StudyPlan | None = None) -> Compared:
        start = ModelStart.model_validate({"manifest": {"tensors": []}, "initial": round_record(1).model_out})
        moved = {"h1": Traffic(up=2_000_000, down=1_000_000)}
        records = tuple(
            round_record(number, SILOS, metrics=metrics(score), traffic=moved) for number, score in enumerate(scores, 1)
        )
        published = round_record(1).committed_at
        name, chosen = label.partition("@")[0], plan or golden.plan()
        chosen = chosen.model_copy(update={"name": name})
        study = Study(f"{name}-0", label, chosen, "", start, None, None, "finished", None, None, published)
        return Compared(study, records, ())

    return made


class Page(HTMLParser):
    """Text of an HTML file, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.said, self.wanted = "", list[str]()
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.said += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - its interface
        self.wanted += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_whether_it_is_worth_it_for_hospitals_stands_beside_the_results(study_of: Callable[..., Compared]) -> None:
    first, second = study_of("a@1", 0.8), study_of("b@1", 0.9)
    assert "worth it" not in markdown([first, second])
    pair = OfHospitals(one="federated", other="local", better=3, same=1, worse=1, difference=0.0214)
    cohort = first.records[0].train
    found = Personalised(figure="AUROC", compared=(pair,), decision=cohort, survivors="sha256:" + "a" * 64)
    text = markdown([first, replace(second, study=replace(second.study, personalised=found))])
    assert "| b@1 | the federated model | what each would have trained alone | 3 | 1 | 1 | +0.0214 |" in text
    assert "| a@1 | the federated model" not in text


def test_a_round_that_was_rolled_back_last_is_not_called_unmeasured(study_of: Callable[..., Compared]) -> None:
    one, other = study_of("a@1", 0.8, 0.9), study_of("b@1", 0.8, 0.9)
    last = one.records[-1]
    back = last.model_copy(update={"metrics": None, "rolled_back": RolledBack.VOTED_DOWN, "tried": last.model_out})
    assert not any("not measured" in said for said in cautions([replace(one, records=(one.records[0], back)), other]))
    missed = last.model_copy(update={"metrics": None})
    assert any("not measured" in said for said in cautions([replace(one, records=(one.records[0], missed)), other]))


def test_the_page_has_each_study_by_round_and_loads_nothing(study_of: Callable[..., Compared]) -> None:
    prox = plan_with(training={"proximal": 0.01})
    both = [study_of("plain@1", 0.70, 0.80), study_of("prox@1", 0.75, 0.85, plan=prox)]
    check_comparable(both)
    page = Page(html(both, png(draw(both))))
    assert [address[:22] for address in page.wanted] == ["data:image/png;base64,"]
    for said in (page.said, markdown(both)):
        assert "prox@1 has the highest AUROC after its last measured round, 0.850" in said
        assert "The intervals of plain@1 overlap with it" in said
        assert re.search(r"0\.850 \(0\.7\d\d to 0\.9\d\d\)", said)
        assert "pull 0.01 (FedProx)" in said
        assert "2.0 MB" in said
    assert ("training.proximal", ("0.25", "0.01")) in differences(both)
    assert all(not key.startswith(("purpose", "name", "revision")) for key, _ in differences(both))


def test_no_study_is_called_better_within_its_interval(study_of: Callable[..., Compared]) -> None:
    near, far = study_of("near@1", 0.80), study_of("far@1", 0.40)
    assert "these figures alone do not say" in verdict([near, study_of("next@1", 0.82)])
    assert "its interval lies above all others" in verdict([near, far])


def test_external_results_stand_beside_the_internal_ones(study_of: Callable[..., Compared]) -> None:
    one = study_of("one@1", 0.9)
    record = one.records[0]
    outside = Measurement(
        study="s-00000000", round=1, phase="validate", model=record.model_out.digest, decision=record.train,
        survivors=record.transcript, metrics=metrics(0.7), taken_at=record.committed_at,
    )  # fmt: skip
    both = [replace(one, external=(outside,)), study_of("two@1", 0.9)]
    assert "AUROC, external" in markdown(both)
    assert "0.700 (" in markdown(both)
    assert len(draw(both).axes[0].lines) == 3


def test_what_speaks_against_the_comparison_is_said(study_of: Callable[..., Compared], round_record: Make) -> None:
    full, short = study_of("full@1", 0.8), study_of("short@1", 0.8)
    absent = round_record(1, SILOS, metrics=metrics(0.8, of=60), absent={"h3": "LATE"})
    unmeasured = round_record(2, SILOS, metrics=None, evaluate=None)
    said = " ".join(cautions([full, replace(short, records=(absent, unmeasured))]))
    for expected in ("different images: full@1 on 100", "some hospital: short@1 1", "an earlier one is shown: short@1"):
        assert expected in said


def test_what_cannot_be_compared_is_refused(study_of: Callable[..., Compared], round_record: Make) -> None:
    one = study_of("one@1", 0.8)
    other = plan_with(labels={"classes": ["a", "b", "c"]})
    for wrong, why in (
        ([one], "two studies or more"),
        ([one, one], "each once"),
        ([one, study_of("two@1", 0.8, plan=other)], "different classes"),
        ([one, replace(one, study=replace(one.study, label="two@1"), records=())], "two@1 was measured"),
    ):
        with pytest.raises(NotComparable, match=why):
            check_comparable(wrong)


def test_text_of_a_plan_cannot_become_markup(study_of: Callable[..., Compared]) -> None:
    sly = plan_with(dataset={"modalities": ["CT"]}, labels={"column": "<script>x</script>"})
    both = [study_of("one@1", 0.8), study_of("two@1", 0.8, plan=sly)]
    assert "<script" not in html(both, b"")
    assert "&lt;script&gt;" in html(both, b"")


def test_two_studies_of_one_coordinator_are_read_from_its_store(tmp_path: Path) -> None:
    works = {f"h{number}": work_of(number) for number in (1, 2, 3)}
    first = make_federation(tmp_path / "home", works, parameters=PARAMETERS, rounds=1, name="first")
    other = parse_plan(json.loads(to_json(first.plan)) | {"name": "other"})
    weights = np.ones(PARAMETERS, np.float32)  # so that it ends elsewhere: a model is measured in one study only
    published = begin_study(first.coordinator, other, weights, parts_of(other.model, first.study.model.manifest))
    second = SimulatedFederation(first.coordinator, first.hospitals, other, published)
    for federation in (first, second):
        run(federation, one_round)
    report = compare(first.coordinator, ["first@1", "other@1"])
    report.write(tmp_path / "report")
    assert "first@1 against other@1" in (tmp_path / "report" / HTML).read_text("utf-8")
    assert [one.points[-1].value for one in report.studies] == [1.0, 1.0]
    first.close()
