"""The check before round 1, that a sample's gradient is its own and nobody else's.

All that differential privacy promises rests on one number per patient, the length of its gradient, so a gradient that
holds a bit of somebody else makes the guarantee void without any sign of it. `models.private.prepare` changes what is
known to be wrong. Here the network at hand, with the loss at hand, is *tried*, in float64 on a copy:

- the answer to a sample is the same whatever is beside it,
- the loss of a batch is the mean, or the sum, of the losses of its samples alone,
- each sample's gradient by Opacus' hooks is the one that plain autograd gives for the sample alone, for every
  parameter, and every parameter has one.

A trial shows what is wrong for the samples it has seen. Networks that treat some samples otherwise than others, by
their values, could pass; MONAI's do no such thing.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from monai.losses import BarlowTwinsLoss, ContrastiveLoss
from monai.networks.layers import DropPath
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from models.errors import GradientsDiffer, LossMixesSamples, SamplesMix, UnfitNetwork, WithoutGradient

LARGEST_ERROR = 1e-6  # of a gradient's length; rounding leaves 1e-12 of it at most in MONAI's networks (measured)
LARGEST_CHANGE = 1e-9  # of an answer's length: the same sums, at most in another order
# Of a sample's whole gradient. What is shorter is measured against that: the gradient of a bias before a normalisation
# or a softmax is nothing but rounding.
_NOTHING = 1e-7
_JITTER = 0.01  # added to every weight, so that none has no effect just because it begins as zero or one

Loss = Callable[[Tensor, Tensor], Tensor]
Targets = Callable[[Tensor, torch.Generator], Tensor]
Reduction = Literal["mean", "sum"]
Gradients = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was shown: how the loss adds samples up, how many parameters were compared, the largest relative error."""

    reduction: Reduction
    parameters: int
    largest_error: float


def class_labels(answer: Tensor, generator: torch.Generator) -> Tensor:
    """Labels int64 [n] for logits [n, classes]; neighbours differ, so that a weight by class shows."""
    n, classes = answer.shape
    first = torch.randint(classes, (1,), generator=generator)
    return (first + torch.arange(n)) % classes


def voxel_labels(answer: Tensor, generator: torch.Generator) -> Tensor:
    """Masks uint8 [n, *sides] for logits [n, classes, *sides]; every class may be anywhere."""
    shape = (len(answer), *answer.shape[2:])
    return torch.randint(answer.shape[1], shape, generator=generator, dtype=torch.uint8)


def prove(
    network: nn.Module,
    shape: tuple[int, ...],
    loss: Loss,
    *,
    generator: torch.Generator,
    targets: Targets = class_labels,
) -> Proof:
    """Try a network of the CPU or any device with samples of `shape` (channels, sides); the network is left as it is.

    `loss` takes answers and what `targets` draws for them, and gives one number. Raises `UnfitNetwork`, `SamplesMix`,
    `LossMixesSamples`, `WithoutGradient` or `GradientsDiffer`. Takes about 14 times the memory of the float32 weights.
    """
    check_loss(loss)
    copied = _copy(network, generator)
    images = torch.rand(3, *shape, dtype=torch.float64, generator=generator)
    _check_company(copied, images)
    with torch.no_grad():
        answer = copied(images)
    wanted = targets(answer, generator)
    reduction = reduction_of(loss, answer, wanted)
    alone = [_alone(copied, loss, images[i : i + 1], wanted[i : i + 1]) for i in range(2)]
    hooked = _by_hooks(copied, loss, images[:2], wanted[:2], reduction)
    errors = dict.fromkeys(alone[0], 0.0)
    for i, expected in enumerate(alone):
        whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for name, gradient in expected.items():
            errors[name] = max(errors[name], _error(hooked[name], i, gradient, _NOTHING * whole))
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= LARGEST_ERROR:
        raise GradientsDiffer(worst, errors[worst])
    return Proof(reduction, len(errors), errors[worst])


def check_loss(loss: Loss) -> None:
    """Refuse losses that are known to mix samples, by what they are; raises `LossMixesSamples`.

    It gives the better reason. What counts is `reduction_of`.
    """
    for part in loss.modules() if isinstance(loss, nn.Module) else ():
        if reason := _mixing(part):
            raise LossMixesSamples(type(part).__name__, reason)


