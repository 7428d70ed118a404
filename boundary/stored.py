"""How a weight is stored on the wire; in memory all is float32. Plans are read where NumPy is not: not here either."""

from typing import Literal

Dtype = Literal["float32", "bfloat16"]
STORED: dict[Dtype, tuple[str, int]] = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}  # safetensors' name, bytes


def stored_bits(dtype: Dtype) -> int:
    """Of one weight on the wire."""
    return 8 * STORED[dtype][1]
