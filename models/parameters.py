"""Networks as named float32 arrays: what is exchanged between hospitals, and how a study begins."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from boundary.learning import ModelChoice
from boundary.tensors import TensorManifest, manifest_of
from models.catalogue import build
from models.errors import UnsharedState, WrongTensors
from models.pretrained import begun_from

Tensors = dict[str, NDArray[np.float32]]


def to_tensors(module: nn.Module) -> Tensors:
    """Copy all parameters to float32 C-contiguous arrays on the CPU, by name.

    Frozen ones too (a table of positions, say): who builds the network anew has not drawn the same, and whether
    something is trained must not decide what a model consists of. What they change by in a round is exactly zero.

    Raises `UnsharedState` if the module has a floating-point buffer (BatchNorm's running statistics), which
    would be lost, or a parameter that is not float32, which would be rounded.
    """
    lost = [name for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    if lost:
        raise UnsharedState(f"buffers would be lost: {', '.join(lost)}")
    rounded = [name for name, parameter in module.named_parameters() if parameter.dtype != torch.float32]
    if rounded:
        raise UnsharedState(f"parameters are not float32: {', '.join(rounded)}")
    return {
        name: np.array(parameter.detach().cpu().numpy(), dtype=np.float32, order="C")
        for name, parameter in module.named_parameters()
    }


def load_tensors(module: nn.Module, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy arrays into the module's parameters, wherever they live. Values are not looked at.

    Raises `WrongTensors` unless names, shapes and dtypes are exactly the module's; then nothing was changed.
    """
    parameters = dict(module.named_parameters())
    if parameters.keys() != tensors.keys():
        missing, extra = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
        raise WrongTensors(f"missing {missing or 'nothing'}, not of this model {extra or 'nothing'}")
    for name, parameter in parameters.items():
        tensor = tensors[name]
        if tensor.dtype != np.float32 or tensor.shape != tuple(parameter.shape):
            raise WrongTensors(f"{name}: {tensor.dtype}{tensor.shape}, not float32{tuple(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(tensors[name]))  # copies: received arrays may be read-only views


def train_only(module: nn.Module, names: Collection[str]) -> None:
    """Freeze every parameter that is not among `names`; one that the network itself has frozen stays so."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in names)


def initial_tensors(choice: ModelChoice, classes: int, weights: Path | None = None) -> Tensors:
    """The weights a study begins with: a function of the plan alone, on one version of torch and MONAI.

    `weights` is the folder where this party has files of pretrained weights. Leaves torch's global generators as they
    were. Raises `UnknownModel`, `UnfitAdapters`, or as `models.pretrained.begun_from` where the plan pins a file.
    """
    drawn = _drawn(choice, classes)
    return drawn if choice.pretrained is None else begun_from(choice.pretrained, drawn, weights)


def manifest(choice: ModelChoice, classes: int) -> TensorManifest:
    """Names and shapes of the choice's tensors, in wire order; raises `UnknownModel` or `UnfitAdapters`."""
    return manifest_of(_drawn(choice, classes))


def _drawn(choice: ModelChoice, classes: int) -> Tensors:
    with torch.random.fork_rng(devices=[]):  # networks are built on the CPU and draw there
        torch.default_generator.manual_seed(choice.initial_seed)
        return to_tensors(build(choice, classes))
