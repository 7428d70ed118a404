"""The folder of one rung: private, one at a time, and gone at the end, since images may lie in it.

A rung that is killed outright leaves it behind. The daemon's start, the next rung and `silo-agent withdraw` remove what
is left; while a rung runs, nobody withdraws past it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from silo_agent.errors import ConfigError

_NAME, _LOCK = "trial", ".trial.lock"


@contextmanager
def scratch_in(root: Path) -> Iterator[Path]:
    """An empty folder below the state folder `root`. Raises `ConfigError` if another rung runs, or it stays there."""
    with _held(root) as is_ours:
        if not is_ours:
            raise ConfigError("another rehearsal, dry run or baseline is running here: wait for it, or end it")
        scratch = root / _NAME
        _remove(scratch)
        scratch.mkdir(mode=0o700)
        try:
            yield scratch
        finally:
            _remove(scratch)


def clear(root: Path) -> bool:
    """Remove what a killed rung left; False if one is running. Raises `ConfigError` if it cannot be removed."""
    with _held(root) as is_ours:
        if is_ours:
            _remove(root / _NAME)
        return is_ours


@contextmanager
def _held(root: Path) -> Iterator[bool]:
    handle = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _remove(scratch: Path) -> None:
    if scratch.is_symlink():
        raise ConfigError(f"{scratch} is a link, which the agent never makes: look where it leads, then remove it")
    shutil.rmtree(scratch, ignore_errors=True)
    if scratch.exists():
        raise ConfigError(f"{scratch} cannot be removed, and patients' images may lie in it: look at its owner")
