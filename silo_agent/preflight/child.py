"""Checks that run in a child process as the training does: its device, the archive, the label table.

Whatever reads files of the archive, or loads torch, may hang or be killed; here that is an answer.
"""

import asyncio
from contextlib import suppress
from typing import Any

from silo_agent.errors import WorkCancelled, WorkFailed
from silo_agent.plain import plain
from silo_agent.policy.files import load_policy
from silo_agent.policy.model import dataset_of
from silo_agent.preflight.finding import Check, Finding, fail, ok, warn
from silo_agent.preflight.setting import Setting
from silo_agent.worker import Worker, untold

LOG_NAME = "check.log"
LEAST_GPU_MB = 2048  # free, for the larger networks of the catalogue; others on the card may leave less
_STOP_SECONDS = 10.0  # a process that hangs in the kernel cannot be killed; the check goes on without it
_NEEDS_LEAVE = frozenset({"PERMISSION_DENIED", "READ_ERROR"})


async def child(setting: Setting) -> Finding:
    """It starts, imports torch and MONAI, and trains one step on the device that agent.toml names."""
    wanted = setting.config.resources.device
    try:
        report = await _ask(setting, {"do": "device", "device": wanted})
    except TimeoutError:
        said = f"no answer within {setting.child_seconds:.0f} s"
        return fail(Check.CHILD, said, f"See {LOG_NAME} in the state folder; a slow disk makes the first start long")
    except (WorkFailed, WorkCancelled, OSError) as why:
        return fail(Check.CHILD, plain(str(why)), _child_fix(getattr(why, "code", "INTERNAL")))
    return judge_device(report, wanted)


def _child_fix(code: str) -> str:
    match code:
        case "OUT_OF_MEMORY":
            return "Give the agent more memory, on the machine and in its container or unit"
        case "DEVICE":
            return 'Have the GPU driver renewed to what this torch needs, or set device = "cpu" in agent.toml'
        case "IMPORT":
            return 'Install the agent anew as one piece: pip install "wardround[agent]"'
        case _:
            return f"Send {LOG_NAME} of the state folder to who installed the agent; it holds no images"


def judge_device(report: dict[str, Any], wanted: str) -> Finding:
    """Pure: what the child found against what agent.toml asks for.

    `report`: torch (its version), device, threads, cores, memory_mb, cuda_built, gpu_there (a device file), and on
    CUDA gpu, gpu_free_mb, gpu_total_mb.
    """
    said = f"torch {report['torch']} on {report['device']}, {report['threads']} threads, {report['memory_mb']:,} MiB"
    if report["device"] == "cuda":
        said += f", {plain(report['gpu'])} with {report['gpu_free_mb']:,} of {report['gpu_total_mb']:,} MiB free"
        if report["gpu_free_mb"] < LEAST_GPU_MB:
            return warn(Check.CHILD, said, "Find out what else uses this GPU (nvidia-smi), and leave it to the agent")
    elif wanted == "cuda":
        return fail(Check.CHILD, f"{said}; agent.toml wants cuda", _gpu_fix(report))
    elif wanted == "auto" and report["gpu_there"]:
        return warn(Check.CHILD, f"{said}; there is a GPU that torch cannot use", _gpu_fix(report))
    if report["threads"] > report["cores"]:
        fix = f"Set threads = {report['cores']} in agent.toml: that many cores are the agent's"
        return warn(Check.CHILD, f"{said}, more than the {report['cores']} cores", fix)
    return ok(Check.CHILD, said)


def _gpu_fix(report: dict[str, Any]) -> str:
    if not report["cuda_built"]:
        return 'Install the CUDA build of this torch version, or set device = "cpu" in agent.toml'
    if not report["gpu_there"]:
        return 'Hand the GPU into the container or machine (docker run --gpus all), or set device = "cpu" in agent.toml'
    return "Have the GPU driver renewed to what this torch needs, and its device files opened to the agent's user"


