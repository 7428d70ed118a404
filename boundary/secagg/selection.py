"""Random-k: which of the model's weights are in a round's sum, when the plan says that not all of them are.

The weights are cut into k runs of nearly equal length and one of each run is drawn, from the keystream of a key that
everybody computes from public values (`boundary.secagg.context.selection_key`). So all hospitals send the same ones,
nobody can steer which, the indices are sorted, and no list of all weights is ever made. Drawn once from a run of
length s, a weight stands for all s: multiplied by s, the sum is unbiased (Konecny et al. 2016, "Federated learning:
strategies for improving communication efficiency", section 3: random mask).
"""

import numpy as np
from numpy.typing import NDArray

from boundary.errors import CallerFault
from boundary.secagg.masks import AES_BLOCK, keystream_of

_WORD = 8


def selected(key: bytes, parameters: int, count: int) -> NDArray[np.int64]:
    """Give `count` different indices below `parameters`, sorted. `key` has 32 bytes. Raises `CallerFault`."""
    if not 1 <= count <= parameters:
        raise CallerFault(f"{count} of {parameters} weights")
    buffer = bytearray(count * _WORD + AES_BLOCK)  # `update_into` wants a cipher block to spare
    keystream_of(key, 0).update_into(bytes(count * _WORD), buffer)
    words = np.frombuffer(buffer, "<u8", count)
    starts, lengths = _runs(parameters, count)
    return starts + (words % lengths.astype(np.uint64)).astype(np.int64)


def spread(mean: NDArray[np.float32], key: bytes, parameters: int, *, unbiased: bool) -> NDArray[np.float32]:
    """Put the selected weights' values [count] back to float32 [parameters], with zeros between.

    `unbiased`: each stands for its whole run; otherwise hospitals carry over what they did not send.
    """
    whole = np.zeros(parameters, np.float32)
    values = mean * _runs(parameters, len(mean))[1].astype(np.float32) if unbiased else mean
    whole[selected(key, parameters, len(mean))] = values
    return whole


def _runs(parameters: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each run begins, and how long it is."""
    ends = np.arange(1, count + 1, dtype=np.int64) * parameters // count
    starts = np.concatenate([[np.int64(0)], ends[:-1]])
    return starts, ends - starts
