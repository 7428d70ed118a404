"""Opacus' optimiser with the patient as its unit: clip each patient's mean gradient, add up in integers, add noise.

Sensitivity: a patient's clipped gradient is rounded to whole steps of C / 2^16, and that integer vector's length is
checked to be at most 2^16 steps. So adding or removing one patient moves the sum by at most C, exactly, whatever the
network has done. The sum is one of integers and has no rounding of its own; noise is `models.private.gaussian`'s.
"""

from collections.abc import Sequence

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from models.private.gaussian import LatticeGaussian
from models.private.keystream import KeyStream

STEPS = 2**16  # of the lattice, in the clipping norm C
MOST_IMAGES = 256  # through the network at once: float32 adds that many integers of 2^16 exactly
MOST_PATIENTS = 2**14  # in one step: their sum and its noise fit into 32 bits
_MARGIN = 1 - 2**-10  # of C: clipped to a little less, so that rounding hardly ever has to be undone
_SMALL = 2**14  # parameters below this size are treated together: fewer, larger operations
_BLOCK = 1024  # squares added in float32 in any order: relative error at most (1024 + 2) * 2^-24 < 2^-13
_CACHED = 2**20  # gradients at a time
_NOISE = 2**16  # integers of noise at a time


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """One step of DP-SGD over patients: `accumulate` after each piece's backward, then `step`.

    `denominator` is public (expected patients per step): the sum is divided by it and never by how many there were.
    The module's losses are to be sums over images of share times loss (`models.private.sampling.Piece`), so that
    adding a patient's rows up gives the mean over its images. Raises `ValueError` for a noise multiplier outside
    2^-7 to 64.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        denominator: float,
        stream: KeyStream,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._noise = LatticeGaussian(noise_multiplier * STEPS, stream)
        self._scale = max_grad_norm / STEPS / denominator
        self._groups = _grouped([p for p in self.params if p.requires_grad])
        self._sums: list[Tensor] = []  # made by the first piece: no memory is held while the first gradients are made
        self._begun: list[Tensor] = []  # of the patient whose images the last piece did not end
        self._patients = 0

    def accumulate(self, runs: Sequence[int], *, unfinished: bool) -> None:
        """Take the gradients of a piece; `runs` images of each patient in turn, the last one's to go on if unfinished.

        Raises `ValueError` for more than `MOST_IMAGES` in it, or `MOST_PATIENTS` in the step.
        """
        if sum(runs) > MOST_IMAGES:
            raise ValueError(f"{sum(runs)} images at once; {MOST_IMAGES} at most")
        rows = [_rows(group, runs) for group in self._groups]
        for whole, begun in zip(rows, self._begun, strict=False):
            whole[0] += begun
        self._begun = [whole[-1].clone() for whole in rows] if unfinished else []
        self._patients += len(runs) - unfinished
        if self._patients > MOST_PATIENTS:
            raise ValueError(f"more than {MOST_PATIENTS} patients in a step")
        if len(runs) > unfinished:
            self._add([whole[: len(runs) - unfinished] for whole in rows])

    def _add(self, rows: list[Tensor]) -> None:
        """Clip, round and add the gradients of whole patients: float [patients, n] for each group, overwritten."""
        self._sums = self._sums or self._zeros()
        add_clipped(rows, self._sums, self.max_grad_norm)

    @property
    def clipped_sum(self) -> Tensor:
        """What was added up since the last step, without noise, int32 [parameters], in steps of C / 2^16."""
        return torch.cat(self._sums or self._zeros())

    def _zeros(self) -> list[Tensor]:
        return [
            torch.zeros(sum(p.numel() for p in group), dtype=torch.int32, device=group[0].device)
            for group in self._groups
        ]

    # --- what Opacus calls ---------------------------------------------------------------------------
    def pre_step(self, closure: object = None) -> bool:  # noqa: ARG002 - Opacus' signature
        """Make the noisy gradients. A step without a single patient is a step too, of noise alone."""
        if self._begun:
            raise RuntimeError("a patient's images are missing")
        self.add_noise()
        if self.step_hook:
            self.step_hook(self)
        return True

    def add_noise(self) -> None:
        """Write sum plus noise, divided by the denominator, to every `grad`; the sums begin anew."""
        for group, total in zip(self._groups, self._sums or self._zeros(), strict=True):
            _add_noise(total, self._noise)
            at = 0
            for p in group:
                p.grad = total[at : at + p.numel()].to(p.dtype).mul_(self._scale).view_as(p)
                at += p.numel()
        self._sums, self._patients = [], 0


def _grouped(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Large parameters each alone, all small ones together."""
    small = [p for p in parameters if p.numel() < _SMALL]
    return [[p] for p in parameters if p.numel() >= _SMALL] + ([small] if small else [])


