"""Which parameters move, stay home or stay as they are: by patterns of names, the same on both sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import BadTensors, InvalidPlan
from boundary.learning import ModelChoice
from boundary.low_rank import LowRank
from boundary.parts import parts_of, tuned_of
from boundary.tensors import TensorManifest, TensorSpec, flatten, unflatten

SHAPES = {"features.conv.weight": (2, 3), "features.norm.bias": (3,), "features.norm.weight": (3,), "head.bias": (2,),
          "head.weight": (2, 4)}  # fmt: skip
WHOLE = TensorManifest(tensors=tuple(TensorSpec(name=name, shape=shape) for name, shape in SHAPES.items()))
VECTOR = np.arange(WHOLE.size, dtype=np.float32)


def choice(*trained: str, home: tuple[str, ...] = ()) -> ModelChoice:
    return ModelChoice(name="net", version=1, trained=trained or ("*",), home=home)


def names(manifest: TensorManifest) -> list[str]:
    return [spec.name for spec in manifest.tensors]


def test_without_a_word_everything_moves() -> None:
    parts = parts_of(choice(), WHOLE)
    assert parts.moves_whole
    assert parts.moving == WHOLE
    assert names(parts.home) == []
    assert parts.trained == set(SHAPES)
    assert parts.joined(None, VECTOR) is VECTOR


def test_patterns_that_happen_to_fit_everything_still_have_a_base() -> None:
    """A hospital knows no network's parameters when an order comes: whether there is a base is the plan's to say."""
    chosen = choice("features.*", "head.*")
    parts = parts_of(chosen, WHOLE)
    assert parts.moving == WHOLE
    assert parts.moves_whole is chosen.moves_whole is False
    np.testing.assert_array_equal(parts.joined(-VECTOR, VECTOR), VECTOR)
    with pytest.raises(BadTensors):
        parts.joined(None, VECTOR)


def test_what_is_not_trained_does_not_move() -> None:
    parts = parts_of(choice("head.*"), WHOLE)
    assert names(parts.moving) == ["head.bias", "head.weight"]
    assert (names(parts.home), parts.moves_whole) == ([], False)
    assert parts.trained == {"head.bias", "head.weight"}


def test_what_a_hospital_tunes_for_itself_is_of_what_is_trained() -> None:
    parts = parts_of(choice("features.*", "head.*", home=("*.norm.*",)), WHOLE)
    assert tuned_of(parts, ("*",)) == parts.trained
    assert tuned_of(parts, ("head.*", "*.norm.bias")) == {"head.bias", "head.weight", "features.norm.bias"}
    frozen = parts_of(choice("head.*"), WHOLE)
    with pytest.raises(
        InvalidPlan, match=r"personalisation.parameters: 'features\.\*' fits no parameter that is trained"
    ):
        tuned_of(frozen, ("head.*", "features.*"))


def test_what_stays_home_is_trained_and_does_not_move() -> None:
    parts = parts_of(choice(home=("*.norm.*",)), WHOLE)
    assert names(parts.home) == ["features.norm.bias", "features.norm.weight"]
    assert names(parts.moving) == ["features.conv.weight", "head.bias", "head.weight"]
    assert parts.trained == set(SHAPES)


def test_a_pattern_of_home_says_nothing_about_what_is_not_trained() -> None:
    parts = parts_of(choice("head.*", home=("*.bias",)), WHOLE)
    assert names(parts.home) == ["head.bias"]
    assert parts.trained == {"head.bias", "head.weight"}


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (choice("haed.*"), "model.trained: 'haed.*' fits no parameter of net@1"),
        (choice("head.*", "Head.*"), "'Head.*' fits no parameter"),
        (choice(home=("bn*",)), "model.home: 'bn*' fits no parameter"),
        (choice("head.*", home=("*",)), "every trained parameter stays home"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wanted: ModelChoice, says: str) -> None:
    with pytest.raises(InvalidPlan) as refused:
        parts_of(wanted, WHOLE)
    assert says in str(refused.value)


@given(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1), st.sets(st.sampled_from(sorted(SHAPES))))
def test_parts_put_together_are_the_whole(trained: set[str], home: set[str]) -> None:
    if not trained - home:
        return
    parts = parts_of(choice(*sorted(trained), home=tuple(sorted(home))), WHOLE)
    assert sorted([*names(parts.moving), *names(parts.home), *(set(SHAPES) - trained)]) == sorted(SHAPES)
    base = -VECTOR - 1
    whole = parts.joined(base, parts.moving_of(VECTOR), parts.home_of(VECTOR))
    for name, values in unflatten(whole, WHOLE).items():
        expected = VECTOR if name in parts.trained else base
        np.testing.assert_array_equal(values, unflatten(expected, WHOLE)[name])
    np.testing.assert_array_equal(base, -VECTOR - 1)
    ours = parts.joined(base, parts.moving_of(VECTOR))
    np.testing.assert_array_equal(parts.home_of(ours), parts.home_of(base))
    moving = {spec.name: unflatten(VECTOR, WHOLE)[spec.name] for spec in parts.moving.tensors}
    np.testing.assert_array_equal(parts.moving_of(VECTOR), flatten(moving, parts.moving))


def test_what_has_another_size_is_refused() -> None:
    parts = parts_of(choice("head.*", home=("*.bias",)), WHOLE)
    moving, home = parts.moving_of(VECTOR), parts.home_of(VECTOR)
    for base, some, own in (
        (None, moving, home), (VECTOR[1:], moving, home), (VECTOR, moving[1:], home), (VECTOR, moving, home[1:])
    ):  # fmt: skip
        with pytest.raises(BadTensors):
            parts.joined(base, some, own)
    with pytest.raises(BadTensors):
        parts_of(choice(), WHOLE).joined(VECTOR, VECTOR[1:])


# --- adapters -----------------------------------------------------------------------------------------
LORA = LowRank(rank=1, alpha=2.0, targets=("body",))
ADAPTED = TensorManifest(
    tensors=tuple(
        TensorSpec(name=name, shape=shape)
        for name, shape in {
            "body.bias": (3,), "body.lora_a.weight": (1, 4), "body.lora_b.weight": (3, 1), "body.weight": (3, 4),
            "head.weight": (2, 3),
        }.items()
    )
)  # fmt: skip


def adapted(*trained: str, home: tuple[str, ...] = ()) -> ModelChoice:
    return ModelChoice(name="net", version=1, trained=trained, home=home, lora=LORA)


def test_adapters_and_a_head_are_all_that_moves() -> None:
    parts = parts_of(adapted("*.lora_*", "head.*"), ADAPTED)
    assert names(parts.moving) == ["body.lora_a.weight", "body.lora_b.weight", "head.weight"]
    assert not parts.moves_whole


def test_one_factor_may_be_frozen_or_stay_home() -> None:
    assert names(parts_of(adapted("*.lora_b.weight"), ADAPTED).moving) == ["body.lora_b.weight"]  # FFA-LoRA
    shared = parts_of(adapted("*.lora_*", home=("*.lora_b.*",)), ADAPTED)  # FedSA-LoRA
    assert (names(shared.moving), names(shared.home)) == (["body.lora_a.weight"], ["body.lora_b.weight"])


SENSELESS = {
    "adapters that stay zero": (("head.*",), "begins as zero and would stay so"),
    "only the factor that has no effect alone": (("*.lora_a.*", "head.*"), "begins as zero and would stay so"),
    "the adapted weight is trained too": (("body.*",), "body.weight belongs to a layer that model.lora adapts"),
    "or its bias": (("*.lora_*", "*.bias"), "body.bias belongs to a layer"),
}


@pytest.mark.parametrize(("trained", "reason"), SENSELESS.values(), ids=SENSELESS)
def test_adapters_that_cannot_learn_or_are_beside_what_learns_are_refused(
    trained: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(InvalidPlan, match=reason):
        parts_of(adapted(*trained), ADAPTED)
