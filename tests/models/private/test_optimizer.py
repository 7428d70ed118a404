"""A patient moves the sum by at most C, whatever the network does; and the sum is that of plain autograd."""

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import Tensor, nn

from boundary.learning import ModelChoice
from models.catalogue import build
from models.private.keystream import KeyStream
from models.private.optimizer import MOST_IMAGES, STEPS, PatientOptimizer, _squares, add_clipped
from models.private.sampling import pieces

CLIP = 0.7
KEEP = "ignore:Full backward hook is firing:UserWarning"
pytestmark = pytest.mark.filterwarnings(KEEP)  # images need no gradient; the hooks fire as they should


class Remembering(PatientOptimizer):
    """Keeps each patient's gradient as it was before clipping."""

    def _add(self, rows: list[Tensor]) -> None:
        self.seen = [*getattr(self, "seen", []), *torch.cat(rows, dim=1).clone()]
        super()._add(rows)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return build(ModelChoice(name="densenet-small", version=1), 2).to(dtype)


def optimizer(module: nn.Module, clip: float = CLIP, sigma: float = 1.0, denominator: float = 4.0) -> Remembering:
    return Remembering(
        torch.optim.SGD(module.parameters(), lr=1.0),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        denominator=denominator,
        stream=KeyStream(bytes(32)),
    )


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.rand(120, 1, 16, 16, dtype=torch.float64), torch.randint(0, 2, (120,))


SAMPLE = [np.arange(0, 1), np.arange(1, 5), np.arange(5, 7), np.arange(7, 15), np.arange(15, 17)]


def collected(
    images: tuple[Tensor, Tensor], sample: list[np.ndarray], at_once: int, clip: float = CLIP
) -> tuple[Remembering, Tensor]:
    module = network()
    hooked, stepper = GradSampleModule(module, loss_reduction="sum"), optimizer(module, clip)
    for piece in pieces(sample, at_once):
        losses = nn.functional.cross_entropy(hooked(images[0][piece.rows]), images[1][piece.rows], reduction="none")
        (losses * torch.from_numpy(piece.shares)).sum().backward()
        stepper.accumulate(piece.runs, unfinished=piece.unfinished)
    return stepper, _in_groups(stepper, _oracle(images, sample)) if sample else torch.empty(0)


def _oracle(images: tuple[Tensor, Tensor], sample: list[np.ndarray]) -> list[list[Tensor]]:
    """Plain autograd, one patient at a time."""
    found = []
    for rows in sample:
        module = network()
        nn.functional.cross_entropy(module(images[0][rows]), images[1][rows]).backward()
        found.append([p.grad for p in module.parameters() if p.grad is not None])
    return found


def _in_groups(stepper: PatientOptimizer, gradients: list[list[Tensor]]) -> Tensor:
    where = {id(p): i for i, p in enumerate(stepper.params)}
    order = [where[id(p)] for group in stepper._groups for p in group]
    return torch.stack([torch.cat([one[i].flatten() for i in order]) for one in gradients])


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_each_patient_is_the_mean_over_its_images_however_cut(images: tuple[Tensor, Tensor], at_once: int) -> None:
    stepper, oracle = collected(images, SAMPLE, at_once)
    seen = torch.stack(stepper.seen)
    assert (seen - oracle).norm(dim=1).div(oracle.norm(dim=1)).max() < 1e-6
    clipped = oracle * (CLIP * (1 - 2**-10) / oracle.norm(dim=1, keepdim=True)).clamp(max=1)
    assert (oracle.norm(dim=1) > CLIP).any()  # it was needed
    difference = stepper.clipped_sum * (CLIP / STEPS) - clipped.sum(dim=0)
    assert difference.abs().max() <= len(SAMPLE) * 0.51 * CLIP / STEPS


def test_the_sum_is_the_same_whole_number_however_cut(images: tuple[Tensor, Tensor]) -> None:
    sums = [collected(images, SAMPLE, at_once)[0].clipped_sum for at_once in (1, 3, 16)]
    for other in sums[1:]:
        assert (sums[0] - other).abs().max() <= 1  # where a value lies between two steps by the last bit
        assert (sums[0] != other).float().mean() < 1e-3


def test_one_patient_with_a_hundred_images_moves_the_sum_by_at_most_c(images: tuple[Tensor, Tensor]) -> None:
    with_it, _ = collected(images, [*SAMPLE, np.arange(17, 117)], 16, clip=1e-3)
    without, _ = collected(images, SAMPLE, 16, clip=1e-3)
    moved = (with_it.clipped_sum - without.clipped_sum).to(torch.float64)
    assert 0.99 * STEPS < moved.norm() <= STEPS  # clipped: C itself, not more
    alone, _ = collected(images, [np.arange(17, 117)], 16, clip=1e-3)
    assert (moved == alone.clipped_sum).all()  # whole numbers: no denominator, no rounding knows how many there are


ROWS = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=n, max_size=n),
        min_size=1,
        max_size=5,
    )
)


def clipped(rows: list[Tensor], clip: float) -> list[Tensor]:
    sums = [torch.zeros(whole.shape[1], dtype=torch.int32) for whole in rows]
    add_clipped(rows, sums, clip)
    return sums


@given(ROWS, st.floats(1e-3, 1e3))
def test_never_longer_than_c(values: list[list[float]], clip: float) -> None:
    rows = [torch.tensor(values), torch.tensor(values).repeat(1, 200)]
    sums = clipped(rows, clip)
    whole = torch.cat(rows, dim=1).to(torch.float64)
    assert torch.isfinite(whole).all()
    assert (whole == whole.round()).all()
    assert (whole.square().sum(dim=1) <= STEPS**2).all()
    assert (torch.cat(sums) == whole.sum(dim=0)).all()


