"""The daemon's side of the child process that touches patients' images.

Commands go in and events come out as JSON lines; arrays stay in files. The child is kept warm for the study, so
that importing torch and MONAI is paid once. The heartbeat does not depend on it, and its death is an answer.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from silo_agent.errors import WorkCancelled, WorkFailed

_log = logging.getLogger("silo_agent.worker")
_LINE_LIMIT = 4 * 1024 * 1024
_STOP_SECONDS = 2.0  # the child keeps nothing that a kill could spoil; who stops the agent should not wait
_CANCEL_SECONDS = 20.0  # a step of a large network, or one huge file; then the child is ended
_LOG_BYTES = 5_000_000
CHILD_MODULE = "silo_agent.trainer"
OnProgress = Callable[[int, int], None]


def untold(_step: int, _steps: int) -> None:
    """Progress that stays here."""


class Worker:
    """One child process, started at the first command. Not re-entrant: one command at a time."""

    def __init__(
        self, log: Path, threads: int, module: str = CHILD_MODULE, *, patience: float = _CANCEL_SECONDS
    ) -> None:
        self._log_path, self._threads, self._module = log, threads, module
        self._process: asyncio.subprocess.Process | None = None
        self._cancelled = self._is_told = self._is_paused = False
        self._busy, self._idle = asyncio.Lock(), asyncio.Event()
        self._patience = patience

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child if it is not running; it warms up by itself."""
        if self._process is not None and self._process.returncode is None:
            return
        self._rotate_log()
        log = self._log_path.open("ab")
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-u", "-P", "-m", self._module, "--threads", str(self._threads),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                limit=_LINE_LIMIT, start_new_session=True,  # Ctrl-C is the daemon's to handle
            )  # fmt: skip
        finally:
            log.close()
        _log.info("child process %s started", self._process.pid)

    def _rotate_log(self) -> None:
        """Keep the last two logs: what libraries print has no other limit."""
        if self._log_path.exists() and self._log_path.stat().st_size > _LOG_BYTES:
            self._log_path.replace(self._log_path.with_suffix(".1.log"))

    async def run(self, command: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
        """Do one command. Raises `WorkFailed` with a code, or `WorkCancelled`."""
        async with self._busy:
            self._cancelled = False
            self._idle.clear()
            try:
                await self.start()
                if self._cancelled:  # while the child was starting
                    raise WorkCancelled("the work was stopped before it began")
                await self._say(command)
                self._is_told = True
                if self._is_paused:  # before there was anything to pause
                    await self._say({"do": "pause"})
                return await self._listen(on_progress)
            except (BrokenPipeError, ConnectionResetError) as why:
                raise await self._died() from why
            finally:
                self._is_told = self._is_paused = False
                self._idle.set()

    async def _say(self, command: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise BrokenPipeError
        process.stdin.write(json.dumps(command).encode() + b"\n")
        await process.stdin.drain()

    async def _listen(self, on_progress: OnProgress) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdout is None:
            raise BrokenPipeError
        while (event := await self._event(process.stdout)) is not None:
            match event:
                case {"event": "progress", "step": int(step), "steps": int(steps)} if 0 <= step <= steps:
                    on_progress(step, steps)
                case {"event": "done", "result": dict(result)}:
                    return result
                case {"event": "cancelled"}:
                    raise WorkCancelled("the work was stopped")
                case {"event": "failed", "code": str(code), "detail": str(detail), "retryable": bool(retryable)}:
                    raise WorkFailed(code, detail, retryable=retryable)
                case other:
                    raise await self._nonsense(repr(other))
        raise await self._died()

    async def _event(self, events: asyncio.StreamReader) -> object:
        """The next event, None at the end. What is not a whole JSON line ends the child."""
        try:
            line = await events.readline()
            return json.loads(line) if line.endswith(b"\n") else None
        except ValueError as why:  # not JSON, or a line without an end
            raise await self._nonsense(str(why)) from why

    async def _nonsense(self, what: str) -> WorkFailed:
        """We no longer know what the child is answering: end it, the next command gets a fresh one."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        return WorkFailed("INTERNAL", f"the child said what is no event: {what:.200}; see {self._log_path}")

    async def _died(self) -> Exception:
        if self._process is None:
            return WorkFailed("CHILD_DIED", "the child process was not running", retryable=True)
        process, self._process = self._process, None
        ours = False
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                status = await process.wait()
        except TimeoutError:  # it closed its output and lives on
            ours = True
            process.kill()
            status = await process.wait()
        if self._cancelled:
            return WorkCancelled("the child was ended")
        # -9 without our doing is nearly always the kernel's out-of-memory killer
        code = "OUT_OF_MEMORY" if status == -9 and not ours else "CHILD_DIED"
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return WorkFailed(code, f"the child process ended with {how}; see {self._log_path}", retryable=True)

    async def cancel(self) -> None:
        """Have the running command stop at its next step, and end the child if it does not. None running is fine."""
        if not self._busy.locked():
            return
        self._cancelled = True
        with suppress(BrokenPipeError, ConnectionResetError):
            await self._say({"do": "cancel"})
        try:
            async with asyncio.timeout(self._patience):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("the child did not stop within %.0f s and is ended", self._patience)
            if self._process is not None and self._process.returncode is None:
                self._process.kill()

    async def pause(self, *, is_paused: bool) -> None:
        """Have the running command hold still after its step, or go on. None running is fine."""
        if not self._busy.locked():
            return
        self._is_paused = is_paused
        if self._is_told and not self._cancelled:
            with suppress(BrokenPipeError, ConnectionResetError):
                await self._say({"do": "pause" if is_paused else "resume"})

    async def stop(self) -> None:
        """End the child: close its input, wait, then kill. Cancelled in between, the next call goes on with it."""
        process = self._process
        if process is None:
            return
        self._cancelled = True
        if process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            _log.info("child process ended")
        if self._process is process:
            self._process = None
