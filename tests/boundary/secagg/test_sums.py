"""The unmasked sum is the sum, bit for bit, whoever drops out where."""

import numpy as np
import pytest

from boundary.errors import CallerFault, CohortTooSmall
from boundary.secagg.errors import BadShares
from boundary.secagg.graph import thresholds
from infra.cohort import Cohort


def run(cohort: Cohort, *, no_shares: int = 0, no_vector: int = 0, no_word: int = 0, no_reveal: int = 0) -> None:
    """`no_word` hospitals drop after their vector, before they agree; `no_reveal` after they agreed."""
    sharing, surviving = cohort.until_masked(no_shares=no_shares, no_vector=no_vector)
    still = sorted(surviving)[no_word:]
    for silo in still:
        cohort.agree(silo, cohort.named(surviving))
    for silo in still[no_reveal:]:
        cohort.reveal(silo)
    opening = cohort.opening(sharing, surviving)
    assert not opening.missing
    np.testing.assert_array_equal(cohort.unmasked(opening, surviving), cohort.reference(surviving))


@pytest.mark.usefixtures("sealed_once")
@pytest.mark.parametrize("ring", [32, 16])
@pytest.mark.parametrize("hospitals", [3, 5, 10, 50])
@pytest.mark.parametrize("step", ["no_shares", "no_vector", "no_word", "no_reveal"])
def test_the_sum_is_exact_with_as_many_dropouts_as_there_may_be(hospitals: int, step: str, ring: int) -> None:
    dropouts = hospitals - thresholds(hospitals).agreeing
    run(Cohort.of(hospitals, ring=ring), **{step: dropouts})


@pytest.fixture(scope="module")
def two_hundred(sealed_once: None) -> Cohort:
    """All have shared; from here each test goes its own way."""
    cohort = Cohort.of(200).until_shared()
    return cohort


@pytest.mark.parametrize("step", ["no_shares", "no_vector", "no_word", "no_reveal"])
def test_two_hundred_hospitals_in_a_sparse_graph(step: str, two_hundred: Cohort) -> None:
    """One in ten may drop out there (graph.LOST_SHARE). Sharing again for each would take minutes."""
    cohort = Cohort.of(200, sessions=two_hundred.sessions, announced=two_hundred.announced, dealt=two_hundred.dealt)
    before = {silo: (session._turn, session._held) for silo, session in cohort.sessions.items()}
    everybody, fewer = frozenset(cohort.silos), frozenset(cohort.silos[20:])
    sharing = fewer if step == "no_shares" else everybody
    surviving = fewer if step == "no_vector" else sharing
    for silo in sharing:
        cohort.mask(silo, sharing)
    for silo in fewer if step == "no_word" else surviving:
        cohort.agree(silo, cohort.named(surviving))
    for silo in fewer if step == "no_reveal" else cohort.seen:
        cohort.reveal(silo)
    opening = cohort.opening(sharing, surviving)
    np.testing.assert_array_equal(cohort.unmasked(opening, surviving), cohort.reference(surviving))
    for silo, (turn, held) in before.items():
        cohort.sessions[silo]._turn, cohort.sessions[silo]._held = turn, held


def test_dropouts_at_every_step_of_one_sum() -> None:
    run(Cohort.of(20), no_shares=2, no_vector=2, no_word=1, no_reveal=1)


@pytest.mark.parametrize("step", ["no_shares", "no_vector"])
def test_one_dropout_more_and_the_hospitals_stop(step: str) -> None:
    with pytest.raises(CohortTooSmall):
        run(Cohort.of(5), **{step: 2})


def test_one_dropout_more_at_the_end_and_the_masks_stay_on() -> None:
    cohort = Cohort.of(5)
    sharing, surviving = cohort.until_masked()
    for silo in cohort.silos:
        cohort.agree(silo, cohort.named(surviving))
    for silo in cohort.silos[2:]:
        cohort.reveal(silo)
    opening = cohort.opening(sharing, surviving)
    assert opening.missing == frozenset(cohort.silos)
    with pytest.raises(BadShares):
        opening.masks()


@pytest.mark.parametrize("hospitals", [0, 1, 2])
def test_fewer_than_three_are_refused(hospitals: int) -> None:
    with pytest.raises(CallerFault):
        thresholds(hospitals)


def test_two_hospitals_do_not_share() -> None:
    cohort = Cohort.of(2, least=2)  # even if a hospital were set to accept two
    cohort.until_announced()
    with pytest.raises(CohortTooSmall):
        cohort.share("h000")


def test_a_masked_vector_says_nothing_by_itself() -> None:
    """Not a proof: that every byte was masked, with 64-bit numbers and weights alike."""
    cohort = Cohort.of(3, weights=4000)
    cohort.until_masked()
    other = Cohort.of(3, weights=4000, attempt=2)
    other.until_masked()
    for silo in cohort.silos:
        same = np.mean(cohort.masked[silo] == other.masked[silo])
        assert same < 0.02  # two uniform bytes are equal once in 256


def test_the_order_in_which_shares_arrive_does_not_matter() -> None:
    cohort = Cohort.of(5)
    sharing, surviving = cohort.until_masked(no_vector=1)
    for silo in sorted(surviving, reverse=True):
        cohort.agree(silo, cohort.named(surviving))
    for silo in sorted(surviving, reverse=True):
        cohort.reveal(silo)
    np.testing.assert_array_equal(
        cohort.unmasked(cohort.opening(sharing, surviving), surviving), cohort.reference(surviving)
    )


def test_a_hospital_knows_which_sum_it_is_in_step_by_step() -> None:
    cohort = Cohort.of(4).until_announced()
    session = cohort.sessions["h001"]
    assert (session.cohort, session.sharers, session.surviving) == ("", "", frozenset())
    _, surviving = cohort.until_masked(no_vector=1)
    session = cohort.sessions["h001"]
    assert session.cohort == cohort.dealt["h001"].cohort == cohort.dealt["h002"].cohort
    assert session.sharers == cohort.sessions["h002"].sharers
    cohort.agree("h001", cohort.named(surviving))
    assert session.surviving == surviving == {"h001", "h002", "h003"}