async def archive(name: str, setting: Setting) -> Finding:
    """List a data set's archive, or the start of it, and read the first images as a scan does."""
    told = _told(name, setting)
    where = told["source"].get("path") or told["source"]["url"]
    fix = "Mount the archive and grant the agent's user read access, or correct source.path in the policy"
    if told["source"]["kind"] == "dicomweb":
        fix = "Put the archive right as it says, or correct source.url in the policy"
    report = await _read(Check.ARCHIVE, f"{name}: {where}", told | {"do": "archive"}, fix, setting)
    return report if isinstance(report, Finding) else judge_archive(name, report)


def judge_archive(name: str, report: dict[str, Any]) -> Finding:
    """Pure. `report`: files listed, `more` than were counted, `tried`, `read`, and `codes` of what was not read.

    `unencrypted`: the archive's login goes over a network so.
    """
    codes: dict[str, int] = report["codes"]
    named = ", ".join(f"{number} {code}" for code, number in sorted(codes.items()))
    files = f"{report['files']:,}{' or more' if report['more'] else ''} files"
    said = f"{name}: {files}, {report['read']} of the first {report['tried']} read as images"
    said += f" ({named})" if named else ""
    if _NEEDS_LEAVE & codes.keys():
        fix = "Grant the agent's user read access to all of the archive; the files themselves are not at fault"
        return fail(Check.ARCHIVE, said, fix)
    if report["files"] == 0:
        return fail(Check.ARCHIVE, f"{name}: no file is there", "Mount the archive, or correct source.path")
    if report["read"] == 0:
        fix = "Compare source.path in the policy with where the images are; docs/hospital.md explains each code"
        return warn(Check.ARCHIVE, said, fix)
    if report["unencrypted"]:
        fix = "Have the archive offer https, or reach it on this machine: its login is unencrypted on its way"
        return warn(Check.ARCHIVE, said, fix)
    return ok(Check.ARCHIVE, said)


async def labels(name: str, setting: Setting) -> Finding:
    """It is a table with a column of keys and one that may be the label; which classes count is a plan's to say.

    Of masks only the files are counted: whether they fit is seen beside the images of a plan.
    """
    told = _told(name, setting)
    fix = "Put the labels right as it says, or correct labels.path in the policy"
    report = await _read(Check.LABELS, f"{name}: {told['labels']['path']}", told | {"do": "labels"}, fix, setting)
    if isinstance(report, Finding):
        return report
    if "masks" in report:
        said = f"{name}: {report['masks']:,}{' or more' if report['more'] else ''} files, for masks"
        return ok(Check.LABELS, said) if report["masks"] else fail(Check.LABELS, said, "Put the masks there")
    said = f"{name}: {report['rows']:,} rows, keyed by {', '.join(report['levels'])}"
    if report["rows"] == 0:
        return fail(
            Check.LABELS, said, "Add a row with its UID, or Accession Number, and label for every image or study"
        )
    return ok(Check.LABELS, plain(said))


def _told(name: str, setting: Setting) -> dict[str, Any]:
    root = setting.folder.root
    return dataset_of(load_policy(root).policy, name).told(root)


async def _read(
    check: Check, what: str, command: dict[str, Any], fix: str, setting: Setting
) -> dict[str, Any] | Finding:
    """What the child found on a share, or why it found nothing."""
    try:
        return await _ask(setting, command)
    except TimeoutError:
        said = f"{what} did not answer within {setting.child_seconds:.0f} s"
        return fail(check, said, "Have the network share or the archive looked at: it hangs, or is very slow")
    except (WorkFailed, WorkCancelled, OSError) as why:
        return fail(check, f"{what.partition(':')[0]}: {plain(str(why))}", fix)


async def _ask(setting: Setting, command: dict[str, Any]) -> dict[str, Any]:
    """One command to a child of its own. Raises `WorkFailed`, `WorkCancelled`, `TimeoutError` and other `OSError`."""
    worker = Worker(setting.folder.root / LOG_NAME, setting.config.resources.threads, setting.probe)
    try:
        async with asyncio.timeout(setting.child_seconds):
            return await worker.run(command, untold)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await worker.stop()