def test_rounding_that_all_goes_up_is_undone() -> None:
    """All coordinates alike and just above a half: rounded, the vector is half a percent too long."""
    count = 424_000
    value = 100.51 / STEPS / (1 - 2**-10)
    rows = [torch.full((1, count), value / (value * math.sqrt(count)))]
    assert (rows[0] * STEPS * (1 - 2**-10)).round().norm() > STEPS
    sums = clipped(rows, 1.0)
    assert rows[0].to(torch.float64).norm() <= STEPS
    assert rows[0].norm() > 0.95 * STEPS
    assert (sums[0] == rows[0][0]).all()


@pytest.mark.parametrize("too_long", [False, True])
def test_a_layer_of_many_parts_gives_the_sum_of_one_part(monkeypatch: pytest.MonkeyPatch, too_long: bool) -> None:
    """Parts that are not written back are rounded anew if a patient has to be shortened after all."""
    count, value = 424_000, 100.51 / STEPS / (1 - 2**-10)
    up = torch.full((1, count), value / (value * math.sqrt(count)))  # rounded it is longer than C, as above
    rows = [torch.cat([up if too_long else torch.randn(1, count), torch.randn(2, count)]), torch.randn(3, 40)]
    at_once = clipped([whole.clone() for whole in rows], 1.0)
    monkeypatch.setattr("models.private.optimizer._CACHED", 2**14)
    in_parts = clipped([whole.clone() for whole in rows], 1.0)
    for one, other in zip(at_once, in_parts, strict=True):
        assert (one == other).all()
    alone = torch.cat(clipped([whole[:1].clone() for whole in rows], 1.0)).to(torch.float64)
    assert alone.norm() <= STEPS


@given(st.integers(1, 3000), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_bound_on_squares_is_a_bound(n: int, patients: int, random: object) -> None:
    rows = [torch.randint(-STEPS, STEPS, (patients, n)).float(), torch.randint(-9, 9, (patients, 5)).float()]
    exact = torch.cat(rows, dim=1).to(torch.float64).square().sum(dim=1)
    found = _squares(rows)
    assert (found * (1 + 2**-13) >= exact).all()
    assert (found <= exact * (1 + 2**-13)).all()


def test_a_gradient_that_is_not_finite_counts_as_zero() -> None:
    rows = [torch.tensor([[1.0, math.nan], [math.inf, 0.0], [0.3, 0.4]])]
    clipped(rows, 1.0)
    assert rows[0].tolist() == [[0, 0], [0, 0], [round(0.3 * STEPS), round(0.4 * STEPS)]]


def steps_of_noise(sigma: float, denominator: float, count: int) -> Iterator[Tensor]:
    module = nn.Linear(300, 100)
    stepper = optimizer(module, sigma=sigma, denominator=denominator)
    for _ in range(count):
        stepper.step()
        yield torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_a_step_without_patients_is_noise_of_the_promised_size() -> None:
    for sigma, denominator in ((1.0, 4.0), (3.5, 16.0)):
        noise = torch.cat(list(steps_of_noise(sigma, denominator, 4))).to(torch.float64)
        wanted = sigma * CLIP / denominator
        assert noise.std().item() == pytest.approx(wanted, rel=4 / math.sqrt(2 * len(noise)))
        assert abs(noise.mean()) < 4 * wanted / math.sqrt(len(noise))


def test_sums_begin_anew_after_a_step(images: tuple[Tensor, Tensor]) -> None:
    stepper, _ = collected(images, SAMPLE, 16)
    assert stepper.clipped_sum.any()
    stepper.step()
    assert not stepper.clipped_sum.any()


def test_bounds_are_kept(images: tuple[Tensor, Tensor]) -> None:
    module = network()
    stepper = optimizer(module)
    with pytest.raises(ValueError, match="images at once"):
        stepper.accumulate((MOST_IMAGES, 1), unfinished=False)
    begun, _ = collected(images, [], 16)
    begun._begun = [torch.zeros(1)]
    with pytest.raises(RuntimeError, match="missing"):
        begun.step()
    for sigma in (0.0, 2.0**-8, 65.0, math.nan):
        with pytest.raises(ValueError, match="sigma"):
            optimizer(module, sigma=sigma)


def test_it_does_as_opacus_does_when_a_patient_has_one_image(images: tuple[Tensor, Tensor]) -> None:
    """The same clipped sum as Opacus' own optimiser, to its own rounding."""
    from opacus.optimizers import DPOptimizer

    sample = [np.arange(i, i + 1) for i in range(8)]
    ours, _ = collected(images, sample, 8)
    module = network()
    hooked = GradSampleModule(module, loss_reduction="sum")
    theirs = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=CLIP,
        expected_batch_size=None, loss_reduction="sum",
    )  # fmt: skip
    nn.functional.cross_entropy(hooked(images[0][:8]), images[1][:8], reduction="sum").backward()
    theirs.clip_and_accumulate()
    wanted = _in_groups(ours, [[p.summed_grad for p in module.parameters()]])[0]
    assert (ours.clipped_sum * (CLIP / STEPS) - wanted).norm() < 2e-3 * wanted.norm()


def test_nothing_warns_but_what_is_named_here() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(steps_of_noise(1.0, 1.0, 1))
