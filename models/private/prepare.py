"""MONAI's networks made fit for gradients of one sample at a time by Opacus' hooks, or refused with the reason.

What changes, and what it does to the function that the network computes:

- BatchNorm mixes the samples of a batch: `GroupNorm` (Wu & He 2018) takes its place, another function. Its scale and
  shift are BatchNorm's own. All else leaves the function as it was.
- Activations work out of place. In place they overwrite what a hook still needs.
- MONAI's blocks that add in place, and ViT's class token and learnt positions: `models.private.blocks`.
- `norm_cross_attn` of a transformer block without cross-attention is taken out: it is never called, so it has nothing
  to train and nothing to exchange.

Frozen parameters (`requires_grad = False`, such as a table of positions) stay, and stay part of what is exchanged: a
hospital that builds the network has drawn its own, and only the study's are right. Their change is exactly zero.

This asks for no Opacus, for the coordinator builds networks too. `models.private.proof` shows that it has worked.
"""

from collections.abc import Callable
from math import gcd

from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import ViT
from monai.networks.nets.swin_unetr import WindowAttention
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from models.errors import UnfitNetwork
from models.private.blocks import OUT_OF_PLACE, ClassToken, LearntPatches, LearntPositions, LoneViT

USUAL_GROUPS = 32  # Wu & He 2018, section 3: the authors' default
_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
# Layers whose parameters have gradients by hooks: by Opacus' own rule or, where it has none (transposed convolutions,
# PReLU, ours), by torch.func on the layer alone. All are tried in tests/models/private.
_KNOWN = {
    nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.PReLU,
    nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d, nn.InstanceNorm3d,
    ClassToken, LearntPositions,
}  # fmt: skip


def prepare(network: nn.Module, groups: int = USUAL_GROUPS) -> nn.Module:
    """Change `network` in place and return it; raises `UnfitNetwork`, and then it is of no use.

    `groups` is how many GroupNorm has where the channels allow it, see `groups_for`. Parameters keep their names, but
    for ViT's `cls_token` and learnable `position_embeddings`, to which `.value` is added.
    """
    _replace_batch_norms(network, groups)
    for module in list(network.modules()):
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
        if type(module) in OUT_OF_PLACE:
            module.__class__ = OUT_OF_PLACE[type(module)]
        if type(module) is TransformerBlock and not module.with_cross_attention:
            module.norm_cross_attn = nn.Identity()
        if type(module) is PatchEmbeddingBlock and module.position_embeddings.requires_grad:
            _rehouse(module, "position_embeddings", LearntPositions)
            module.__class__ = LearntPatches
    if type(network) is ViT:
        if network.classification:
            _rehouse(network, "cls_token", ClassToken)
        network.__class__ = LoneViT
    for place, module in network.named_modules():
        if reason := _unfit(module):
            raise UnfitNetwork(place, type(module).__name__, reason)
    return network


def groups_for(channels: int, groups: int = USUAL_GROUPS) -> int:
    """Give the greatest common divisor of both, so all groups are equal; never groups of one channel.

    One channel by itself is InstanceNorm, of which nothing but the shift is left where a feature map is one pixel.
    """
    return max(1, min(gcd(groups, channels), channels // 2))


def _replace_batch_norms(network: nn.Module, groups: int) -> None:
    made: dict[nn.Module, nn.GroupNorm] = {}
    for place, module in list(network.named_modules(remove_duplicate=False)):  # every place of a shared one
        if type(module) in _BATCH_NORMS and place:
            if module not in made:
                made[module] = _group_norm(module, groups)
            network.set_submodule(place, made[module])


def _group_norm(old: _BatchNorm, groups: int) -> nn.GroupNorm:
    new = nn.GroupNorm(groups_for(old.num_features, groups), old.num_features, eps=old.eps, affine=old.affine)
    new.weight, new.bias = old.weight, old.bias  # None in both without `affine`
    return new.train(old.training)


def _rehouse(module: nn.Module, name: str, house: Callable[[nn.Parameter], nn.Module]) -> None:
    """Give a parameter to a module of its own, in its place."""
    parameter = getattr(module, name)
    delattr(module, name)
    setattr(module, name, house(parameter))


def _unfit(module: nn.Module) -> str | None:
    """Say why a layer cannot stay, or None. What is not known is not trusted."""
    own = {name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad}
    reason: str | None = None
    match module:
        case WindowAttention():
            reason = "windows are folded into the batch, so gradients would be those of windows, not of samples"
        case _BatchNorm():
            reason = "statistics of the batch mix samples"
        case _NormBase(track_running_stats=True):
            reason = "running statistics are kept of all samples and are not covered by privacy noise"
        case nn.LayerNorm(bias=None) if own:
            reason = "Opacus has no rule for a LayerNorm without bias"
        case nn.Conv2d() | nn.Conv3d() if module.padding_mode != "zeros":
            reason = f"Opacus takes padding to be zeros, here it is {module.padding_mode!r}"
        case _ if own and type(module) not in _KNOWN:
            reason = f"no rule is known for the gradients of its parameters {', '.join(sorted(own))}"
    return reason
