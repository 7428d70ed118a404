import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, pad

from models.vision_transformer import VisionTransformer, positions


def small() -> VisionTransformer:
    return VisionTransformer(2, patch=8, width=32, depth=2, heads=2)


def test_every_place_has_its_own_position_whatever_the_size() -> None:
    table = positions(torch.zeros(1, 32, 5, 7, dtype=torch.float64))
    assert table.shape == (35, 32)
    assert (torch.cdist(table, table) + 9 * torch.eye(35)).min() > 0.5
    larger = positions(torch.zeros(1, 32, 9, 7, dtype=torch.float64))
    torch.testing.assert_close(larger[:35], table)
    assert table.abs().max() <= 1


def test_a_side_that_no_patch_divides_is_filled_with_zeros_at_its_end() -> None:
    network, images = small(), torch.rand(2, 1, 13, 20)
    with torch.no_grad():
        assert torch.equal(network(images), network(pad(images, (0, 4, 0, 3))))


def test_the_order_of_patches_matters() -> None:
    network, images = small(), torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(network(images), network(images.roll(8, dims=3)), atol=1e-6)


def test_it_learns_where_something_is() -> None:
    torch.manual_seed(2)
    labels = torch.arange(40) % 2
    images = torch.rand(40, 1, 24, 24) * 0.5
    images[labels == 1, :, :, :8] += 0.4
    images[labels == 0, :, :, 16:] += 0.4
    network = small()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("size", [(16, 16), (20, 40)])
def test_it_can_be_exported_as_the_released_model_is(size: tuple[int, int]) -> None:
    network = small().eval()
    images = torch.rand(2, 1, *size)
    batch = {0: torch.export.Dim.AUTO}
    exported = torch.export.export(network, (images,), dynamic_shapes=(batch,)).module()
    images = torch.rand(5, 1, *size)
    torch.testing.assert_close(exported(images), network(images))


def test_it_needs_neither_monai_nor_einops() -> None:
    code = "import sys, models.vision_transformer; sys.exit(bool({'monai', 'einops'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
