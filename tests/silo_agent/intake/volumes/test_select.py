from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from silo_agent.intake.header import Identifiers
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import Plane, Slice, Variant, Vector
from silo_agent.intake.volumes.select import SeriesRule, nearest_orientation, select
from silo_agent.intake.volumes.stacks import Stack

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)


def stack(
    series: int = 1,
    *,
    study: str = "study",
    count: int = 20,
    gap: float = 2.0,
    modality: str = "CT",
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    angle: tuple[Vector, Vector] = (X, Y),
    missing: int | None = None,
    refusal: Refusal | None = None,
) -> Stack:
    """An axial stack unless `angle` says otherwise: then the normal is along y or x."""
    a, d = angle
    normal = (a[1] * d[2] - a[2] * d[1], a[2] * d[0] - a[0] * d[2], a[0] * d[1] - a[1] * d[0])
    slices = [
        Slice(
            1000 * series + number,
            0,
            Identifiers("P1", study, f"series {series}", f"{series}.{number}"),
            modality,
            8,
            8,
            Plane((normal[0] * number * gap, normal[1] * number * gap, normal[2] * number * gap), a, d, (1, 1), ""),
            Variant(None, None, None, image_type),
            (1.0, 0.0),
        )
        for number in range(count)
        if number != missing
    ]
    return Stack(tuple(slices), refusal)


RULE = SeriesRule(
    modality="CT",
    image_type_includes=("PRIMARY",),
    image_type_excludes=("MPR",),
    smallest_slices=10,
    largest_slices=100,
    smallest_gap_mm=1.0,
    largest_gap_mm=5.0,
    orientation="axial",
)

OTHERS: dict[str, tuple[Stack, str]] = {
    "another modality": (stack(2, modality="MR"), "SERIES_NOT_SELECTED"),
    "an image type that is excluded": (
        stack(2, image_type=("ORIGINAL", "PRIMARY", "MPR")),
        "SERIES_NOT_SELECTED",
    ),
    "an image type that is missing": (stack(2, image_type=("ORIGINAL",)), "SERIES_NOT_SELECTED"),
    "a slice too few": (stack(2, count=9), "SERIES_NOT_SELECTED"),
    "a slice too many": (stack(2, count=101), "SERIES_NOT_SELECTED"),
    "slices too close": (stack(2, gap=0.9), "SERIES_NOT_SELECTED"),
    "slices too far apart": (stack(2, gap=5.1), "SERIES_NOT_SELECTED"),
    "coronal slices": (stack(2, angle=(X, Z)), "SERIES_NOT_SELECTED"),
    "a missing slice": (stack(2, missing=7), "SPACING_NONUNIFORM"),
    "a missing slice in a series that is not meant": (
        stack(2, missing=7, angle=(X, Z)),
        "SERIES_NOT_SELECTED",
    ),
    "a code from grouping": (stack(2, refusal=Refusal.DUPLICATE_POSITION), "DUPLICATE_POSITION"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_one_series_that_matches_is_used_beside_another(case: str) -> None:
    other, code = OTHERS[case]
    right = stack(1)
    for order in ([right, other], [other, right]):
        (found,) = select(order, RULE)
        assert found.used is not None
        assert found.used.slices == right.slices
        assert (found.code, found.refused) == (None, ((other, code),))
    (alone,) = select([other], RULE)
    assert (alone.used, alone.code) == (None, code)


def test_the_edges_of_the_rule_are_within_it() -> None:
    for edge in (stack(count=10), stack(count=100), stack(gap=1.0), stack(gap=5.0)):
        (found,) = select([edge], RULE)
        assert found.used is not None


def test_several_that_match_are_listed_and_none_is_used() -> None:
    (found,) = select([stack(1), stack(2), stack(3, count=5)], RULE)
    assert (found.used, found.code) == (None, Refusal.AMBIGUOUS_SERIES)
    assert [code for _, code in found.refused] == ["SERIES_NOT_SELECTED", "AMBIGUOUS_SERIES", "AMBIGUOUS_SERIES"]


def test_each_study_ends_once() -> None:
    stacks = [stack(1), stack(2, study="two"), stack(3, study="two"), stack(4, study="three", count=3), stack(5)]
    stacks[4] = replace(stacks[4], refusal=Refusal.TRUNCATED)
    found = select(stacks, RULE)
    assert [(one.study_uid, one.code) for one in found] == [
        ("study", None),
        ("two", Refusal.AMBIGUOUS_SERIES),
        ("three", Refusal.SERIES_NOT_SELECTED),
    ]
    counted = sum((one.used is not None) + len(one.refused) for one in found)
    assert counted == len(stacks)


def test_the_code_of_a_study_is_what_befell_most_slices_that_were_meant() -> None:
    stacks = [stack(1, count=80, modality="MR"), stack(2, count=30, missing=4), stack(3, refusal=Refusal.TRUNCATED)]
    (found,) = select(stacks, RULE)
    assert found.code == Refusal.SPACING_NONUNIFORM


def test_no_identifier_shows_in_a_repr() -> None:
    (found,) = select([stack(1, study="SECRET"), stack(2, study="SECRET")], RULE)
    assert "SECRET" not in repr(found)
    assert "P1" not in repr(found)


@pytest.mark.parametrize(
    ("angle", "expected"), [((X, Y), "axial"), ((X, Z), "coronal"), ((Y, Z), "sagittal"), ((X, (0, 0.8, 0.6)), "axial")]
)
def test_a_plane_is_named_by_the_nearest_axis(angle: Any, expected: str) -> None:
    assert nearest_orientation(Plane((0, 0, 0), *angle, (1, 1), "")) == expected


RULES: dict[str, Mapping[str, Any]] = {
    "no modality": {},
    "a modality without volumes": {"modality": "CR"},
    "more at least than at most": {"modality": "CT", "smallest_slices": 20, "largest_slices": 10},
    "a gap larger at least than at most": {"modality": "CT", "smallest_gap_mm": 3.0, "largest_gap_mm": 2.0},
    "one slice": {"modality": "CT", "smallest_slices": 1},
    "an image type both ways": {"modality": "CT", "image_type_includes": ("A",), "image_type_excludes": ("A",)},
    "an image type in lower case": {"modality": "CT", "image_type_includes": ("axial",)},
    "a series description": {"modality": "CT", "series_description": "THORAX"},
    "a gap that is not a number": {"modality": "CT", "largest_gap_mm": float("nan")},
}


@pytest.mark.parametrize("case", RULES)
def test_a_rule_that_is_refused(case: str) -> None:
    with pytest.raises(ValidationError):
        SeriesRule.model_validate(RULES[case])
