"""The attack finds members where there is something to find, nobody where there is not, and never uses a coin."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from boundary.guarantee import PatientPrivacy
from boundary.learning import Training
from compliance.empirical import Guesses, area, epsilon_lower_bound, p_value, roc
from compliance.terms import PlanTerms
from models.private.audit import Attack, attack, with_canaries
from models.private.training import PrivateSteps, PrivateTraining
from models.training import LocalData, train

KEY = bytes(range(32))
CANARIES, MODELS, DELTA = 20, 12, 1e-4
TrainOne = Callable[[LocalData, int], nn.Module]


@pytest.fixture
def marked() -> tuple[LocalData, np.ndarray]:
    """60 patients with one noisy image each; a third of them are canaries."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 60)
    images = random.random((60, 1, 16, 16), dtype=np.float32)
    images[labels == 1, :, :, :8] += 0.2
    return with_canaries(LocalData(images, labels, np.arange(60)), CANARIES, 2)


class Nearest(nn.Module):
    """Remembers every image: the logit of a class falls with the distance to its nearest one."""

    def __init__(self, data: LocalData) -> None:
        super().__init__()
        self._images, self._labels = torch.from_numpy(data.images).flatten(1), torch.from_numpy(data.labels)

    def forward(self, images: Tensor) -> Tensor:
        away = torch.cdist(images.flatten(1), self._images)
        return torch.stack([-5 * away[:, self._labels == label].min(dim=1).values for label in (0, 1)], dim=1)


def linear(seed: int) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(module[1].weight, generator=generator)
    nn.init.zeros_(module[1].bias)
    return module


def remembering(data: LocalData, _number: int) -> nn.Module:
    return Nearest(data)


def overfitting(data: LocalData, number: int) -> nn.Module:
    """A real training: more weights than patients, and time enough to learn each of them by heart."""
    module = linear(0)
    plan = Training(rounds=1, local_epochs=60, batch_size=20, learning_rate=0.03)
    train(module, data, plan, seed=number, on_step=lambda _done, _of: None)
    return module


def deaf(_data: LocalData, number: int) -> nn.Module:
    """A network of its own for each model, whatever the data: there is nothing to find."""
    return linear(number)


def attacked(
    marked: tuple[LocalData, np.ndarray], train_one: TrainOne, key: bytes = KEY, models: int = MODELS
) -> Attack:
    return attack(*marked, train_one, models=models, key=key, on_model=lambda _done, _of: None)


def area_of(scores: np.ndarray, members: np.ndarray) -> float:
    return area(roc(scores.ravel().tolist(), members.ravel().tolist()))


def shown(found: Attack, share: float) -> float:
    return epsilon_lower_bound(Guesses(*found.guesses(share), found.members.size), DELTA)


# --- canaries ----------------------------------------------------------------------------------------
def test_canaries_get_a_wrong_label_on_all_their_images_and_nobody_else_does() -> None:
    data = LocalData(np.zeros((9, 1, 2, 2), np.float32), np.arange(9) % 3, np.array([7, 7, 3, 5, 5, 3, 9, 9, 9]))
    given, canaries = with_canaries(data, 2, 3)
    assert canaries.tolist() == [3, 5]
    is_canary = np.isin(data.patients, [3, 5])
    assert (given.labels[is_canary] != data.labels[is_canary]).all()
    assert (given.labels[~is_canary] == data.labels[~is_canary]).all()
    assert set(given.labels) <= {0, 1, 2}
    assert data.labels.tolist() == [0, 1, 2] * 3, "the data that was given is as it was"


def test_canaries_need_as_many_others_beside_them(data: LocalData) -> None:
    given, canaries = with_canaries(data, 10, 2)
    assert (len(canaries), len(given)) == (10, 40)
    with pytest.raises(ValueError, match="20 patients: 11 canaries need at least as many others"):
        with_canaries(data, 11, 2)


