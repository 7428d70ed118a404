"""Model inputs for a scan: made of images in the threads that read."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from boundary.images import Preprocessing

KEPT_BYTES = 32 * 1024 * 1024  # the most that glibc takes for its threshold, on 64 bit
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, mallopt(3)


class Preparation:
    """Makes inputs, with torch held to one thread: images are what is done at the same time. Close it afterwards."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._lock = threading.Lock()
        self._threads_before: int | None = None

    def input_of(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [H,W] in the modality's unit -> float32 [1,h,w], see `models.preprocessing.to_input`."""
        from models.preprocessing import to_input

        self._begin()
        return to_input(image, self._preprocessing)

    def inputs_of(
        self, volume: NDArray[np.float32], mask: NDArray[np.uint8], affine: NDArray[np.float64]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        """See `models.preprocessing.volume_inputs`."""
        from models.preprocessing import volume_inputs

        if self._preprocessing.spacing is None:  # only then torch takes part
            self._begin()
        return volume_inputs(volume, mask, affine, self._preprocessing)

    def _begin(self) -> None:
        with self._lock:
            if self._threads_before is None:
                self._threads_before = _one_thread_of_torch()
                keep_memory()

    def close(self) -> None:
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)


def keep_memory() -> None:
    """Have the C library keep what an image took for the next one.

    By itself it hands each of NumPy's intermediate results back to the kernel, which fills the next one with zeros,
    page by page: that is half of the time of making an input.
    """
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(threshold, KEPT_BYTES)


def _one_thread_of_torch() -> int:
    """How many it had."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before
