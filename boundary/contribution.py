"""The one seam that masked sums will replace: a vector sealed for the coordinator's eyes.

Context of every seal: which collection, by which hospital, for which exact order. So a contribution cannot be
moved to another round, claimed by another hospital, or answer another model than it was computed on.
"""

from collections.abc import Callable, Iterator

from boundary.canonical import canonical_bytes
from boundary.errors import CallerFault, UnsealFailed
from boundary.layout import ITEM_BYTES, VectorLayout
from boundary.messages import Collection
from boundary.sealing import (
    CHUNK_BYTES,
    FILE_KEY_BYTES,
    TAG_BYTES,
    SealingKey,
    UnsealingKey,
    seal_stream,
    unseal_stream,
)


def contribution_context(collection: Collection, silo: str, order: str) -> bytes:
    return canonical_bytes(["contribution v1", str(collection), silo, order])


def sealed_size(layout: VectorLayout) -> int:
    """The exact size in bytes of a sealed vector: anything else is refused before it is opened."""
    plain = layout.size * ITEM_BYTES
    chunks = max(1, -(-plain // CHUNK_BYTES))
    return plain + chunks * TAG_BYTES


def seal_contribution(
    read: Callable[[int], bytes], *, coordinator: SealingKey, context: bytes, file_key: bytes
) -> tuple[bytes, Iterator[bytes]]:
    """Give the sealed file key and the sealed chunks of what `read(n)` gives.

    `file_key` is 32 fresh bytes of a CSPRNG, used for this one file. Raises `CallerFault` for another length.
    """
    if len(file_key) != FILE_KEY_BYTES:  # 16 would quietly make it AES-128
        raise CallerFault(f"a file key has {FILE_KEY_BYTES} bytes")
    return coordinator.seal(file_key, context), seal_stream(read, file_key, context)


def open_contribution(
    read: Callable[[int], bytes], *, sealed_key: bytes, key: UnsealingKey, context: bytes
) -> Iterator[bytes]:
    """Yield the plain chunks (1 MiB of little-endian float32 each, the last shorter); raises `UnsealFailed`."""
    file_key = key.unseal(sealed_key, context)
    if len(file_key) != FILE_KEY_BYTES:
        raise UnsealFailed("the sealed file key has a wrong length")
    return unseal_stream(read, file_key, context)
