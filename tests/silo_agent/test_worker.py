"""The daemon's side of the child: whatever the child does, the answer is a code, and the daemon goes on."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from silo_agent.errors import WorkCancelled, WorkFailed
from silo_agent.worker import Worker

DONE = ("say", {"event": "done", "result": {"parameters": 7}})
Progress = list[tuple[int, int]]


def with_worker(
    log: Path, module: str, act: Callable[[Worker], Coroutine[Any, Any, Any]], *, patience: float = 5.0
) -> Any:
    async def work() -> Any:
        worker = Worker(log, 1, module, patience=patience)
        try:
            return await asyncio.wait_for(act(worker), 30)
        finally:
            await worker.stop()

    return asyncio.run(work())


def run(tmp_path: Path, module: str, *commands: str) -> list[Any]:
    """What became of each command: the result, or the error."""

    async def act(worker: Worker) -> list[Any]:
        outcomes: list[Any] = []
        for do in commands:
            try:
                outcomes.append(await worker.run({"do": do}, lambda _step, _steps: None))
            except (WorkFailed, WorkCancelled) as why:
                outcomes.append(why)
        return outcomes

    found: list[Any] = with_worker(tmp_path / "child.log", module, act)
    return found


def test_commands_go_to_one_child_one_after_the_other(tmp_path: Path, stub_child: Any) -> None:
    progress: Progress = []
    module = stub_child(train=[("say", {"event": "progress", "step": n, "steps": 2}) for n in (0, 1, 2)] + [DONE])

    async def act(worker: Worker) -> None:
        pids = set()
        for _ in range(3):
            assert await worker.run({"do": "train"}, lambda step, steps: progress.append((step, steps))) == {
                "parameters": 7
            }
            pids.add(worker.pid)
        assert len(pids) == 1

    with_worker(tmp_path / "child.log", module, act)
    assert progress == [(0, 2), (1, 2), (2, 2)] * 3


ENDS: dict[str, tuple[list[tuple[str, Any]], str, bool]] = {
    "killed with -9, as the kernel does when memory is short": ([("kill", None)], "OUT_OF_MEMORY", True),
    "ended by itself": ([("exit", 3)], "CHILD_DIED", True),
    "ended in the middle of a line": ([("raw", '{"event": "do'), ("exit", 0)], "CHILD_DIED", True),
    "closed its output and lives on": ([("close", None), ("sleep", 30)], "CHILD_DIED", True),
    "said a garbage line": ([("raw", "Loading model... done\n"), ("sleep", 30)], "INTERNAL", False),
    "said an endless line": ([("endless", 5_000_000), ("sleep", 30)], "INTERNAL", False),
    "said an unknown event": ([("say", {"event": "thumbnail", "image": "..."}), ("sleep", 30)], "INTERNAL", False),
    "counts backwards": ([("say", {"event": "progress", "step": -1, "steps": 2}), ("sleep", 30)], "INTERNAL", False),
    "says a number": ([("raw", "42\n"), ("sleep", 30)], "INTERNAL", False),
    "failed with a code": (
        [("say", {"event": "failed", "code": "NO_IMAGES", "detail": "none", "retryable": False})],
        "NO_IMAGES",
        False,
    ),
}


@pytest.mark.parametrize(("script", "code", "retryable"), ENDS.values(), ids=ENDS)
def test_a_child_that_fails_is_an_answer_and_the_next_command_gets_a_working_one(
    tmp_path: Path, stub_child: Any, script: list[tuple[str, Any]], code: str, retryable: bool
) -> None:
    failed, then = run(tmp_path, stub_child(train=script, scan=[DONE]), "train", "scan")
    assert isinstance(failed, WorkFailed)
    assert (failed.code, failed.retryable) == (code, retryable)
    assert then == {"parameters": 7}


def test_killed_from_outside_in_the_middle_of_its_work(tmp_path: Path, stub_child: Any) -> None:
    module = stub_child(train=[("say", {"event": "progress", "step": 1, "steps": 9}), ("sleep", 60)])

    async def act(worker: Worker) -> None:
        def kill(_step: int, _steps: int) -> None:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)

        with pytest.raises(WorkFailed, match=r"signal 9; see .*child.log"):
            await worker.run({"do": "train"}, kill)

    with_worker(tmp_path / "child.log", module, act)


# --- cancelling --------------------------------------------------------------------------------------
def test_a_cancel_is_obeyed_and_the_child_stays(tmp_path: Path, stub_child: Any) -> None:
    module = stub_child(train=[("say", {"event": "progress", "step": 0, "steps": 9}), ("obey", None)], scan=[DONE])

    async def act(worker: Worker) -> None:
        cancelling: list[asyncio.Task[None]] = []
        with pytest.raises(WorkCancelled):
            await worker.run(
                {"do": "train"}, lambda _step, _steps: cancelling.append(asyncio.create_task(worker.cancel()))
            )
        pid = worker.pid
        assert await worker.run({"do": "scan"}, lambda _step, _steps: None) == {"parameters": 7}
        assert worker.pid == pid
        await asyncio.gather(*cancelling)

    with_worker(tmp_path / "child.log", module, act)


def test_a_child_that_does_not_hear_the_cancel_is_ended(tmp_path: Path, stub_child: Any) -> None:
    module = stub_child(train=[("say", {"event": "progress", "step": 0, "steps": 9}), ("sleep", 60)])

    async def act(worker: Worker) -> None:
        cancelling: list[asyncio.Task[None]] = []
        with pytest.raises(WorkCancelled):
            await worker.run(
                {"do": "train"}, lambda _step, _steps: cancelling.append(asyncio.create_task(worker.cancel()))
            )
        await asyncio.gather(*cancelling)

    with_worker(tmp_path / "child.log", module, act, patience=0.3)


def test_a_cancel_while_the_child_is_starting_counts(tmp_path: Path, stub_child: Any) -> None:
    module = stub_child(train=[DONE])

    async def act(worker: Worker) -> None:
        running = asyncio.create_task(worker.run({"do": "train"}, lambda _step, _steps: None))
        await asyncio.sleep(0)  # it has the lock and starts the child
        await worker.cancel()
        with pytest.raises(WorkCancelled):
            await running

    with_worker(tmp_path / "child.log", module, act)


def test_nothing_to_cancel_is_fine(tmp_path: Path, stub_child: Any) -> None:
    with_worker(tmp_path / "child.log", stub_child(), lambda worker: worker.cancel())


# --- the end -----------------------------------------------------------------------------------------
def test_stopping_ends_an_idle_child_and_kills_a_stubborn_one(tmp_path: Path, stub_child: Any) -> None:
    module = stub_child(train=[("say", {"event": "progress", "step": 0, "steps": 9}), ("sleep", 60)])

    async def act(worker: Worker) -> None:
        started = asyncio.Event()
        running = asyncio.create_task(worker.run({"do": "train"}, lambda _step, _steps: started.set()))
        await started.wait()
        pid, begun = worker.pid, time.monotonic()
        running.cancel()
        await worker.stop()
        assert time.monotonic() - begun < 3
        assert pid is not None
        assert not psutil.pid_exists(pid)

    with_worker(tmp_path / "child.log", module, act)


def test_a_stop_that_was_interrupted_is_gone_on_with(tmp_path: Path, stub_child: Any) -> None:
    """Found by a test: the agent was told to stop while it was ending an idle child, and left it behind."""
    module = stub_child(train=[("say", {"event": "progress", "step": 0, "steps": 9}), ("sleep", 60)])

    async def act(worker: Worker) -> None:
        started = asyncio.Event()
        running = asyncio.create_task(worker.run({"do": "train"}, lambda _step, _steps: started.set()))
        await started.wait()
        running.cancel()
        pid = worker.pid
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.05)
        stopping.cancel()
        await asyncio.wait([stopping])
        await worker.stop()
        assert pid is not None
        assert not psutil.pid_exists(pid)

    with_worker(tmp_path / "child.log", module, act)


def test_the_childs_log_does_not_grow_for_ever(tmp_path: Path, stub_child: Any) -> None:
    (tmp_path / "child.log").write_bytes(b"x" * 5_000_001)
    run(tmp_path, stub_child(scan=[DONE]), "scan")
    assert (tmp_path / "child.log").stat().st_size == 0
    assert (tmp_path / "child.1.log").stat().st_size == 5_000_001


def test_the_child_imports_nothing_from_the_folder_the_agent_was_started_in(
    tmp_path: Path, stub_child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, stub_child(scan=[DONE]), "scan") == [{"parameters": 7}]
