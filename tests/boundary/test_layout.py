"""Where things lie in the one vector a hospital reports, and how many bytes that is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.errors import CallerFault
from boundary.layout import COMPARED, OUTCOMES, Section, VectorLayout, layout_for, section_of
from boundary.messages import PHASES, Phase


def test_training_reports_four_numbers_and_then_the_weights() -> None:
    layout = layout_for("train", parameters=10, metrics=4)
    assert [section.name for section in layout.sections] == ["loss_sum", "images", "weight", "clipped"]
    assert (layout.numbers, layout.weights) == (4, 10)
    assert layout.where("loss_sum") == slice(0, 1)
    assert layout.where("clipped") == slice(3, 4)


def test_training_with_a_guarantee_reports_neither_loss_nor_images_but_bands() -> None:
    """No noise covers a loss, or a count of images: what is not in the vector cannot leave."""
    layout = layout_for("train", parameters=10, metrics=4, bands=4)
    found = [(section.name, section.size) for section in layout.sections]
    assert found == [("weight", 1), ("clipped", 1), ("bands", 4)]
    assert (layout.where("bands"), layout.numbers, layout.weights) == (slice(2, 6), 6, 10)


@pytest.mark.parametrize("phase", ["statistics", "evaluate", "personalise"])
def test_bands_are_told_with_a_training_only(phase: Phase) -> None:
    assert layout_for(phase, parameters=10, metrics=4, bands=4) == layout_for(phase, parameters=10, metrics=4)


def test_evaluation_reports_metrics_only() -> None:
    layout = layout_for("evaluate", parameters=10, metrics=4)
    assert [(section.name, section.size) for section in layout.sections] == [("metrics", 4)]
    assert layout.weights == 0


def test_statistics_are_counts_and_two_sums_of_intensities() -> None:
    layout = layout_for("statistics", parameters=10, metrics=3)
    found = [(section.name, section.size) for section in layout.sections]
    assert found == [("images", 1), ("intensity", 1), ("squares", 1), ("labels", 3)]
    assert layout.where("labels") == slice(3, 6)
    assert layout.weights == 0


def test_personalising_reports_an_outcome_for_each_pair_and_no_figure_of_any_model() -> None:
    layout = layout_for("personalise", parameters=10, metrics=3, bands=4, steps=True, clipping=True, vote=True)
    found = [(section.name, section.size) for section in layout.sections]
    assert found == [("federated_local", 4), ("personal_local", 4), ("personal_federated", 4)]
    assert (layout.where(section_of(COMPARED[1])), layout.weights) == (slice(4, 8), 0)
    assert len(OUTCOMES) == 4


def test_a_section_that_is_not_there_is_our_own_fault() -> None:
    with pytest.raises(CallerFault, match="no section 'weight'"):
        layout_for("evaluate", parameters=10, metrics=4).where("weight")


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(AssertionError):
        layout_for("export", parameters=10, metrics=4)  # type: ignore[arg-type]


SIZES: dict[str, tuple[Phase, int, int, int, int]] = {
    "training, plain": ("train", 0, 0, 4 * 8, 10 * 4),
    "training, masked in the ring of 32 bits": ("train", 0, 32, 4 * 8, 10 * 4),
    "training, masked in the ring of 16 bits": ("train", 0, 16, 4 * 8, 10 * 2),
    "training with a guarantee, plain": ("train", 4, 0, 6 * 8, 10 * 4),
    "training with a guarantee, masked in the ring of 16 bits": ("train", 4, 16, 6 * 8, 10 * 2),
    "statistics, plain": ("statistics", 0, 0, 10 * 8, 0),
    "evaluation, plain": ("evaluate", 0, 0, 7 * 8, 0),
    "evaluation, masked in the ring of 32 bits": ("evaluate", 0, 32, 7 * 8, 0),
    "evaluation, masked in the ring of 16 bits": ("evaluate", 0, 16, 7 * 8, 0),
}


@pytest.mark.parametrize(("phase", "bands", "ring", "numbers", "weights"), SIZES.values(), ids=SIZES)
def test_the_size_is_known_before_a_byte_arrives(
    phase: Phase, bands: int, ring: int, numbers: int, weights: int
) -> None:
    layout = layout_for(phase, parameters=10, metrics=7, bands=bands)
    assert layout.numbers_bytes == numbers
    assert (layout.masked_bytes(ring) if ring else layout.plain_bytes) == numbers + weights


@given(st.sampled_from(PHASES), st.integers(1, 500), st.integers(1, 50), st.integers(0, 9), st.sampled_from([16, 32]))
def test_the_sizes_are_those_of_the_arrays(phase: Phase, parameters: int, metrics: int, bands: int, ring: int) -> None:
    layout = layout_for(phase, parameters=parameters, metrics=metrics, bands=bands)
    numbers, weights = np.zeros(layout.numbers, "<f8"), np.zeros(layout.weights, "<f4")
    assert layout.plain_bytes == len(numbers.tobytes() + weights.tobytes())
    words = np.zeros(layout.weights, f"<u{ring // 8}")
    assert layout.masked_bytes(ring) == len(numbers.view("<u8").tobytes() + words.tobytes())


LAYOUTS: dict[str, dict[str, object]] = {
    "an empty section": {"sections": [{"name": "images", "size": 0}]},
    "bool where int is due": {"sections": [{"name": "images", "size": True}]},
    "float where int is due": {"sections": [{"name": "images", "size": 1.0}]},
    "one name twice": {"sections": [{"name": "images", "size": 1}, {"name": "images", "size": 1}]},
    "fewer weights than none": {"weights": -1},
    "half a weight": {"weights": 0.5},
    "true for one weight": {"weights": True},
    "an unknown key": {"size": 4},
}


@pytest.mark.parametrize("wrong", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    sound = {"sections": [{"name": "images", "size": 1}], "weights": 3}
    VectorLayout.model_validate(sound)
    with pytest.raises(ValidationError):
        VectorLayout.model_validate(sound | wrong)


@given(st.lists(st.integers(1, 50), max_size=6), st.integers(0, 9))
def test_sections_lie_side_by_side(sizes: list[int], weights: int) -> None:
    sections = tuple(Section(name=f"s{at}", size=size) for at, size in enumerate(sizes))
    layout = VectorLayout(sections=sections, weights=weights)
    covered = [at for section in layout.sections for at in range(*layout.where(section.name).indices(layout.numbers))]
    assert covered == list(range(layout.numbers))
    assert VectorLayout.model_validate(layout.model_dump(mode="json")) == layout
