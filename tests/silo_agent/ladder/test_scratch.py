"""Images may lie in a rung's folder: it is private, one rung's at a time, and gone whatever ends the rung."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from silo_agent.cli import app
from silo_agent.errors import ConfigError
from silo_agent.ladder.scratch import clear, scratch_in

RUNG = """
import asyncio, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored, and so had we
from silo_agent.commands.ladder import _finish
from silo_agent.ladder.scratch import scratch_in

class Worker:
    async def stop(self): pass

async def work(scratch):
    (scratch / "images").write_text("of patients")
    print("there", flush=True)
    await asyncio.sleep(60)

with scratch_in(Path(sys.argv[1])) as scratch:
    _finish(Worker(), work(scratch))
"""


def test_it_is_private_empty_and_gone(tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "left").write_text("by a killed rung")
    with scratch_in(tmp_path) as scratch:
        assert list(scratch.iterdir()) == []
        assert scratch.stat().st_mode & 0o777 == 0o700
        (scratch / "model").write_text("x")
    assert not scratch.exists()


@contextmanager
def started(root: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", RUNG, str(root)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        yield child


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=str)
def test_whoever_ends_it_the_images_are_gone(told: signal.Signals, tmp_path: Path) -> None:
    """SIGHUP is a closed terminal, in the middle of a baseline that takes hours."""
    with started(tmp_path) as child:
        assert (tmp_path / "trial" / "images").exists()
        child.send_signal(told)
        assert child.wait(20) != 0
    assert not (tmp_path / "trial").exists()


def test_what_a_killed_one_left_is_removed_by_whoever_comes_next(tmp_path: Path) -> None:
    with started(tmp_path) as child:
        assert clear(tmp_path) is False, "it runs"
        with pytest.raises(ConfigError, match="another rehearsal"), scratch_in(tmp_path):
            raise AssertionError
        assert (tmp_path / "trial" / "images").exists(), "and is left in peace"
        child.kill()
    assert (tmp_path / "trial" / "images").exists()
    assert clear(tmp_path) is True
    assert not (tmp_path / "trial").exists()


def test_nobody_withdraws_past_a_rung_that_has_their_images(tmp_path: Path) -> None:
    CliRunner().invoke(
        app,
        [
            "init",
            "--site",
            "st-olavs",
            "--dicom",
            str(tmp_path),
            "--labels",
            str(tmp_path),
            "--state",
            str(tmp_path / "s"),
        ],
    )
    words = ["withdraw", "MRN-1", "--decision", "keep", "--state", str(tmp_path / "s")]
    with scratch_in(tmp_path / "s"):
        assert "end it, then withdraw" in str(CliRunner().invoke(app, words).exception)
    (tmp_path / "s" / "trial").mkdir()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "s" / "trial").exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "archive"
    precious.mkdir()
    (precious / "1.dcm").write_text("x")
    (tmp_path / "trial").symlink_to(precious)
    with pytest.raises(ConfigError, match="is a link"), scratch_in(tmp_path):
        raise AssertionError
    assert (precious / "1.dcm").exists()


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("silo_agent.ladder.scratch.shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="patients' images may lie in it"), scratch_in(tmp_path):
        time.sleep(0)
    assert os.path.isdir(tmp_path / "trial")  # noqa: PTH112
