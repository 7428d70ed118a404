"""Disk, memory and shared memory, of any machine a test can think of."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from silo_agent.preflight import machine
from silo_agent.preflight.finding import Finding
from silo_agent.preflight.machine import ENOUGH_MEMORY_MB, ENOUGH_SHM_MB, LEAST_MEMORY_MB
from silo_agent.preflight.setting import Machine, Setting
from silo_agent.state import StateFolder

SettingOf = Callable[..., Setting]
MB = 2**20


def looked(look: Any, setting: Setting) -> Finding:
    finding: Finding = asyncio.run(look(setting))
    return finding


def full_of(total: int, free: int) -> Callable[[Path], tuple[int, int, int]]:
    return lambda _path: (total * MB, (total - free) * MB, free * MB)


def missing(_path: Path) -> tuple[int, int, int]:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_this_machine_is_measured(enrolled: StateFolder, setting_of: SettingOf) -> None:
    for look in (machine.disk, machine.cache, machine.memory, machine.shm):
        assert looked(look, setting_of(enrolled)).said


@pytest.mark.parametrize(("free", "verdict"), [(499, "fail"), (500, "warn"), (999, "warn"), (1000, "ok")])
def test_disk_is_compared_with_what_agent_toml_asks_for(
    site: Any, setting_of: SettingOf, free: int, verdict: str
) -> None:
    found = looked(machine.disk, setting_of(site.folder, machine=Machine(usage=full_of(10_000, free))))
    assert (found.verdict, f"{free:,} MiB free" in found.said, "asks for 500" in found.said) == (verdict, True, True)


def test_a_disk_that_is_gone_is_said(site: Any, setting_of: SettingOf) -> None:
    assert looked(machine.disk, setting_of(site.folder, machine=Machine(usage=missing))).verdict == "fail"


MEMORIES: dict[str, tuple[str, str | None, str, int]] = {
    "plenty": ("MemTotal: 9 kB\nMemAvailable: 8388608 kB\n", None, "ok", 8192),
    "some": ("MemAvailable: 2097152 kB\n", None, "warn", 2048),
    "too little": ("MemAvailable: 1048576 kB\n", None, "fail", 1024),
    "a container's limit below it": ("MemAvailable: 8388608 kB\n", f"{1024 * MB}\n", "fail", 1024),
    "a container's limit above it": ("MemAvailable: 8388608 kB\n", f"{90_000 * MB}\n", "ok", 8192),
    "a container without a limit": ("MemAvailable: 8388608 kB\n", "max\n", "ok", 8192),
}


@pytest.mark.parametrize(("meminfo", "limit", "verdict", "said"), MEMORIES.values(), ids=MEMORIES)
def test_memory_is_what_is_available_and_allowed(
    site: Any, setting_of: SettingOf, tmp_path: Path, meminfo: str, limit: str | None, verdict: str, said: int
) -> None:
    (tmp_path / "meminfo").write_text(meminfo)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    where = Machine(meminfo=tmp_path / "meminfo", memory_limit=tmp_path / "memory.max")
    found = looked(machine.memory, setting_of(site.folder, machine=where))
    assert (found.verdict, found.said.startswith(f"{said:,} MiB")) == (verdict, True), found


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable: many\n", "MemAvailable:\n", "\x00" * 100])
def test_a_machine_that_does_not_tell_its_memory_is_a_warning(
    site: Any, setting_of: SettingOf, tmp_path: Path, text: str
) -> None:
    (tmp_path / "meminfo").write_text(text)
    where = Machine(meminfo=tmp_path / "meminfo", memory_limit=tmp_path / "none")
    assert looked(machine.memory, setting_of(site.folder, machine=where)).verdict == "warn"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(available=st.integers(0, 100_000), limit=st.one_of(st.none(), st.integers(0, 100_000)))
def test_more_memory_never_makes_the_verdict_worse(
    site: Any, setting_of: SettingOf, tmp_path: Path, available: int, limit: int | None
) -> None:
    (tmp_path / "meminfo").write_text(f"MemAvailable: {available * 1024} kB\n")
    (tmp_path / "memory.max").write_text("max" if limit is None else str(limit * MB))
    where = Machine(meminfo=tmp_path / "meminfo", memory_limit=tmp_path / "memory.max")
    usable = available if limit is None else min(available, limit)
    expected = "fail" if usable < LEAST_MEMORY_MB else "warn" if usable < ENOUGH_MEMORY_MB else "ok"
    assert looked(machine.memory, setting_of(site.folder, machine=where)).verdict == expected


def test_a_containers_small_shared_memory_is_a_warning_with_the_option(site: Any, setting_of: SettingOf) -> None:
    for usage, verdict in ((full_of(64, 64), "warn"), (full_of(4096, 64), "warn"), (missing, "warn"),
                           (full_of(ENOUGH_SHM_MB, ENOUGH_SHM_MB), "ok")):  # fmt: skip
        found = looked(machine.shm, setting_of(site.folder, machine=Machine(usage=usage)))
        assert (found.verdict, "--shm-size" in found.fix) == (verdict, verdict == "warn"), found


def test_the_cache_is_written_and_read_back_and_left_as_it_was(site: Any, setting_of: SettingOf) -> None:
    (site.folder.cache / "study").mkdir()
    assert looked(machine.cache, setting_of(site.folder)).verdict == "ok"
    assert [path.name for path in site.folder.cache.iterdir()] == ["study"]


def test_a_cache_that_gives_back_other_bytes_is_said(
    site: Any, setting_of: SettingOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network share that loses what it was given between the write and the sync."""
    monkeypatch.setattr(os, "fsync", lambda file: os.ftruncate(file, 1000))
    found = looked(machine.cache, setting_of(site.folder))
    assert (found.verdict, "other bytes" in found.said) == ("fail", True), found


def test_a_cache_that_cannot_be_written_is_said(site: Any, setting_of: SettingOf) -> None:
    site.folder.cache.rmdir()
    site.folder.cache.write_text("a file in its place")
    found = looked(machine.cache, setting_of(site.folder))
    assert (found.verdict, "cannot be written" in found.said) == ("fail", True)


def test_a_link_in_the_place_of_the_trial_is_not_followed(site: Any, setting_of: SettingOf, tmp_path: Path) -> None:
    """An attack by whoever may write there: a link to a file of the archive, which must stay as it is."""
    (tmp_path / "precious").write_text("an image")
    (site.folder.cache / ".preflight").symlink_to(tmp_path / "precious")
    assert looked(machine.cache, setting_of(site.folder)).verdict == "fail"
    assert (tmp_path / "precious").read_text() == "an image"
