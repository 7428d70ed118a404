"""Section 9 of a segmentation: Dice by class and round, and nothing of few images."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance.evidence.html import render_html
from compliance.evidence.pdf import render_pdf
from compliance.evidence.report import build
from compliance.evidence.suppression import reported_dice
from compliance.records import ClassDice, SegmentationMetrics
from infra.golden import segmentation_plan
from tests.compliance.made_study import made_bundle

SHARES = st.floats(0, 1)


def of(number: int, *, tumours: int) -> SegmentationMetrics:
    classes = (
        ClassDice(name="liver", images=412, mean=0.8 + number / 100, pooled=0.9),
        ClassDice(name="tumour", images=tumours, mean=0.5, pooled=0.6),
    )
    return SegmentationMetrics(count=412, loss=0.2, dice=0.65 + number / 200, classes=classes)


def section(*, tumours: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of a study whose model was one of segmentation, and its section 9."""
    bundle = made_bundle()
    records = tuple(
        one.model_copy(update={"metrics": of(one.round, tumours=tumours)}) for one in bundle.rounds
    )  # fmt: skip
    masks = segmentation_plan()
    plan = bundle.plan.model_copy(
        update={name: getattr(masks, name) for name in ("task", "labels", "dataset", "preprocessing", "model")}
    )
    found = build(replace(bundle, rounds=records, plan=plan))
    return found, next(one for one in found["sections"] if one["number"] == 9)


def test_dice_is_told_by_class_and_round_and_drawn() -> None:
    found, told = section(tumours=40)
    rounds, classes = told["tables"][:2]
    assert rounds["columns"] == ["round", "images", "loss", "mean Dice"]
    assert rounds["rows"][0] == [1, "up to 420", 0.2, 0.655]
    assert classes["rows"][:2] == [[1, "liver", "up to 420", 0.81, 0.9], [1, "tumour", "up to 40", 0.5, 0.6]]
    assert [one["kind"] for one in told["figures"]] == ["dice", "loss"]
    html = render_html(found)
    assert "Dice over the held-back patients" in html
    assert "AUROC over" not in html
    assert render_pdf(found).startswith(b"%PDF")


def test_a_class_that_few_images_show_has_no_dice_nor_has_the_mean_it_is_in() -> None:
    _, told = section(tumours=4)
    assert told["tables"][0]["rows"][0] == [1, "up to 420", 0.2, None]
    assert told["tables"][1]["rows"][1] == [1, "tumour", "fewer than 10", None, None]
    assert told["figures"][0]["data"]["points"] == []
    assert "fewer than ten" in told["lead"]


@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 60), SHARES), min_size=1, max_size=4))
def test_no_dice_of_fewer_than_ten_images_is_told(count: int, shown: list[tuple[int, float]]) -> None:
    classes = tuple(
        ClassDice(name=str(at), images=images, mean=share if images else None, pooled=share if images else None)
        for at, (images, share) in enumerate(shown)
    )
    said = reported_dice(SegmentationMetrics(count=count, loss=0.5, dice=0.5, classes=classes))
    if count < 10:
        assert (said.count, said.loss, said.dice, said.classes) == ("fewer than 10", None, None, ())
        return
    for (_, images, mean, pooled), one in zip(said.classes, classes, strict=True):
        if one.images >= 10:
            assert (mean, pooled) == (pytest.approx(one.mean, abs=5e-4), pytest.approx(one.pooled, abs=5e-4))
        else:
            assert (mean, pooled) == (None, None)
            assert images in {"none", "fewer than 10"}
    assert (said.dice is None) == any(0 < one.images < 10 for one in classes)
