"""MONAI's blocks with another `forward`: the same parameters and values, in a form that Opacus' hooks can bear.

Two things of MONAI 1.6.1 need it. Residual blocks add in place (`out += residual`), on a tensor that a hook has made a
view of. And ViT keeps its class token and its learnt positions as parameters of a module that does much else: Opacus
takes gradients of a parameter where the module that owns it is called, so each gets a small module of its own.

`prepare` turns a MONAI block into one of these by assigning `__class__`: it stays the object it is, with its
parameters, their names and order, and its mode.
"""

from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import ViT
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from torch import Tensor, cat, nn


class ResidualBlock(ResNetBlock):  # type: ignore[misc]  # MONAI has no types
    """ResNet's basic block without its in-place addition."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        answer: Tensor = self.act(out + residual)
        return answer


class ResidualBottleneck(ResNetBottleneck):  # type: ignore[misc]
    """The block of ResNet-50 and deeper, without its in-place addition."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        answer: Tensor = self.act(self.bn3(self.conv3(out)) + residual)
        return answer


class SegResidualBlock(ResBlock):  # type: ignore[misc]
    """SegResNet's block without its in-place addition."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.act(self.norm1(x)))
        answer: Tensor = self.conv2(self.act(self.norm2(out))) + x
        return answer


class UnetResidualBlock(UnetResBlock):  # type: ignore[misc]
    """The residual block of DynUNet and UNETR without its in-place addition."""

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm3(self.conv3(x)) if self.downsample else x
        out = self.norm2(self.conv2(self.lrelu(self.norm1(self.conv1(x)))))
        answer: Tensor = self.lrelu(out + residual)
        return answer


OUT_OF_PLACE: dict[type[nn.Module], type[nn.Module]] = {
    ResNetBlock: ResidualBlock,
    ResNetBottleneck: ResidualBottleneck,
    ResBlock: SegResidualBlock,
    UnetResBlock: UnetResidualBlock,
}


class LearntPositions(nn.Module):
    """Adds what it has learnt of each place: [n, tokens, width] to the same."""

    def __init__(self, value: nn.Parameter) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class ClassToken(nn.Module):
    """Puts its token before the others: [n, tokens, width] to [n, 1 + tokens, width]."""

    def __init__(self, value: nn.Parameter) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return cat((self.value.expand(len(x), -1, -1), x), dim=1)


class LearntPatches(PatchEmbeddingBlock):  # type: ignore[misc]
    """MONAI's patches with `LearntPositions`; those of a fixed table need no change."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embeddings(x)
        if self.proj_type == "conv":
            x = x.flatten(2).transpose(-1, -2)
        answer: Tensor = self.dropout(self.position_embeddings(x))
        return answer


class LoneViT(ViT):  # type: ignore[misc]
    """MONAI's ViT by itself: with `ClassToken`, and it answers the first of the two things MONAI's answers, a tensor.

    Inside another network (UNETR) ViT has no class token, its hidden states are asked for, and it stays as it is.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embedding(x)
        if self.classification:
            x = self.cls_token(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.classification_head(x[:, 0]) if self.classification else x
