"""A plain vision transformer (Dosovitskiy et al. 2021) for images of any size, in layers that Opacus can hook.

As in Beyer et al. 2022 ("Better plain ViT baselines") positions are sines and cosines, and the answer is read from
the mean over all patches. So no parameter depends on the size of the images, which the plan chooses: the table of
positions is made for the grid that comes in. MONAI's ViT fixes the size when it is built, learns or stores a table of
it, keeps its class token where hooks do not see it, and needs `einops`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

_LONGEST_PERIOD = 10_000.0  # of the slowest sine, in patches over 2 pi (Vaswani et al. 2017)
_INITIAL_DEVIATION = 0.02  # of linear weights (Touvron et al. 2021, DeiT)
_MLP_RATIO = 4


class Attention(nn.Module):
    """Self-attention of several heads, [n, tokens, width] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.queries_keys_values(x).view(n, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(queries, keys, values)
        answer: Tensor = self.out(seen.transpose(1, 2).reshape(n, tokens, width))
        return answer


class Block(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and added after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP_RATIO * width), nn.GELU(), nn.Linear(_MLP_RATIO * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        answer: Tensor = x + self.mlp(self.norm2(x))
        return answer


class VisionTransformer(nn.Module):
    """Images of one channel, float32 [n, 1, h, w], to logits [n, classes].

    A side that `patch` does not divide is filled with zeros at its end, as the preprocessing does around an image.
    """

    def __init__(self, classes: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch = patch
        self.patches = nn.Conv2d(1, width, kernel_size=patch, stride=patch)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INITIAL_DEVIATION)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        grid = self.patches(pad(x, (0, -width % self.patch, 0, -height % self.patch)))
        tokens = grid.flatten(2).transpose(1, 2) + positions(grid)
        answer: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return answer


def positions(grid: Tensor) -> Tensor:
    """Sines and cosines of each patch's row and column, [h * w, channels], for [n, channels, h, w].

    `channels` is a multiple of 4.
    """
    _, channels, height, width = grid.shape
    quarter = channels // 4
    rates = _LONGEST_PERIOD ** (-torch.arange(quarter, device=grid.device, dtype=grid.dtype) / quarter)

    def waves(side: int) -> Tensor:
        angles = torch.arange(side, device=grid.device, dtype=grid.dtype)[:, None] * rates
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    rows, columns = waves(height)[:, None].expand(-1, width, -1), waves(width).expand(height, -1, -1)
    return torch.cat((rows, columns), dim=2).reshape(height * width, channels)