def _rows(group: list[nn.Parameter], runs: Sequence[int]) -> Tensor:
    """Each patient's gradient as a row, float [patients, n]; the images' own are let go."""
    parts: list[Tensor] = []
    for p in group:
        sample: Tensor = p.grad_sample  # type: ignore[attr-defined]  # put there by Opacus
        parts.append(sample.reshape(len(sample), -1))
        p.grad_sample = p.grad = None  # type: ignore[attr-defined]  # nor is the sum of all of any use
    flat = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    if all(run == 1 for run in runs):
        return flat.contiguous()
    owners = torch.repeat_interleave(torch.arange(len(runs)), torch.tensor(runs)).to(flat.device)
    return flat.new_zeros(len(runs), flat.shape[1]).index_add_(0, owners, flat)


def add_clipped(rows: list[Tensor], sums: list[Tensor], norm: float) -> None:
    """Clip each patient to `norm`, round to whole steps, in place, and add to `sums`; never longer than `STEPS`.

    `rows` are float [patients, n], `sums` int32 [n], for each group. A patient whose gradient is not finite counts as
    zero: to refuse would tell that there is such a patient.
    """
    lengths = _squares(rows).sqrt()
    sound = torch.isfinite(lengths)
    factor = torch.where(sound, (STEPS * _MARGIN / lengths).clamp(max=STEPS / norm), 0.0)[:, None].to(rows[0].dtype)
    columns = max(1, _CACHED // len(lengths) // _BLOCK) * _BLOCK
    squares = torch.zeros_like(lengths)
    # one part at a time, while it is in the cache; what is more than one is not written back
    room = rows[0].new_empty(len(lengths), columns if max(map(len, sums)) > columns else 0)
    for whole, total in zip(rows, sums, strict=True):
        if not sound.all():
            whole[~sound] = 0
        for start in range(0, len(total), columns):
            part = whole[:, start : start + columns]
            scaled = torch.mul(part, factor, out=part if len(total) <= columns else room[:, : part.shape[1]]).round_()
            squares += _squares([scaled])
            total[start : start + columns] += scaled.sum(dim=0).to(torch.int32)
    if (squares * (1 + 2**-13) > STEPS**2).any():
        _shorten(rows, sums, factor, columns)


def _shorten(rows: list[Tensor], sums: list[Tensor], factor: Tensor, columns: int) -> None:
    """Where rounding made a patient longer than `STEPS`, take away a little of it until it is not, also from `sums`."""
    for whole in rows:
        if whole.shape[1] > columns:  # the smaller ones were scaled in place
            whole.mul_(factor).round_()
    while (long := _squares(rows) * (1 + 2**-13) > STEPS**2).any():
        for whole, total in zip(rows, sums, strict=True):
            shorter = (whole[long] * (1 - 2**-6)).trunc()
            total.sub_((whole[long] - shorter).sum(dim=0).to(torch.int32))
            whole[long] = shorter


def _squares(rows: list[Tensor]) -> Tensor:
    """Squared length of each row over all groups, float64 [patients], to a relative 2^-13 (of float32 rows)."""
    total = torch.zeros(len(rows[0]), dtype=torch.float64, device=rows[0].device)
    for whole in rows:
        even = whole.shape[1] // _BLOCK * _BLOCK
        blocks = whole[:, :even].reshape(len(whole), even // _BLOCK, _BLOCK)
        for part in (blocks, whole[:, None, even:]):
            total += torch.linalg.vector_norm(part, dim=2).to(torch.float64).square().sum(dim=1)
    return total


def _add_noise(total: Tensor, noise: LatticeGaussian) -> None:
    drawn = np.empty(min(_NOISE, len(total)), np.int32)
    for start in range(0, len(total), _NOISE):
        piece = total[start : start + _NOISE]
        noise.fill(drawn[: len(piece)])
        piece += torch.from_numpy(drawn[: len(piece)]).to(total.device)
