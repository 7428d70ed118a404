"""Low-rank adapters in a network's linear layers (Hu et al. 2021, arXiv:2106.09685), and their removal for a release.

An adapted layer keeps its own weight and bias under their names, so a base, a pattern or a pretrained file is about the
same parameters with and without adapters. A and B are plain linear layers inside it: Opacus' hooks and
`models.private` take their gradients sample by sample as of any other layer.
"""

from typing import cast

import torch
from torch import Tensor, nn

from boundary.low_rank import LowRank, fits
from models.errors import UnfitAdapters


class AdaptedLinear(nn.Linear):
    """W x + bias + scale B A x, for any x [..., in]."""

    lora_a: nn.Linear
    lora_b: nn.Linear
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.lora_b(self.lora_a(x))
        return super().forward(x) + self.scale * adapted

    @torch.no_grad()
    def merge(self) -> None:
        """Become the plain layer with W + scale B A."""
        product = self.lora_b.weight.double() @ self.lora_a.weight.double()
        self.weight.copy_(self.weight.double() + self.scale * product)
        del self.lora_a, self.lora_b, self.scale
        self.__class__ = nn.Linear  # type: ignore[assignment]  # it stays the object that the network holds


def adapt(network: nn.Module, how: LowRank) -> None:
    """Give the linear layers that `how.targets` names adapters, in the order of their names; raises `UnfitAdapters`.

    A is drawn from torch's global generator, uniformly as a linear layer's weight is (as the paper's own code does), B
    is zero. Everything that was drawn before stays as it is, and an adapted layer's own weight and bias are frozen.
    """
    layers = {name: module for name, module in network.named_modules() if type(module) is nn.Linear}
    for pattern in how.targets:
        if not any(fits(name, (pattern,)) for name in layers):
            raise UnfitAdapters(f"{pattern!r} fits no linear layer; there is {', '.join(sorted(layers)) or 'none'}")
    for name in sorted(layers):
        if fits(name, how.targets):
            _adapt(name, layers[name], how)


def merge(network: nn.Module) -> None:
    """Take all adapters into the weights they adapt: the catalogue's plain network is left, with its own names."""
    for module in list(network.modules()):
        if isinstance(module, AdaptedLinear):
            module.merge()


def _adapt(name: str, layer: nn.Linear, how: LowRank) -> None:
    if how.rank >= min(layer.in_features, layer.out_features):
        raise UnfitAdapters(
            f"rank {how.rank} of {name} ({layer.in_features} to {layer.out_features}) is no low rank: take less, or "
            "leave it out of model.lora.targets"
        )
    for own in layer.parameters(recurse=False):
        own.requires_grad_(False)
    layer.__class__ = AdaptedLinear
    adapted = cast("AdaptedLinear", layer)
    adapted.lora_a = nn.Linear(layer.in_features, how.rank, bias=False)
    adapted.lora_b = nn.Linear(how.rank, layer.out_features, bias=False)
    adapted.scale = how.scale
    nn.init.zeros_(adapted.lora_b.weight)
