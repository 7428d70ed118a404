"""What training makes small: the loss of each image by itself, which the labels' kind decides. One place for all.

The loss of an image depends on that image alone. A Dice over a whole batch would be another matter: what one patient
changes could not be clipped (`models.private.proof` refuses such losses).
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

SMOOTH = 1.0  # voxels, added above and below: an image without the class has a slope too, towards finding none of it


def image_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses [n], in nats. Of class labels, [n] for logits [n, classes], the cross-entropy.

    Of masks, [n, *sides] for logits [n, classes, *sides], the mean of two: the cross-entropy, over the voxels, and one
    minus the soft Dice, over the classes but the background, which is nearly everywhere and would drown the others.
    """
    wanted = labels.long()
    entropy = cross_entropy(logits, wanted, reduction="none")
    if labels.ndim == 1:
        return entropy
    return (entropy.flatten(1).mean(dim=1) + 1 - _soft_dice(logits.softmax(dim=1), wanted).mean(dim=1)) / 2


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of `image_losses`: one number."""
    return image_losses(logits, labels).mean()


def _soft_dice(shares: Tensor, wanted: Tensor) -> Tensor:
    """Dice of each image and class but the first, [n, classes - 1], with squares below (Milletari et al. 2016)."""
    parts = []
    for number in range(1, shares.shape[1]):
        share, there = shares[:, number].flatten(1), (wanted == number).flatten(1)
        both = (share * there).sum(dim=1)
        parts.append((2 * both + SMOOTH) / (share.square().sum(dim=1) + there.sum(dim=1) + SMOOTH))
    return torch.stack(parts, dim=1)
