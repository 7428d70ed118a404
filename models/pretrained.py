"""The pinned file of pretrained weights, read from a folder of this party's own: the very bytes that were hashed.

Nothing here runs what a file says: it is safetensors, parsed by `boundary.pretrained_file`. The bytes are read once, so
a file that is exchanged between the hash and the reading is not possible.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boundary.errors import BadTensors
from boundary.pretrained import MAX_PRETRAINED_BYTES, Pretrained
from boundary.pretrained_file import read_pretrained
from boundary.tensors import manifest_of
from models.errors import PretrainedDiffers, PretrainedMissing, PretrainedUnfit

Tensors = dict[str, NDArray[np.float32]]


def begun_from(how: Pretrained, drawn: Tensors, folder: Path | None) -> Tensors:
    """The tensors `drawn` from a plan's seed with those of the pinned file in their places; `drawn` is left as it is.

    Raises `PretrainedMissing`, `PretrainedDiffers`, or `PretrainedUnfit` for a file that lacks what the network needs,
    has it in other shapes, or holds NaN or infinity.
    """
    data = _pinned_bytes(how, folder)
    try:
        given = read_pretrained(data, manifest_of(drawn), how)
    except BadTensors as why:
        raise PretrainedUnfit(f"{how.file}: {why}") from why
    for name, tensor in given.items():
        if not np.isfinite(tensor).all():
            raise PretrainedUnfit(f"{how.file}: {how.strip}{name} holds NaN or infinity")
    return drawn | {name: np.array(tensor, dtype=np.float32, order="C") for name, tensor in given.items()}


def _pinned_bytes(how: Pretrained, folder: Path | None) -> bytes:
    if folder is None:
        raise PretrainedMissing(how.file, how.sha256, "no folder for such files is named here")
    path = folder / how.file
    try:
        if not path.is_file():
            raise PretrainedMissing(how.file, how.sha256, f"it is not in {folder}: put it there")
        if path.stat().st_size > MAX_PRETRAINED_BYTES:
            raise PretrainedUnfit(f"{how.file} has more than {MAX_PRETRAINED_BYTES} bytes")
        data = path.read_bytes()
    except OSError as why:
        raise PretrainedMissing(how.file, how.sha256, f"{path} cannot be read ({why.strerror})") from why
    found = hashlib.sha256(data).hexdigest()
    if found != how.sha256:
        raise PretrainedDiffers(how.file, how.sha256, found)
    return data
