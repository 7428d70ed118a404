"""Checks of the machine: disk, writing, memory, shared memory."""

import os
from pathlib import Path

from silo_agent.preflight.finding import Check, Finding, fail, ok, warn
from silo_agent.preflight.setting import Setting

# MiB. The child has 540 after its imports (torch 2.13, MONAI 1.6, measured on Linux); the smallest network and its
# images add a few hundred, densenet121 with a guarantee per patient and 16 images at once about 3000.
LEAST_MEMORY_MB, ENOUGH_MEMORY_MB = 1536, 4096
ENOUGH_SHM_MB = 128  # containers start with 64, too little for the workers of torch and for NCCL
_TRIED = ".preflight"
_TRIED_BYTES = 1024 * 1024


async def disk(setting: Setting) -> Finding:
    """Space under the state folder against `min_free_disk_mb`, below which the agent reports low disk."""
    least = setting.config.resources.min_free_disk_mb
    try:
        free = setting.machine.usage(setting.folder.root)[2] // 2**20
    except OSError as why:
        return fail(Check.DISK, f"{setting.folder.root}: {why.strerror}", "Mount the disk of the state folder")
    said = f"{free:,} MiB free under {setting.folder.root}, agent.toml asks for {least:,}"
    if free < least:
        return fail(Check.DISK, said, "Give the state folder a larger disk; nothing in it or in the archive is spare")
    if free < 2 * least:
        return warn(Check.DISK, said, "Give the state folder a larger disk before the next study")
    return ok(Check.DISK, said)


async def cache(setting: Setting) -> Finding:
    """Both ways: what is written under the cache is synced to the disk and read back."""
    path, data = setting.folder.cache / _TRIED, setting.entropy(_TRIED_BYTES)
    try:
        same = _written_and_read(path, data)
    except OSError as why:
        fix = f"Make {setting.folder.cache} a folder on a disk with space that the agent's user may write"
        return fail(Check.CACHE, f"{setting.folder.cache} cannot be written and read back: {why.strerror}", fix)
    if not same:
        said = f"{setting.folder.cache} gives back other bytes than were written"
        return fail(Check.CACHE, said, "Have this disk or share examined, and move the state folder to another")
    return ok(Check.CACHE, f"{setting.folder.cache} is written and read back")


def _written_and_read(path: Path, data: bytes) -> bool:
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            return file.read() == data
    finally:
        path.unlink(missing_ok=True)


async def memory(setting: Setting) -> Finding:
    """MemAvailable of proc(5), or the container's limit where that is less."""
    try:
        found = _available_mb(setting.machine.meminfo.read_text("ascii"))
    except (OSError, ValueError, LookupError):
        return warn(Check.MEMORY, f"{setting.machine.meminfo} does not tell", "Run the check on Linux, as the agent")
    limit = _limit_mb(setting.machine.memory_limit)
    free, whose = (found, "available") if limit is None or limit >= found else (limit, "allowed by the container")
    said = f"{free:,} MiB {whose}"
    if free < LEAST_MEMORY_MB:
        return fail(Check.MEMORY, said, f"Give the agent {ENOUGH_MEMORY_MB:,} MiB; below {LEAST_MEMORY_MB:,} none fits")
    if free < ENOUGH_MEMORY_MB:
        return warn(Check.MEMORY, said, f"Give the agent {ENOUGH_MEMORY_MB:,} MiB: large networks may not fit")
    return ok(Check.MEMORY, said)


def _available_mb(text: str) -> int:
    """The line `MemAvailable: 1234 kB`. Raises `ValueError`, `LookupError`."""
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(rows["MemAvailable"].split()[0]) // 1024


def _limit_mb(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None  # no cgroup v2, or the root's
    return int(text) // 2**20 if text.isdecimal() else None


async def shm(setting: Setting) -> Finding:
    path = setting.machine.shared_memory
    fix = f"Mount {path} with at least {ENOUGH_SHM_MB} MiB (docker run --shm-size, emptyDir medium Memory)"
    try:
        total, _, free = setting.machine.usage(path)
    except OSError as why:
        return warn(Check.SHM, f"{path}: {why.strerror}", fix)
    said = f"{path} has {total // 2**20:,} MiB, {free // 2**20:,} free"
    return ok(Check.SHM, said) if min(total, free) >= ENOUGH_SHM_MB * 2**20 else warn(Check.SHM, said, fix)
