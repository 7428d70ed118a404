from collections.abc import Iterator

import numpy as np
import pytest
import torch

from models.training import LocalData


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data() -> LocalData:
    """40 noisy images of 16 x 16, two per patient: those of class 1 have a bright left half."""
    random = np.random.default_rng(7)
    labels = random.integers(0, 2, 40)
    images = random.random((40, 1, 16, 16), dtype=np.float32) * 0.5
    images[labels == 1, :, :, :8] += 0.4
    return LocalData(images, labels, np.arange(40) // 2)
