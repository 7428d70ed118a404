"""The loss of an image: what the books say, and of nobody else."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.losses import SMOOTH, image_losses, mean_loss

SHAPES = [(9, 7), (4, 6, 5)]


def drawn(classes: int, sides: tuple[int, ...], count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, classes, *sides, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count, *sides), generator=generator, dtype=torch.uint8)


def test_of_class_labels_it_is_the_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(image_losses(logits, labels), cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(mean_loss(logits, labels), cross_entropy(logits, labels))


@pytest.mark.parametrize("sides", SHAPES)
@pytest.mark.parametrize("classes", [2, 4])
def test_of_masks_it_is_the_mean_of_cross_entropy_and_soft_dice(classes: int, sides: tuple[int, ...]) -> None:
    logits, masks = drawn(classes, sides)
    for found, answer, mask in zip(image_losses(logits, masks), logits, masks, strict=True):
        shares = answer.softmax(dim=0)
        entropy = -shares.log().gather(0, mask.long()[None]).mean()
        dice = []
        for k in range(1, classes):
            there = (mask == k).double()
            above, below = 2 * (shares[k] * there).sum(), (shares[k] ** 2).sum() + (there**2).sum()
            dice.append((above + SMOOTH) / (below + SMOOTH))
        torch.testing.assert_close(found, (entropy + 1 - sum(dice) / len(dice)) / 2)


@pytest.mark.parametrize("sides", SHAPES)
def test_an_image_has_its_loss_whatever_is_beside_it(sides: tuple[int, ...]) -> None:
    logits, masks = drawn(3, sides)
    alone = torch.cat([image_losses(logits[i : i + 1], masks[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(image_losses(logits, masks), alone, rtol=1e-12, atol=0)


def test_an_image_without_the_class_has_a_slope_towards_finding_none_of_it() -> None:
    logits = torch.zeros(1, 2, 6, 6, requires_grad=True)
    image_losses(logits, torch.zeros(1, 6, 6, dtype=torch.uint8)).sum().backward()
    assert (logits.grad[:, 1] > 0).all()
    assert (logits.grad[:, 0] < 0).all()


def test_what_is_right_and_sure_costs_nothing() -> None:
    _, masks = drawn(3, (8, 8))
    sure = 100.0 * torch.nn.functional.one_hot(masks.long(), 3).permute(0, 3, 1, 2).double()
    assert image_losses(sure, masks).max() < 1e-6