def reduction_of(loss: Loss, answer: Tensor, wanted: Tensor) -> Reduction:
    """Find out whether the gradients of a loss are those of the mean or of the sum of its samples' own.

    Raises `LossMixesSamples` if it is neither, `ValueError` if it gives more than one number.
    """
    name = type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", "the loss")
    answer = answer.detach().requires_grad_()
    whole = loss(answer, wanted)
    if whole.ndim != 0:
        raise ValueError(f"{name} gives shape {list(whole.shape)}, not one number")
    try:
        added = torch.stack([loss(answer[i : i + 1], wanted[i : i + 1]) for i in range(len(answer))]).sum()
    except ValueError as why:  # it had a value for the batch
        raise LossMixesSamples(name, f"has no value for a sample alone: {why}") from why
    slopes = [torch.autograd.grad(value, answer, retain_graph=True)[0] for value in (whole, added)]
    counts: dict[Reduction, int] = {"mean": len(answer), "sum": 1}
    for reduction, count in counts.items():
        if (slopes[0] - slopes[1] / count).norm() <= LARGEST_ERROR * slopes[0].norm():
            return reduction
    raise LossMixesSamples(name, "is neither the mean nor the sum of what each sample has alone")


def _mixing(part: nn.Module) -> str | None:
    match part:
        case ContrastiveLoss() | BarlowTwinsLoss():
            return "compares samples with each other"
        case nn.CrossEntropyLoss(reduction="mean") | nn.NLLLoss(reduction="mean"):
            if part.weight is not None:
                return "divides by the weights of all labels in the batch"
            if part.ignore_index >= 0:
                return "divides by how many labels in the batch are not ignored"
        case nn.Module(batch=True):  # DiceLoss, GeneralizedDiceLoss, TverskyLoss and others of MONAI
            return "batch=True adds samples up before it divides"
    return None


def _copy(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give the network in float64 on the CPU, as in training but without chance, every weight a little off."""
    copied = copy.deepcopy(network).to("cpu", torch.float64).train()
    for module in copied.modules():
        if isinstance(module, _DropoutNd | DropPath):
            module.eval()  # chance of this kind is each sample's own; it only could not be repeated
    with torch.no_grad():
        for parameter in _trainable(copied).values():
            parameter.grad = None
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator), alpha=_JITTER)
    return copied


def _trainable(network: nn.Module) -> Gradients:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def _check_company(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        answers = [network(images[[0, other]]) for other in (1, 2)]
    if not all(isinstance(answer, Tensor) and len(answer) == 2 for answer in answers):
        raise UnfitNetwork("", type(network).__name__, "it does not answer one tensor with a row for each sample")
    one, two = (answer[0] for answer in answers)
    change = float((one - two).norm() / one.norm())
    if not change <= LARGEST_CHANGE:
        raise SamplesMix(change)


def _alone(network: nn.Module, loss: Loss, image: Tensor, wanted: Tensor) -> Gradients:
    """One sample's gradients by plain autograd."""
    parameters = _trainable(network)
    found = torch.autograd.grad(loss(network(image), wanted), list(parameters.values()), allow_unused=True)
    gradients = dict(zip(parameters, found, strict=True))
    if unused := tuple(name for name, gradient in gradients.items() if gradient is None):
        raise WithoutGradient(unused)
    return gradients


def _by_hooks(network: nn.Module, loss: Loss, images: Tensor, wanted: Tensor, reduction: Reduction) -> Gradients:
    """Each parameter's gradients by Opacus, [samples, ...]. The network is of no other use after that.

    The images ask for a gradient of their own, for torch warns of a hook on a first layer whose input asks for none.
    """
    try:
        hooked = GradSampleModule(network, loss_reduction=reduction)
        loss(hooked(images.clone().requires_grad_()), wanted).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as why:  # also NotImplementedError, of layers with buffers
        if "can't allocate memory" in str(why):
            raise
        reason = str(why).splitlines()[0]
        raise UnfitNetwork("", type(network).__name__, f"it does not run under Opacus' hooks: {reason}") from why
    hooked.remove_hooks()  # they hold the network in a circle, and its memory with it
    return {name: parameter.grad_sample for name, parameter in _trainable(network).items()}  # type: ignore[attr-defined]


def _error(found: Tensor | None, sample: int, expected: Tensor, least: Tensor) -> float:
    """Relative error; infinite where hooks give nothing, or not one gradient for each sample."""
    if not isinstance(found, Tensor) or found.shape != (2, *expected.shape):
        return math.inf
    error = float((found[sample] - expected).norm() / torch.maximum(expected.norm(), least))
    return math.inf if math.isnan(error) else error