def test_a_model_is_trained_on_everybody_but_the_canaries_that_are_out(marked: tuple[LocalData, np.ndarray]) -> None:
    seen: list[tuple[set[int], int]] = []
    said: list[tuple[int, int]] = []

    def look(data: LocalData, number: int) -> nn.Module:
        seen.append((set(data.patients.tolist()), number))
        assert all(data.labels[row] == marked[0].labels[patient] for row, patient in enumerate(data.patients))
        return linear(number)

    found = attack(*marked, look, models=4, key=KEY, on_model=lambda done, of: said.append((done, of)))
    assert said == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for (patients, number), members in zip(seen, found.members, strict=True):
        assert patients == set(range(CANARIES, 60)) | set(np.flatnonzero(members).tolist())
        assert (found.members[number] == members).all()
    assert len({frozenset(patients) for patients, _ in seen}) == 4


# --- what is found -----------------------------------------------------------------------------------
@pytest.mark.parametrize("train_one", [remembering, overfitting])
def test_members_of_what_was_learned_by_heart_are_found(
    train_one: TrainOne, marked: tuple[LocalData, np.ndarray]
) -> None:
    found = attacked(marked, train_one)
    assert area_of(found.scores, found.members) > 0.9
    right, made = found.guesses(0.4)
    assert made == 4 * 2 * MODELS
    assert right > 0.97 * made
    assert shown(found, 0.4) > 2.5


def test_members_of_what_learned_nothing_are_not(marked: tuple[LocalData, np.ndarray]) -> None:
    found = attacked(marked, deaf, models=30)
    assert abs(area_of(found.scores, found.members) - 0.5) < 0.06  # 600 coins: a standard deviation is 0.024
    assert shown(found, 0.2) < 0.3


def test_a_network_that_says_the_same_to_everybody_gives_exactly_nothing(marked: tuple[LocalData, np.ndarray]) -> None:
    def mute(_data: LocalData, _number: int) -> nn.Module:
        module = linear(0)
        nn.init.zeros_(module[1].weight)
        return module

    found = attacked(marked, mute)
    assert not found.scores.any()
    assert area_of(found.scores, found.members) == 0.5


def test_what_is_shown_of_a_private_training_stays_under_what_it_costs(marked: tuple[LocalData, np.ndarray]) -> None:
    """And not under what the same attack shows without noise, so the test can fail."""
    privacy = PatientPrivacy(mechanism="patient-dp", epsilon=1.0, patients_per_step=30, steps=10)
    terms = PlanTerms.of(privacy, 1, 60)
    steps = PrivateSteps(
        steps=10, rate=terms.rate, denominator=terms.denominator, clip=1.0, images=1,
        noise_multiplier=terms.noise_multiplier,
    )  # fmt: skip

    def private(data: LocalData, number: int) -> nn.Module:
        module = linear(0)
        plan = Training(rounds=1, optimizer="sgd", learning_rate=0.5, weighting="equal")
        key = bytes([number]) * 32
        PrivateTraining(steps, key, at_once=64).run(module, data, plan, on_step=lambda _done, _of: None)
        return module

    assert shown(attacked(marked, private), 0.4) <= terms.epsilon
    assert shown(attacked(marked, overfitting), 0.4) > terms.epsilon


# --- guesses -----------------------------------------------------------------------------------------
def by_hand(*rows: tuple[list[float], str]) -> Attack:
    return Attack(np.array([scores for scores, _ in rows]), np.array([[c == "i" for c in coins] for _, coins in rows]))


def test_the_surest_are_guessed_and_about_the_rest_nothing_is_said() -> None:
    found = by_hand(([5, -9, 0, 1, 9, -5, 2, -1], "iooiioio"), ([1, 2, 3, 4, 5, 6, 7, 8], "oooooooo"))
    assert found.guesses(0.25) == (2 + 1, 4)
    assert found.guesses(0.5) == (4 + 2, 8)
    assert found.guesses(1.0) == (8 + 4, 16)


def test_each_model_is_guessed_about_by_its_own_order() -> None:
    """A model that is sure of everything is not guessed about more often than another."""
    found = by_hand(([100, 90, 80, 70], "iioo"), ([0.1, 0.2, -0.1, -0.2], "iioo"))
    assert found.guesses(0.5) == (4, 4)


def test_however_small_the_share_there_is_one_guess_of_each_kind() -> None:
    assert by_hand(([3, 2, 1, 0], "iioo")).guesses(1e-9) == (2, 2)


