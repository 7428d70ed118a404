import re

import pytest

from silo_agent.intake.refusals import BY_DESIGN, EXPLANATIONS, Refusal


def test_every_code_has_one_explanation() -> None:
    assert set(EXPLANATIONS) == set(Refusal)


@pytest.mark.parametrize("code", Refusal)
def test_an_explanation_is_one_sentence_that_never_advises_to_destroy_data(code: Refusal) -> None:
    assert code.explanation.endswith(".")
    assert not re.search(r"delet|remov|eras|discard|throw|overwrit", code.explanation, re.IGNORECASE)


def test_scouts_and_copies_do_not_count_as_excluded() -> None:
    assert not Refusal.LOCALIZER.counts_as_excluded
    assert Refusal.TRUNCATED.counts_as_excluded
    assert set(Refusal) > BY_DESIGN
