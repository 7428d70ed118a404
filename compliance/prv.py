"""The tighter epsilon that is shown beside the enforced one: numerical composition of privacy loss random variables.

Gopi, Lee and Wutschitz, "Numerical composition of differential privacy", arXiv:2106.02848, in the implementation of
Opacus 1.6. It gives a lower and an upper end that differ by little, where Renyi DP gives an upper end 10 % too high.
Opacus takes the direction in which the patient is removed; tests compare with Google's accountant, which takes both.

Three parts of Opacus are not used. Its Renyi accountant, which finds how large losses can be, has no order above 63
and warns that this is too few for small epsilons: ours has. Its distribution of the loss takes log(1 - q), which is
log(0) when every patient is in every step: that case is the plain Gaussian, and has a closed form. And it puts the
loss on the grid with a mean that is good to 1e-8 and a mass good to 1e-10, which a million steps make visible.

Takes a second or two and imports torch: for reports and the status page, never in the agent's daemon.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from opacus.accountants.analysis import prv
from scipy.special import ndtr  # type: ignore[import-untyped]

from compliance.accountant import Steps, epsilon, steps_of
from compliance.errors import NotAccountable
from compliance.privacy import PoissonGaussian, PrivacyEvent

# The Fourier transform of a step is raised to the power of the steps, and its rounding errors with it: at 4 million
# steps they come to 1e-9 of the whole probability, which has to be little beside delta. Below 1,000 it is the sums.
SMALLEST_DELTA_PER_STEP = 100 * 2.0**-52
FEWEST_STEPS = 1000
LARGEST_LOSS = 300.0  # nats; beyond this nothing is private, and exp() ends at 709
MOST_POINTS = 2**20  # of the grid of losses: 100 MB, two seconds
LARGEST_SHIFT = 1.0  # nats; of the 3 by which the grid is wider than the losses, so that they stay on it

_DELTA_SHARE = 1 / 1000  # of delta that the numerical error may take, as in Opacus
_WIDEST = 0.01  # half the distance of the two ends, as in Opacus; more only if the grid would have too many points
_RELATIVE = 0.005  # of epsilon, where epsilon is small


class PrvEpsilon(NamedTuple):
    """Epsilon lies between `lower` and `upper`; `estimate` is where."""

    lower: float
    estimate: float
    upper: float


def epsilon_prv(events: Iterable[PrivacyEvent], delta: float) -> PrvEpsilon:
    """Epsilon of all events together at `delta`.

    Raises `UnknownPrivacyEvent` like the accountant. Raises `NotAccountable` also where it would compute rounding
    errors: for many steps at a tiny delta (below 2e-11, or 2e-14 per step) and for losses above `LARGEST_LOSS`.
    """
    together = list(events)
    enforced = epsilon(together, delta)
    if not together:
        return PrvEpsilon(0.0, 0.0, 0.0)
    steps = steps_of(together)
    if delta < SMALLEST_DELTA_PER_STEP * max(steps.total(), FEWEST_STEPS):
        raise NotAccountable(f"a delta of {delta:g} after {steps.total()} steps is lost in rounding errors")
    delta_error = delta * _DELTA_SHARE
    most = _largest_loss(steps, epsilon(together, delta_error / 4), delta_error)
    spread = math.sqrt(steps.total() * math.log(12 / delta_error) / 2)  # theorem 5.5: grid width = error / spread
    error = max(min(_WIDEST, _RELATIVE * enforced), 2 * most * spread / MOST_POINTS)
    domain = prv.Domain.create_aligned(-most - error, most + error, error / spread)
    losses = [_discrete(*one, domain) for one in steps]
    composed = prv.compose_heterogeneous(losses, list(steps.values()))
    if abs(composed.domain.shifts) > LARGEST_SHIFT:
        raise NotAccountable(f"{steps.total()} steps need a finer grid than {MOST_POINTS} points")
    found = composed.compute_epsilon(delta, delta_error, error)
    return PrvEpsilon(*(max(0.0, float(end)) for end in found))


def _largest_loss(steps: Steps, together: float, delta_error: float) -> float:
    """Where the distribution of the loss may be cut off: remark 5.6, with our own accountant's epsilons."""
    ones = [PoissonGaussian(noise_multiplier=noise, sampling_rate=rate, steps=1) for noise, rate in steps]
    most = 3 + max(together, *(epsilon([one], delta_error / (8 * steps.total())) for one in ones))
    if most > LARGEST_LOSS:
        raise NotAccountable(f"losses of up to {most:.4g} nats: beyond {LARGEST_LOSS:g} nothing is private")
    return most


def _discrete(noise_multiplier: float, sampling_rate: float, domain: Any) -> Any:
    """The loss of one step on the grid, shifted so that its mean is right: rounding to the grid then averages out."""
    loss: Any = _Gaussian(noise_multiplier)
    if sampling_rate < 1:
        loss = prv.PoissonSubsampledGaussianPRV(sampling_rate, noise_multiplier)
    below = loss.cdf(domain.t_min + domain.dt * (np.arange(domain.size + 1) - 0.5))
    mass = np.diff(below) / (below[-1] - below[0])
    return prv.DiscretePRV(mass, domain.shift_right(_mean(noise_multiplier, sampling_rate) - domain.ts @ mass))


def _mean(noise: float, rate: float) -> float:
    """Of the loss of one step, in nats: summed on the Gaussian's own scale, where it is smooth, it is good to 1e-16."""
    if rate == 1:
        return 1 / (2 * noise**2)
    z = np.linspace(-12, 12, 10_001)
    weight = np.exp(-(z**2) / 2)

    def loss_at(point: Any) -> Any:
        return np.logaddexp(math.log1p(-rate), math.log(rate) + point / noise - 1 / (2 * noise**2))

    mean = (1 - rate) * (weight @ loss_at(z)) + rate * (weight @ loss_at(z + 1 / noise))
    return float(mean / weight.sum())


class _Gaussian:
    """The loss without sampling: normal, with mean 1 / 2 sigma^2 and standard deviation 1 / sigma."""

    def __init__(self, noise_multiplier: float) -> None:
        self._sigma = noise_multiplier

    def cdf(self, loss: Any) -> Any:
        return ndtr(self._sigma * loss - 1 / (2 * self._sigma))
