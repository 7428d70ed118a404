"""Reading an archive's files with a few processes, each driven by a thread of ours.

A file that keeps its process waiting for too long, or ends it, costs one refusal and a new process. One that ended its
process is tried once more in a fresh one: the kernel may have picked that process to save memory for somebody else.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, Self, TypeVar

from silo_agent.intake.archive import Item
from silo_agent.intake.encoding import Limits
from silo_agent.intake.errors import ArchiveMissing
from silo_agent.intake.facts import HeaderFacts, Known, PixelRefusal, Pixels
from silo_agent.intake.reader_process import END_SECONDS, Ended, ReaderProcess, Silent
from silo_agent.intake.refusals import Refusal

READ_SECONDS = 60.0  # for a header, and again for the pixels: 256 MB from a share that gives 5 MB/s
TOGETHER = 8  # files of which one question asks the headers: a process that waits for its next question reads nothing
_LOST_AFTER = 10  # files without an answer, one after the other
_LOOK_SECONDS = 10.0  # between two looks whether the work is still wanted, while one file is waited for

Made = TypeVar("Made")
MadeOut = TypeVar("MadeOut", covariant=True)  # noqa: PLC0105 - the same, where a protocol has it
Asked = TypeVar("Asked")


class ArchiveSilent(ArchiveMissing):
    """File after file does not answer: the archive's disk or share is gone, and not one file."""


class NoReader(Exception):
    """A process that reads does not come up at all, which is no file's fault."""


class Errand(Protocol[MadeOut]):
    """What is done with what a reading finds, in the thread that reads."""

    def note(self, header: HeaderFacts) -> Known: ...

    def wants(self, known: Known) -> bool:
        """Whether the image's pixels are needed."""
        ...

    def make(self, pixels: Pixels) -> MadeOut:
        """What is kept of them."""
        ...


@dataclass(frozen=True, slots=True)
class Found(Generic[Made]):
    """What reading a file found; `image` is None where it was not wanted. `lasting` as of `HeaderFacts`."""

    known: Known
    image: Made | PixelRefusal | None = None
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class _Job(Generic[Made]):
    item: Item
    errand: Errand[Made]
    future: "Future[Found[Made]]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _File:
    """What a job's item is while it stands open."""

    job: _Job[Any]
    path: Path


class Readers:
    """Up to `processes` of them, started when there is something to read. Use as a context manager.

    `patience` in seconds, for each question about a file. Leaving the context ends the processes at once.
    """

    def __init__(self, processes: int, limits: Limits, patience: float = READ_SECONDS) -> None:
        self.processes, self._limits, self._patience = processes, limits, patience
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._opening, self._silence = threading.Lock(), Silence()
        self._drivers: list[_Driver] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Empty):
            while (job := self._jobs.get_nowait()) is not None:
                job.future.cancel()
        for driver in self._drivers:
            self._jobs.put(None)
            driver.end()
        for driver in self._drivers:
            driver.join()

    def submit(self, item: Item, errand: Errand[Made]) -> "Future[Found[Made]]":
        """Have a file's header read and, if the errand wants them, its pixels.

        The future raises what the errand raises or opening the item, `ArchiveSilent`, and `NoReader`.
        """
        job = _Job(item, errand)
        self._jobs.put(job)
        if len(self._drivers) < self.processes:
            self._drivers.append(_Driver(self._jobs, self._limits, self._patience, self._opening, self._silence))
        return job.future


def in_order(
    asked: Iterable[Asked],
    submit: "Callable[[Asked], Future[Found[Made]] | None]",
    ahead: int,
    still: Callable[[], None],
) -> "Iterator[tuple[Asked, Found[Made] | None]]":
    """Results in the order of the questions, of which `ahead` are on their way. None where `submit` gave nothing.

    `still` is called now and then while one is waited for; what it raises ends the reading.
    """
    going: deque[tuple[Asked, Future[Found[Made]] | None]] = deque()
    for one in asked:
        going.append((one, submit(one)))
        if len(going) > ahead:
            yield _settled(*going.popleft(), still)
    while going:
        yield _settled(*going.popleft(), still)


def _settled(
    one: Asked, future: "Future[Found[Made]] | None", still: Callable[[], None]
) -> "tuple[Asked, Found[Made] | None]":
    if future is None:
        return one, None
    while not future.done():
        if not wait((future,), _LOOK_SECONDS).done:
            still()
    return one, future.result()


