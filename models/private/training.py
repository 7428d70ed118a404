"""Local training with a guarantee per patient (DP-SGD; Abadi et al. 2016), several steps between two global models.

The unit is the patient with all images: patients are drawn by Poisson sampling, each one's mean gradient over at most K
images is clipped. How many there are, and what the loss is, never decides how far anything is scaled.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus import GradSampleModule
from torch import nn

from boundary.learning import Training
from models.errors import TrainingCancelled
from models.losses import image_losses
from models.private.keystream import KeyStream
from models.private.optimizer import PatientOptimizer
from models.private.sampling import pieces, poisson, rows_by_patient, some_of
from models.training import LocalData, ProximalTerm, batch, optimizer_for

# 16 images of 128 x 128, one volume of 64 x 64 x 64: Opacus unfolds the 27 neighbours of each voxel for each channel
MASKED_VOXELS_AT_ONCE = 2**18


@dataclass(frozen=True, slots=True)
class PrivateSteps:
    """The public numbers of a private training: nothing here may come from the patients that are there.

    `rate` is the probability of a patient to be in a step, `denominator` how many that are expected to be,
    `clip` the clipping norm C, `images` how many of a patient's images a step takes at most.
    """

    steps: int
    rate: float
    denominator: float
    clip: float
    noise_multiplier: float
    images: int


@dataclass(frozen=True, slots=True)
class PrivateTraining:
    """One training. `key` is 32 fresh bytes for sampling and noise, never used again.

    `at_once` images go through the network at a time, of large ones with masks fewer: memory, not the result, depends
    on it.
    """

    private: PrivateSteps
    key: bytes
    at_once: int = 16

    def run(
        self,
        module: nn.Module,
        data: LocalData,
        training: Training,
        *,
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool] = lambda: False,
        device: str = "cpu",
    ) -> None:
        """Train `module` in place; raises `TrainingCancelled`.

        An archive without a single image trains too, on noise: that nobody is there is not told.
        """
        private, stream = self.private, KeyStream(self.key)
        patients, at_once = rows_by_patient(data.patients), self.images_at_once(data)
        module.to(device).train()
        hooked = GradSampleModule(module, loss_reduction="sum")
        optimizer = PatientOptimizer(
            optimizer_for(module, training),
            noise_multiplier=private.noise_multiplier,
            max_grad_norm=private.clip,
            denominator=private.denominator,
            stream=stream,
        )
        proximal = ProximalTerm(module, training.proximal)
        optimizer.attach_step_hook(lambda _: proximal.add())  # after the noise
        with hooks(hooked):
            for step in range(1, private.steps + 1):
                if should_stop():
                    raise TrainingCancelled(step - 1)
                drawn = poisson(len(patients), private.rate, stream)
                sample = [some_of(patients[i], private.images, stream) for i in drawn]
                for piece in pieces(sample, at_once):
                    images, labels = batch(data, piece.rows, device)
                    loss = (image_losses(hooked(images), labels) * torch.from_numpy(piece.shares).to(device)).sum()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.accumulate(piece.runs, unfinished=piece.unfinished)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                on_step(step, private.steps)

    def images_at_once(self, data: LocalData) -> int:
        """Where every voxel is answered, a sample's gradients take many times the memory of its feature maps."""
        return min(self.at_once, max(1, MASKED_VOXELS_AT_ONCE // data.voxels)) if data.has_masks else self.at_once


@contextmanager
def hooks(hooked: GradSampleModule) -> Iterator[None]:
    """Have Opacus' hooks on a network for the time being."""
    try:
        with warnings.catch_warnings():
            # images need no gradient, so the first layer's hook is called without one for its input: as it should be
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            yield
    finally:
        hooked.remove_hooks()
