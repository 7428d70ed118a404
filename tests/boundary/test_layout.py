"""Where things lie in the one vector a hospital reports."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.errors import CallerFault
from boundary.layout import Section, VectorLayout, layout_for


def test_training_reports_delta_loss_images_weight() -> None:
    layout = layout_for("train", parameters=10, metrics=4)
    assert [section.name for section in layout.sections] == ["delta", "loss_sum", "images", "weight"]
    assert layout.size == 13
    assert layout.where("delta") == slice(0, 10)
    assert layout.where("weight") == slice(12, 13)


def test_evaluation_reports_metrics_only() -> None:
    layout = layout_for("evaluate", parameters=10, metrics=4)
    assert [(section.name, section.size) for section in layout.sections] == [("metrics", 4)]


def test_a_section_that_is_not_there_is_our_own_fault() -> None:
    with pytest.raises(CallerFault, match="no section 'delta'"):
        layout_for("evaluate", parameters=10, metrics=4).where("delta")


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(AssertionError):
        layout_for("export", parameters=10, metrics=4)  # type: ignore[arg-type]


LAYOUTS = {
    "an empty section": [{"name": "delta", "size": 0}],
    "bool where int is due": [{"name": "delta", "size": True}],
    "float where int is due": [{"name": "delta", "size": 1.0}],
    "one name twice": [{"name": "delta", "size": 1}, {"name": "delta", "size": 1}],
}


@pytest.mark.parametrize("sections", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_that_is_none_is_refused(sections: list[dict[str, object]]) -> None:
    with pytest.raises(ValidationError):
        VectorLayout.model_validate({"sections": sections})


@given(st.lists(st.integers(1, 50), max_size=6))
def test_sections_lie_side_by_side(sizes: list[int]) -> None:
    layout = VectorLayout(sections=tuple(Section(name=f"s{at}", size=size) for at, size in enumerate(sizes)))
    covered = [at for section in layout.sections for at in range(*layout.where(section.name).indices(layout.size))]
    assert covered == list(range(layout.size))
    assert VectorLayout.model_validate(layout.model_dump(mode="json")) == layout
