"""The child that the preflight asks: started, spoken to and ended as the training child is (`silo_agent.trainer`).

    python -m silo_agent.preflight.child_probe --threads 2

No name of a file and no value of a header is in an answer: counts and codes only.
"""

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from silo_agent.errors import AgentError, WorkCancelled, WorkFailed
from silo_agent.trainer import Conversation, classify

MOST_LISTED = 5000  # files: enough to see that it is the archive; walking all of a large one takes hours
_MOST_TRIED, _ENOUGH_READ = 50, 5  # files opened at most, images read at most
_GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, its control, WSL2, AMD
_END_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> None:
    """Take the pipes, serve commands until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True, help="processor threads for training")
    threads = parser.parse_args(arguments).threads
    os.umask(0o077)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's print must not be taken for an event
    conversation = Conversation(sys.stdin, events, _end_soon)
    while (command := conversation.next()) is not None:
        answer(conversation, command | {"threads": threads})


def _end_soon() -> None:
    """A share that hangs must not keep the child alive when the check has given up."""
    time.sleep(_END_SECONDS)
    os._exit(1)


def answer(conversation: Conversation, command: dict[str, Any]) -> None:
    """Our own errors go with their sentence, which is made for people; of all others only the kind."""
    try:
        work = {"device": device, "archive": archive, "labels": labels}[command["do"]]
        conversation.say(event="done", result=work(command))
    except WorkCancelled:
        conversation.say(event="cancelled")
    except AgentError as why:
        conversation.say(event="failed", code=why.code, detail=str(why), retryable=False)
    except Exception as why:  # noqa: BLE001 - the child's loop: the cause goes to the hospital's own log
        traceback.print_exc()
        detail = f"{type(why).__name__}, see check.log in the state folder"
        conversation.say(event="failed", code=classify(why)[0], detail=detail, retryable=False)


# --- the device --------------------------------------------------------------------------------------
def device(command: dict[str, Any]) -> dict[str, Any]:
    """Import all that a round imports, train one step, and say where. Keys: see `child.judge_device`.

    Raises `WorkFailed` IMPORT or DEVICE.
    """
    try:
        import torch

        import silo_agent.local_round  # noqa: F401 - all of torch, MONAI and opacus that a round loads
    except (ImportError, OSError) as why:  # OSError: a shared library that is not there
        raise WorkFailed("IMPORT", f"torch or MONAI cannot be loaded: {why}") from why
    torch.set_num_threads(int(command["threads"]))
    try:
        usable = command["device"] != "cpu" and torch.cuda.is_available()
        where = "cuda" if usable else "cpu"
        _one_step(where)
        card = _card() if usable else {}
    except RuntimeError as why:
        raise WorkFailed(_device_code(why), f"a step on the device fails: {why}") from why
    return {
        "torch": torch.__version__,
        "device": where,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": _resident_mb(),
        "cuda_built": torch.version.cuda is not None or torch.version.hip is not None,
        "gpu_there": any(Path(name).exists() for name in _GPU_FILES),
        **card,
    }


def _device_code(why: RuntimeError) -> str:
    code, _ = classify(why)
    return code if code == "OUT_OF_MEMORY" else "DEVICE"


def _one_step(where: str) -> None:
    """Forward and backward through the smallest network: a card that torch sees may still have no kernels for it."""
    import torch

    from boundary.learning import ModelChoice
    from models.catalogue import build

    network = build(ModelChoice(name="cnn-small", version=1), 2).to(where)
    loss = network(torch.zeros(2, 1, 32, 32, device=where)).square().mean()
    loss.backward()
    if not bool(torch.isfinite(loss)):
        raise RuntimeError("the loss of a step on zeros is not finite")


def _card() -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info()
    return {"gpu": torch.cuda.get_device_name(), "gpu_free_mb": free // 2**20, "gpu_total_mb": total // 2**20}


def _resident_mb() -> int:
    """Its most so far; `ru_maxrss` is in KiB on Linux (getrusage(2))."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- the archive -------------------------------------------------------------------------------------
