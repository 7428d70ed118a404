"""Releases of what reads images and makes inputs of them: part of every key under which something is remembered."""

from functools import cache
from importlib import metadata


@cache
def release_of(name: str) -> str | None:
    """Of an installed package, None where there is none. Looked up once: that takes as long as a thousand files."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
