"""`wardround weights`: what a file of pretrained weights holds, and a checkpoint of torch made into such a file.

A checkpoint (`model.pt`, as MONAI bundles have it) is a pickle in a zip. Plans, coordinators and hospitals take none.
Here, once and by hand, one is read by torch's own restricted unpickler (`weights_only`: tensors and plain containers,
no code), in a process of its own with limits of memory, time and files. That is as much as torch promises (there was a
hole before 2.6, CVE-2025-32434) and no sandbox: take files whose source you trust, on a machine without patients' data.
What comes out holds no code whatever went in, and its hash is what people agree on.
"""

import hashlib
import os
import resource
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated

import typer

from boundary.errors import BadTensors, InvalidPlan
from boundary.pretrained import MAX_PRETRAINED_BYTES
from boundary.pretrained_file import listed_tensors

if TYPE_CHECKING:
    import torch

CHILD_SECONDS = 300
CHILD_BYTES = 16 * 2**30  # of address space: torch itself maps several
weights_app = typer.Typer(no_args_is_help=True, help="Files of pretrained weights that a plan may begin with.")
_CHILD = "import sys; from flows.weights import child; child(sys.argv[1], sys.argv[2])"


@dataclass(frozen=True, slots=True)
class Shown:
    """A file's hash as a plan pins it, and its tensors: (name, dtype, shape)."""

    sha256: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


def show(path: Path) -> Shown:
    """Read the header of a safetensors file. Raises `InvalidPlan` for what is none."""
    if path.stat().st_size > MAX_PRETRAINED_BYTES:
        raise InvalidPlan(f"{path} has more than {MAX_PRETRAINED_BYTES} bytes")
    data = path.read_bytes()
    try:
        tensors = listed_tensors(data)
    except BadTensors as why:
        raise InvalidPlan(f"{path}: {why}; `wardround weights convert` makes one of a checkpoint of torch") from why
    return Shown(hashlib.sha256(data).hexdigest(), tensors)


def convert(checkpoint: Path, out: Path) -> Shown:
    """Write the checkpoint's floating-point tensors as float32 to `out`, a new file. Raises `InvalidPlan`."""
    if out.exists() or out.suffix != ".safetensors":
        raise InvalidPlan(f"{out}: a new file that is called .safetensors")
    if not zipfile.is_zipfile(checkpoint):
        raise InvalidPlan(f"{checkpoint} is no checkpoint of torch 1.6 or newer: older ones are refused")
    partial = out.with_name(f".{out.name}.partial")
    command = [sys.executable, "-P", "-c", _CHILD, str(checkpoint.resolve()), str(partial.resolve())]
    try:
        done = subprocess.run(
            command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=CHILD_SECONDS,
        )  # fmt: skip
        if done.returncode != 0 or not partial.is_file():
            reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise InvalidPlan(f"{checkpoint} cannot be converted: {reason:.300}")
        shown = show(partial)
        partial.replace(out)
    except subprocess.TimeoutExpired as why:
        raise InvalidPlan(f"{checkpoint} cannot be converted in {CHILD_SECONDS} seconds") from why
    finally:
        partial.unlink(missing_ok=True)
    return shown


def child(checkpoint: str, out: str) -> None:
    """What the process of its own does, under limits that it cannot raise again."""
    _limit()
    from safetensors.torch import save_file

    save_file(tensors_of(checkpoint), out)


def tensors_of(checkpoint: str) -> "dict[str, torch.Tensor]":
    """A checkpoint's floating-point tensors by name, as float32. Raises `SystemExit` with what is wrong with it."""
    import torch

    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except UnpicklingError as why:
        raise SystemExit("it holds more than tensors and plain containers: save a state_dict() alone") from why
    while isinstance(found, dict) and len(found) == 1 and isinstance(next(iter(found.values())), dict):
        (found,) = found.values()  # {"state_dict": {...}}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SystemExit("it holds no table of tensors by name")
    tensors = {
        name: value.to(torch.float32).contiguous().clone()
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    if not tensors:
        raise SystemExit("it holds no floating-point tensors by name; is there a table inside? Take that out first")
    return tensors


def _environment() -> dict[str, str]:
    """Only what Python needs to find itself: no tokens, no home folder."""
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ} | {
        "OMP_NUM_THREADS": "1"
    }


def _limit() -> None:
    for what, most in (
        (resource.RLIMIT_AS, CHILD_BYTES), (resource.RLIMIT_CPU, CHILD_SECONDS), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, MAX_PRETRAINED_BYTES),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))


def _say(path: Path, shown: Shown) -> None:
    for name, dtype, shape in shown.tensors:
        typer.echo(f"{dtype:>5}  {' x '.join(map(str, shape)) or 'one number':>20}  {name}")
    typer.echo("[model.pretrained]")
    typer.echo(f'file = "{path.name}"')
    typer.echo(f'sha256 = "{shown.sha256}"')


@weights_app.command("show")
def weights_show(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A safetensors file.")],
) -> None:
    """List a file's tensors, and the lines for a plan that begins with it."""
    _say(file, show(file))


@weights_app.command("convert")
def weights_convert(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What torch.save wrote: model.pt.")],
    out: Annotated[Path, typer.Option(help="The new file; its name is what a plan and every hospital call it.")],
) -> None:
    """Make a safetensors file of a torch checkpoint. Take sources that you trust, far from patients' data."""
    _say(out, convert(checkpoint, out))
