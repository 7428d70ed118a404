"""Files are read by processes of their own: whatever a file does to one, it costs that file and nothing else."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.hospitals.writing import Identity, write_image
from silo_agent.errors import WorkCancelled
from silo_agent.intake import reader_process, readers
from silo_agent.intake.archive import Item, folder_inventory
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import HeaderFacts, Known, PixelRefusal, Pixels
from silo_agent.intake.image import StoredImage, quiet, read_image
from silo_agent.intake.opened import OpenFile
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.readers import ArchiveSilent, NoReader
from silo_agent.intake.reading import Looked, Reading
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.withdrawn import Withdrawn

NAMES = Pseudonyms(Withdrawn(b"the hospital's master key"))
ALL = ("CT", "CR", "DX", "US", "MR")


@dataclass(frozen=True, slots=True)
class TestItem:
    """A file that may act when it is opened."""

    __test__ = False
    path: Path
    acts: Callable[[], object] = lambda: None
    state: bytes | None = None
    gives: Refusal | None = None
    is_here: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    @contextmanager
    def opened(self) -> Iterator[Path | Refusal]:
        self.acts()
        yield self.gives or self.path

    def unchanged(self) -> bool:
        return True


class Everything:
    """Asks for all pixels and keeps them."""

    def note(self, header: HeaderFacts) -> Known:
        return NAMES.known(header)

    def wants(self, known: Known) -> bool:
        return known.refusal(ALL) is None

    def make(self, pixels: Pixels) -> Pixels:
        return pixels


@pytest.fixture(params=["each alone", "several in one question"])
def look(request: pytest.FixtureRequest) -> Callable[..., list[Looked[Pixels]]]:
    def look(
        items: list[Item], *, processes: int = 1, patience: float = 20.0, still: Callable[[], None] = lambda: None
    ) -> list[Looked[Pixels]]:
        if request.param != "each alone":
            items = [replace(one, is_here=True) if isinstance(one, TestItem) else one for one in items]
        with readers.Readers(processes, Limits(), patience) as some:
            return list(Reading(some, Everything(), NAMES, still).look(items))

    return look


@pytest.fixture
def images(tmp_path: Path) -> list[Item]:
    return [image(tmp_path, number) for number in range(4)]


def image(folder: Path, number: int) -> TestItem:
    path = folder / f"{number}.dcm"
    pixels = np.full((12, 10), 100 + number, dtype=np.int16)
    write_image(path, pixels, identity=Identity("st-olavs", "ANNA", image=number), modality="CT")
    return TestItem(path)


@pytest.fixture
def hanging(tmp_path: Path) -> TestItem:
    """A pipe that nobody writes to keeps its reader waiting, as a share does that is gone."""
    path = tmp_path / "hangs.dcm"
    os.mkfifo(path)
    return TestItem(path)


def codes(found: list[Looked[Any]]) -> list[str]:
    return [one.known.refusal(ALL) or "used" for one in found]


def reading_processes(of: int | None = None) -> set[int]:
    """Of this process or another, that run and are not merely waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words, status = (entry / "cmdline").read_bytes().split(b"\0"), (entry / "status").read_text()
            except OSError:
                continue
            parent = words[words.index(b"--parent") + 1] if b"--parent" in words else b""
            if (
                b"silo_agent.intake.reader" in words
                and int(parent) == (of or os.getpid())
                and "State:\tZ" not in status
            ):
                found.add(int(entry.name))
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- one file and the others ---------------------------------------------------------------------------
def test_a_file_that_hangs_is_given_up_and_the_others_are_read(
    look: Callable[..., Any], images: list[Item], hanging: TestItem
) -> None:
    found = look([*images[:2], hanging, *images[2:]], patience=1.0)
    assert codes(found) == ["used", "used", "READ_TIMEOUT", "used", "used"]
    assert [one.number for one in found] == [0, 1, 2, 3, 4]
    assert not reading_processes()


KILLS = {
    "a crash of a decoder": (signal.SIGSEGV, "UNREADABLE"),
    "the kernel, for want of memory": (signal.SIGKILL, "TOO_LARGE"),
}