class Silence:
    """How many files in a row, of all processes, had no answer."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def heard(self) -> None:
        with self._lock:
            self._count = 0

    def again(self, patience: float) -> None:
        """Raises `ArchiveSilent` when it is too many."""
        with self._lock:
            self._count += 1
            if self._count >= _LOST_AFTER:
                raise ArchiveSilent(
                    f"{_LOST_AFTER} files of the archive one after the other did not answer within {patience:g} s: "
                    "check its disk or network share and scan again"
                )


class _Driver:
    """One thread and its process. The kernel ends the process with the thread that started it, so that is this one."""

    def __init__(
        self,
        jobs: "SimpleQueue[_Job[Any] | None]",
        limits: Limits,
        patience: float,
        opening: threading.Lock,
        silence: Silence,
    ) -> None:
        self._jobs, self._limits, self._patience = jobs, limits, patience
        self._opening, self._silence = opening, silence
        self._process: ReaderProcess | None = None
        self._next: _Job[Any] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """From another thread: the file that is being read is not waited for."""
        self._over.set()
        if (process := self._process) is not None:
            process.kill()

    def join(self) -> None:
        """Wait for its end, if it is not held by what cannot be interrupted: an archive that is being asked."""
        self._thread.join(END_SECONDS + 1)

    def _run(self) -> None:
        while (jobs := self._taken()) and not self._over.is_set():
            some = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            stack = ExitStack()
            try:
                self._read([file for job in some if (file := self._opened(job, stack)) is not None])
            finally:
                with suppress(OSError):  # what cannot be removed now is swept later
                    stack.close()
        self._drop()

    def _taken(self) -> list[_Job[Any]]:
        """What is there to do, nothing at the end. An item that has to be fetched comes alone: disks are small."""
        first, self._next = self._next or self._jobs.get(), None
        jobs = [] if first is None else [first]
        while first is not None and first.item.is_here and len(jobs) < TOGETHER and self._next is None:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            if job.item.is_here:
                jobs.append(job)
            else:
                self._next = job
        return jobs

    def _opened(self, job: _Job[Any], stack: ExitStack) -> _File | None:
        with _answering(job):
            with self._opening:
                path = stack.enter_context(job.item.opened())
            if not isinstance(path, Refusal):
                return _File(job, path)
            job.future.set_result(_refused(None, path, job.errand))
        return None

    def _read(self, files: list[_File], *, is_last: bool = False) -> None:
        """Give each file its result. `is_last`: they have ended a process before."""
        while files and not self._over.is_set():
            headers: list[HeaderFacts] = []
            settled = 0
            try:
                process = self._ready()
                for header in process.headers([file.path for file in files], self._patience):
                    self._silence.heard()
                    headers.append(header)
                for file, header in zip(files, headers, strict=True):
                    self._settle(file, header, process, settled)
                    settled += 1
            except (Silent, Ended) as why:
                self._drop()
                lost = len(headers) if len(headers) < len(files) else settled
                self._read(files[settled:lost])  # they answered once, and nothing of that is left
                self._lose(files[lost], headers[lost] if lost < len(headers) else None, why, is_last=is_last)
                files = files[lost + 1 :]
            except BaseException as why:  # noqa: BLE001 - no process can be had: it is raised where results are asked for
                for file in files[settled:]:
                    file.job.future.set_exception(why)
                return
            else:
                return

    def _settle(self, file: _File, header: HeaderFacts, process: ReaderProcess, number: int) -> None:
        """Raises `Silent` or `Ended`."""
        errand = file.job.errand
        with _answering(file.job):
            known = errand.note(header)
            pixels = process.pixels(number, self._patience) if errand.wants(known) else None
            self._silence.heard()
            image = errand.make(pixels) if isinstance(pixels, Pixels) else pixels
            lasting = header.lasting and not (isinstance(image, PixelRefusal) and not image.lasting)
            file.job.future.set_result(Found(known, image, lasting))

    def _lose(self, file: _File, header: HeaderFacts | None, why: Silent | Ended, *, is_last: bool) -> None:
        if isinstance(why, Ended) and not is_last and not self._over.is_set():
            self._read([file], is_last=True)
            return
        with _answering(file.job):
            if isinstance(why, Silent):
                self._silence.again(self._patience)
            code = why.code if isinstance(why, Ended) else Refusal.READ_TIMEOUT
            file.job.future.set_result(_refused(header, code, file.job.errand))

    def _ready(self) -> ReaderProcess:
        if self._process is None:
            self._process = ReaderProcess(self._limits)
            if self._over.is_set():
                self._process.kill()
            try:
                self._process.wait_until_ready()
            except (Silent, Ended):
                self._drop()
                raise NoReader("the process that reads files does not start; its output says why") from None
        return self._process

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


@contextmanager
def _answering(job: _Job[Any]) -> Iterator[None]:
    """What is raised meanwhile is raised where the result is asked for, unless it is the process that is lost."""
    try:
        yield
    except (Silent, Ended):
        raise
    except BaseException as why:  # noqa: BLE001 - as above
        job.future.set_exception(why)


def _refused(header: HeaderFacts | None, code: Refusal, errand: Errand[Made]) -> Found[Made]:
    """With what the header said, if it said anything before."""
    if header is None:
        return Found(errand.note(HeaderFacts.none(code)), lasting=False)
    return Found(errand.note(header), PixelRefusal(code), lasting=False)