@pytest.mark.parametrize("canaries", range(2, 12))
def test_no_canary_is_said_to_be_both_in_and_out(canaries: int) -> None:
    found = by_hand((list(map(float, range(canaries))), "i" * canaries))
    assert found.guesses(1.0) == (canaries // 2, canaries // 2 * 2)


# --- verdicts ----------------------------------------------------------------------------------------
def test_the_same_key_tosses_the_same_coins(marked: tuple[LocalData, np.ndarray]) -> None:
    first, again, other = (attacked(marked, remembering, key) for key in (KEY, KEY, bytes(32)))
    assert (first.members == again.members).all()
    assert (first.scores == again.scores).all()
    assert 0.3 < (first.members != other.members).mean() < 0.7
    assert 0.35 < np.concatenate([first.members, other.members]).mean() < 0.65


def test_a_verdict_is_the_log_odds_of_the_label_above_the_mean_of_all_models() -> None:
    data = LocalData(
        np.random.default_rng(3).random((8, 1, 16, 16), dtype=np.float32),
        np.array([0, 1, 2, 0, 1, 2, 0, 1]), np.array([0, 0, 1, 1, 1, 2, 2, 3]),
    )  # fmt: skip
    canaries = np.array([0, 1])

    def three(_data: LocalData, number: int) -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 3, bias=False))
        nn.init.normal_(module[2].weight, std=0.05, generator=torch.Generator().manual_seed(number))
        return module

    def believed(number: int, patient: int) -> float:
        module, odds = three(data, number).eval(), []
        for row in np.flatnonzero(data.patients == patient):
            chance = (
                module(torch.from_numpy(data.images[row : row + 1])).double().softmax(1)[0, data.labels[row]].item()
            )
            odds.append(math.log(chance / (1 - chance)))
        return sum(odds) / len(odds)

    found = attack(data, canaries, three, models=3, key=KEY, on_model=lambda _done, _of: None)
    for column, patient in enumerate((0, 1)):
        each = np.array([believed(number, patient) for number in range(3)])
        assert found.scores[:, column] == pytest.approx(each - each.mean(), abs=1e-5)


def test_no_verdict_depends_on_a_coin(marked: tuple[LocalData, np.ndarray]) -> None:
    """With the same networks and other coins: neither a model's own coins nor those of the others are looked at."""
    one, other = attacked(marked, deaf), attacked(marked, deaf, bytes(32))
    assert (one.members != other.members).any(axis=1).all()
    assert (one.scores == other.scores).all()


def test_guesses_about_several_models_are_not_right_or_wrong_together(marked: tuple[LocalData, np.ndarray]) -> None:
    """Else what gives nothing away would be refuted more often than in five audits of a hundred.

    What the networks believe is the same in every audit; the coins are not, and only they decide who is right.
    """
    audits, models = 200, 8
    keys = [number.to_bytes(32, "big") for number in range(audits)]
    counts = [attacked(marked, deaf, key, models).guesses(0.4) for key in keys]
    right, (made,) = np.array([right for right, _ in counts]), {made for _, made in counts}
    assert right.mean() == pytest.approx(made / 2, abs=3 * math.sqrt(made / 4 / audits))
    assert right.var() / (made / 4) == pytest.approx(1, abs=3 * math.sqrt(2 / audits))  # likelihood ratios: 1.64
    refuted = [p_value(Guesses(int(one), made, models * CANARIES), 0.0, 0.0) <= 0.05 for one in right]
    assert np.mean(refuted) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / audits)


BROKEN = {"NaN": math.nan, "infinite": math.inf, "minus infinite": -math.inf}


@pytest.mark.parametrize("bias", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("weight", [0.0, 1e38])
def test_a_model_that_diverged_does_not_spoil_the_verdicts_about_the_others(
    bias: float, weight: float, marked: tuple[LocalData, np.ndarray]
) -> None:
    def one_diverges(data: LocalData, number: int) -> nn.Module:
        if number != 3:
            return Nearest(data)
        module = linear(0)
        nn.init.constant_(module[1].weight, weight)
        with torch.no_grad():
            module[1].bias[0] = bias
        return module

    found = attacked(marked, one_diverges)
    assert np.isfinite(found.scores).all()
    others = np.arange(MODELS) != 3
    assert area_of(found.scores[others], found.members[others]) > 0.9
    right, made = Attack(found.scores[others], found.members[others]).guesses(0.4)
    assert right > 0.97 * made