def held_by_a_reader(pipe: Path) -> int:
    """Wait until somebody reads the pipe; give our end of it."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody does
            time.sleep(0.01)


def is_read_by_nobody(end: int) -> bool:
    """A process that dies is out of sight before it lets go of what it reads."""
    poll = select.poll()
    poll.register(end, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def kill_readers(pipe: Path, times: int, how: signal.Signals) -> threading.Thread:
    """Kill the process that reads the pipe, so many times, each a new one."""

    def kill() -> None:
        for _ in range(times):
            end = held_by_a_reader(pipe)
            (pid,) = reading_processes()
            os.kill(pid, how)
            wait_until(lambda end=end: is_read_by_nobody(end))  # type: ignore[misc]
            os.close(end)

    return threading.Thread(target=kill)


@pytest.mark.parametrize("case", KILLS)
def test_a_file_that_ends_its_process_twice_is_refused_and_the_others_are_read(
    case: str, look: Callable[..., Any], images: list[Item], hanging: TestItem
) -> None:
    how, code = KILLS[case]
    killer = kill_readers(hanging.path, 2, how)
    found = look([images[0], replace(hanging, acts=killer.start), *images[1:]])
    killer.join()
    assert codes(found) == ["used", code, "used", "used", "used"]


def test_a_file_whose_process_was_killed_for_no_fault_of_its_own_is_read_after_all(
    look: Callable[..., Any], images: list[Item], hanging: TestItem, tmp_path: Path
) -> None:
    whole = image(tmp_path, 9)

    def kill_and_recover() -> None:
        end = held_by_a_reader(hanging.path)
        whole.path.replace(hanging.path)
        (pid,) = reading_processes()
        os.kill(pid, signal.SIGKILL)
        os.close(end)

    killer = threading.Thread(target=kill_and_recover)
    assert codes(look([images[0], replace(hanging, acts=killer.start), images[1]])) == ["used"] * 3
    killer.join()


def test_a_share_that_is_gone_ends_the_scan_instead_of_refusing_every_file(
    look: Callable[..., Any], hanging: TestItem, images: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_LOST_AFTER", 2)
    with pytest.raises(ArchiveSilent, match="2 files of the archive one after the other did not answer"):
        look([images[0], hanging, hanging, images[1]], patience=0.2)
    assert codes(look([hanging, images[0], hanging, images[1]], patience=0.5)) == [
        "READ_TIMEOUT", "used", "READ_TIMEOUT", "used"
    ]  # fmt: skip


def test_a_process_that_does_not_start_is_no_file_s_fault(
    look: Callable[..., Any], images: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_process.ReaderProcess, "module", "silo_agent.intake.no_such_module")
    with pytest.raises(NoReader):
        look(images)


def test_when_no_process_can_be_had_that_is_said_and_nobody_waits_for_ever(
    look: Callable[..., Any], images: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by review: the batch that was being read had no answer at all."""

    def none_left(*_: object, **_named: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(reader_process.subprocess, "Popen", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        look(images)


# --- order and equality --------------------------------------------------------------------------------
def test_several_processes_find_what_one_finds_in_the_same_order(look: Callable[..., Any], tmp_path: Path) -> None:
    """Damaged and whole files in turn; what `read_image` says of each, one after the other, is the oracle."""
    rng = np.random.default_rng(7)
    for number in range(60):
        one = image(tmp_path, number)
        data = bytearray(one.path.read_bytes())
        match number % 3:
            case 0:
                data[rng.integers(128, len(data) - 240)] ^= int(rng.integers(1, 256))
            case 1:
                data = data[: rng.integers(0, len(data))]
        one.path.write_bytes(data)
    items = list(folder_inventory(tmp_path, 0.0).items)
    alone, together = look(items), look(items, processes=3)
    for found, item in zip(alone, items, strict=True):
        expected = read_image(tmp_path / item.name, modalities=ALL)
        if isinstance(expected, StoredImage):
            assert found.known.who == NAMES.of(expected.identifiers)
            assert found.known.content == NAMES.content(expected.content)
            np.testing.assert_array_equal(found.made.image, expected.image)
        else:
            assert found.known.refusal(ALL) is expected.code
    assert [one.known for one in together] == [one.known for one in alone]
    assert all(
        (one.made is None and two.made is None) or np.array_equal(one.made.image, two.made.image)
        for one, two in zip(alone, together, strict=True)
    )
    assert len({*codes(alone)}) > 3


class Headers(Everything):
    """Asks for the pixels of some files only, and is surprised by one of them."""

    def wants(self, known: Known) -> bool:
        if known.who is None:
            raise RuntimeError("a mistake of ours")
        return super().wants(known) and known.who.sop_uid[-1] in "02468ace"


def test_pixels_belong_to_the_file_that_was_asked_for(images: list[Item], tmp_path: Path) -> None:
    """Of eight files in one question, with some that were not wanted and one that makes us fall over."""
    (tmp_path / "none.dcm").write_bytes(b"nothing")
    items = [replace(image(tmp_path, number), is_here=True) for number in range(7)]
    items.insert(3, TestItem(tmp_path / "none.dcm", is_here=True))
    with readers.Readers(1, Limits(), 20.0) as some:
        futures = [some.submit(item, Headers()) for item in items]
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            futures.pop(3).result()
        values = [None if (found := one.result()).image is None else found.image.image.max() for one in futures]
    assert {None, *range(100, 107)} >= set(values) > {None}
    assert all(value in {None, 100 + number} for number, value in enumerate(values))


def test_an_unusual_file_is_read_again_and_has_to_say_the_same(tmp_path: Path) -> None:
    """Its parsed header is not kept while others are read; what changed meanwhile was judged by another header."""
    ours, other = image(tmp_path, 1).path, image(tmp_path, 2).path
    for path in (ours, other):
        path.write_bytes(path.read_bytes()[132:])  # without its preamble, which only pydicom reads
    with quiet():
        file = OpenFile(ours, Limits())
        told = file.header()
        file.rest()
        assert isinstance(file.pixels(), Pixels)
        file.close()
        file = OpenFile(ours, Limits())
        assert file.header() == told
        file.rest()
        ours.write_bytes(other.read_bytes())
        assert file.pixels() == PixelRefusal(Refusal.UNREADABLE, lasting=False)
        file.close()


# --- items that are no files yet -----------------------------------------------------------------------
def test_an_item_that_cannot_be_had_has_the_code_it_gives(look: Callable[..., Any], images: list[Item]) -> None:
    missing = TestItem(Path("gone"), gives=Refusal.PERMISSION_DENIED)
    assert codes(look([images[0], missing, images[1]])) == ["used", "PERMISSION_DENIED", "used"]


def test_what_opening_an_item_raises_ends_the_reading(look: Callable[..., Any], images: list[Item]) -> None:
    def fall_over() -> None:
        raise ArchiveSilent("the archive is away")

    with pytest.raises(ArchiveSilent, match="away"):
        look([images[0], TestItem(Path("gone"), acts=fall_over), images[1]])
    assert not reading_processes()


# --- an end at any moment ------------------------------------------------------------------------------
def test_a_scan_that_is_not_wanted_any_more_ends_at_once_also_while_a_file_hangs(
    look: Callable[..., Any], images: list[Item], hanging: TestItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_LOOK_SECONDS", 0.1)
    asked = threading.Event()

    def still() -> None:
        if asked.is_set():
            raise WorkCancelled("between two files")

    begun = time.monotonic()
    with pytest.raises(WorkCancelled):
        look([*images, replace(hanging, acts=asked.set), *images], processes=2, patience=600, still=still)
    assert time.monotonic() - begun < 30
    assert not reading_processes()


SCANNING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_readers import Everything, NAMES, TestItem
from silo_agent.intake.encoding import Limits
from silo_agent.intake.readers import Readers
with Readers(1, Limits(), 600.0) as some:
    some.submit(TestItem(Path(sys.argv[1])), Everything()).result()
"""


def test_a_parent_that_is_killed_leaves_no_process_not_even_one_that_hangs(hanging: TestItem) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SCANNING, hanging.path, Path(__file__).parent])
    end = held_by_a_reader(hanging.path)
    assert len(reading_processes(parent.pid)) == 1
    parent.kill()
    parent.wait()
    wait_until(lambda: not reading_processes(parent.pid))
    os.close(end)


# --- what a process may say and have -------------------------------------------------------------------
WHO = {"patient_id": "P", "study_uid": "1.2", "series_uid": "1.3", "sop_uid": "1.4", "accession": "007"}
HEADER = {"modality": "CT", "wanted": None, "unwanted": "MODALITY_MISMATCH", "who": WHO, "lasting": True}
NO_HEADERS = {
    "a code that there is not": HEADER | {"wanted": "FINE"},
    "no modality": {key: value for key, value in HEADER.items() if key != "modality"},
    "a number for a name": HEADER | {"who": WHO | {"sop_uid": 7}},
    "half a character": HEADER | {"who": WHO | {"patient_id": "\ud800"}},
    "a list": [1],
    "a name missing": HEADER | {"who": {"patient_id": "P"}},
}


@pytest.mark.parametrize("case", NO_HEADERS)
def test_what_is_no_header_is_not_believed(case: str) -> None:
    assert HeaderFacts.parse(HEADER).told() == HEADER
    with pytest.raises((ValueError, TypeError, LookupError)):
        HeaderFacts.parse(NO_HEADERS[case])  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [{"content": "00", "shape": [2, 2]}, {"content": "00" * 32, "shape": [2]}, {}])
def test_what_is_no_image_is_not_believed(said: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        Pixels.parse(said, lambda height, width: np.zeros((height, width), np.float32))


def test_a_process_that_reads_has_no_more_memory_than_it_may_need() -> None:
    program = """
        import numpy as np
        from silo_agent.intake.reader import set_most_memory
        set_most_memory(200_000_000)
        try:
            np.ones(10**9, np.uint8)
        except MemoryError:
            print("held")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "held\n"


def test_a_process_that_reads_does_without_torch(hanging: TestItem) -> None:
    with readers.Readers(1, Limits(), 600.0) as some:
        some.submit(hanging, Everything())
        end = held_by_a_reader(hanging.path)
        (pid,) = reading_processes()
        mapped = Path(f"/proc/{pid}/maps").read_text()
        os.close(end)
    assert "numpy" in mapped
    assert "torch" not in mapped