def archive(command: dict[str, Any]) -> dict[str, Any]:
    """Count files, and read the first images as a scan reads them. Raises an `IntakeError`."""
    if command["source"]["kind"] == "dicomweb":
        return _over_dicomweb(command["source"])
    from silo_agent.intake.archive import refusal_for
    from silo_agent.intake.dicomdir import list_dicomdir

    root, table = Path(command["source"]["path"]), Path(command["labels"]["path"])
    codes: Counter[str] = Counter()
    files: list[Path] = []
    walk = iter(list_dicomdir(root).files) if root.is_file() else _files(root)
    for found in islice(walk, MOST_LISTED):
        if isinstance(found, OSError):
            codes[refusal_for(found).value] += 1
        elif found.name != table.name or found.resolve() != table.resolve():
            files.append(found)
    more = next(walk, None) is not None
    tried, read = _tried(map(nullcontext, files[:_MOST_TRIED]), codes)
    return {"files": len(files), "more": more, "tried": tried, "read": read, "codes": codes, "unencrypted": False}


def _over_dicomweb(source: dict[str, Any]) -> dict[str, Any]:
    """The first instances that the archive lists."""
    from silo_agent.intake.dicomweb.archive import DicomwebArchive
    from silo_agent.intake.refusals import Refusal
    from silo_agent.intake.sources import endpoint_of

    endpoint = endpoint_of(source)
    unencrypted = endpoint.is_open and endpoint.login() is not None
    with TemporaryDirectory(prefix="silo-agent-") as scratch, DicomwebArchive(endpoint, Path(scratch)) as archive:
        found = list(islice(archive.first_instances(()), _MOST_TRIED + 1))
        codes = Counter(one.value for one in found if isinstance(one, Refusal))
        instances = [one for one in found if not isinstance(one, Refusal)][:_MOST_TRIED]
        tried, read = _tried(map(archive.fetch, instances), codes)
    more = len(found) > _MOST_TRIED
    return {
        "files": len(instances), "more": more, "tried": tried, "read": read, "codes": codes, "unencrypted": unencrypted,
    }  # fmt: skip


def _tried(files: Iterable[AbstractContextManager[Any]], codes: Counter[str]) -> tuple[int, int]:
    """(opened, read as images) until enough were read; why others were not is added to `codes`."""
    from silo_agent.intake.header import SINGLE_FRAME
    from silo_agent.intake.image import Refused, read_image
    from silo_agent.intake.refusals import Refusal

    every = frozenset(modality for known in SINGLE_FRAME.values() for modality in known)
    read = tried = 0
    for file in files:
        tried += 1
        with file as path:
            image = Refused(path) if isinstance(path, Refusal) else read_image(path, modalities=every)
        if isinstance(image, Refused):
            codes[image.code.value] += 1
        else:
            read += 1
        if read >= _ENOUGH_READ:
            break
    return tried, read


def _files(root: Path) -> Iterator[Path | OSError]:
    """Regular files below, folder by folder as the disk gives them; a folder that cannot be listed is an error."""
    from silo_agent.intake.errors import ArchiveDenied, ArchiveMissing

    todo, visited = [root], set[tuple[int, int]]()
    while todo:
        folder = todo.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        is_folder, is_file = entry.is_dir(), entry.is_file()
                    except OSError as why:  # a link that leads nowhere we may go
                        yield why
                        continue
                    if is_folder:
                        todo.append(Path(entry.path))
                    elif is_file:
                        yield Path(entry.path)
        except OSError as why:
            if folder != root:
                yield why
            elif isinstance(why, PermissionError):
                raise ArchiveDenied(f"{root} may not be listed: grant the agent's user read access") from why
            else:
                raise ArchiveMissing(f"there is no archive folder at {root}: correct source.path") from why


# --- the label table ---------------------------------------------------------------------------------
def labels(command: dict[str, Any]) -> dict[str, Any]:
    """Count its rows with a key, or the files of masks. Raises a subclass of `IntakeError`."""
    path, kind = Path(command["labels"]["path"]), command["labels"]["kind"]
    if kind in {"seg", "nifti"}:
        walk = _files(path)
        count = sum(not isinstance(one, OSError) for one in islice(walk, MOST_LISTED))
        return {"masks": count, "more": next(walk, None) is not None}
    from boundary.images import Labels
    from silo_agent.intake.errors import LabelColumnAmbiguous
    from silo_agent.intake.labels import count_keyed, read_labels

    with suppress(LabelColumnAmbiguous):  # the plan will name the column
        read_labels(path, Labels(classes=("0", "1")), kind)
    rows, levels = count_keyed(path, kind)
    return {"rows": rows, "levels": levels}


if __name__ == "__main__":
    main()
