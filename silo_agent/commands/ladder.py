"""`silo-agent scan`, `dry-run`, `baseline` and `rehearse`: one child process, a folder of its own, lines for people."""

import asyncio
import csv
import json
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import typer

from silo_agent.commands.options import DEFAULT_STATE, PlanArgument, StateOption
from silo_agent.errors import ConfigError
from silo_agent.journal import Journal

T = TypeVar("T")

_COUNTED = {None: "volumes and images in", True: "volumes in", False: "of"}  # what `scan` counts, by --volumes


def add_to(app: typer.Typer) -> None:
    """The commands, in the order in which a hospital uses them."""
    app.command()(rehearse)
    app.command()(scan)
    app.command("dry-run")(dry_run)
    app.command()(baseline)


def scan(
    folder: Annotated[Path, typer.Argument(help="A folder of DICOM files, searched with all its subfolders.")],
    volumes: Annotated[
        bool | None,
        typer.Option(
            "--volumes/--images",
            help="Put all together as volumes and count series, or count each file as an image of its own.",
            show_default="a series of CT or MR is a volume, a slice that is alone an image",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help='{"used": n, "refused": {CODE: n}} and nothing else.')
    ] = False,
    files: Annotated[
        Path | None,
        typer.Option(help="Write each refused file and why to this CSV. It names files: keep it here."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 2,
) -> None:
    """Say what of a folder could be used and what is refused, by code. Needs no state folder; changes nothing.

    A series of CT or MR is put together as a volume and counts once; a radiograph, an ultrasound and a slice that is
    all its series has count as images. Labels and a plan's contract are not looked at; copies of an image count once.
    `silo-agent plan show` says what one plan would use. The CSV of --files is never written over a file that is there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give the one with the DICOM files")
    if files is not None:
        _new_file(files, outside=folder)
    command = {
        "do": "survey", "dicom": str(folder), "key": secrets.token_bytes(32).hex(),
        "as": {None: "mixed", True: "volumes", False: "images"}[volumes],
        "named": None if files is None else str(files.resolve()),
    }  # fmt: skip
    with TemporaryDirectory(prefix="silo-agent-") as scratch:
        found = _in_child(Path(scratch) / "child.log", threads, lambda worker: worker.run(command, _bar(as_json)))
    if as_json:
        typer.echo(json.dumps({"used": found["used"], "refused": found["refused"]}))
        return
    kinds = ", ".join(f"{count} {name}" for name, count in found["modalities"].items()) or "none"
    what = f"{found['used']} {_COUNTED[volumes]}"
    typer.echo(f"{what} {found['files']} files could be used ({kinds}), of {found['patients']} patients")
    for code, count in sorted(found["refused"].items(), key=lambda pair: -pair[1]):
        typer.echo(f"  {count:>8}  {code:<22} {_explained(code)}")
    if found["refused"] and files is None:
        typer.echo("which files: run it again with --files refused.csv")


def dry_run(plan: PlanArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Do all of a round but sending: intake with its refusals, one training step, masks.

    Nothing leaves, nothing of a budget is spent, and no file of it is kept.
    """
    from silo_agent.ladder import rungs

    with _trial(state, plan) as (trial, withdrawn):
        _finish(trial.worker, rungs.dry_run(trial, withdrawn, typer.echo, _bar(quiet=False)))


def baseline(
    plan: PlanArgument,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the plan's local training.")] = 5,
    save: Annotated[
        Path | None, typer.Option(help="Write the figures to this CSV, for this hospital's people.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Train the plan's model on our own data alone, and measure it on patients held back: what a study has to beat.

    Without noise, as nothing of it leaves. The figures are about this hospital: they are not sent to anybody.
    """
    from silo_agent.ladder import rungs

    if save is not None:
        _new_file(save)
    with _trial(state, plan) as (trial, withdrawn):
        found = _finish(trial.worker, rungs.baseline(trial, withdrawn, rounds, typer.echo, _bar(quiet=False)))
    if save is not None:
        with save.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            names = [name.lower() for name, _ in found[0].scores]
            table.writerow(("round", "images", "loss", *names, "seconds"))
            for one in found:
                table.writerow((one.round, one.images, one.loss, *(value for _, value in one.scores), one.seconds))


def rehearse(
    hospitals: Annotated[
        int, typer.Option(min=3, max=64, help="Hospitals in the masked sum; all but ours are made up.")
    ] = 5,
    network: Annotated[str, typer.Option(help="A network of the catalogue.")] = "cnn-small",
    side: Annotated[int, typer.Option(min=16, max=512, help="Pixels of an image's side.")] = 64,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Play a whole round on synthetic images: read, train, mask, add up, measure. No patient's data, no connection.

    On the child process and the code of a real round. A plan with a larger network, larger images or a guarantee needs
    more memory and time: `dry-run` tries that plan.
    """
    from silo_agent.config import load_config
    from silo_agent.ladder import rungs
    from silo_agent.ladder.scratch import scratch_in
    from silo_agent.ladder.synthetic import synthetic_stage
    from silo_agent.ladder.trial import Trial
    from silo_agent.state import StateFolder
    from silo_agent.worker import Worker

    config, folder = load_config(state), StateFolder(state)
    folder.check_private()
    _check_idle(folder, config)
    with scratch_in(folder.root) as scratch:
        stage = synthetic_stage(
            scratch, config.site, hospitals, network, side, secrets.token_bytes, datetime.now(UTC).date()
        )
        worker = Worker(folder.root / "trial.log", config.resources.threads)
        trial = Trial(
            stage.plan, stage.dataset, worker, scratch, folder.root, stage.key_file, config, secrets.token_bytes
        )
        _finish(worker, rungs.rehearse(trial, typer.echo, _bar(quiet=False)))
    typer.echo("a round could be played here: nothing of it was about a patient, and nothing left")


# --- what they share -----------------------------------------------------------------------------------
@contextmanager
def _trial(state: Path, wanted: str) -> Iterator[tuple[Any, dict[str, list[str]]]]:
    """(trial of a plan that was proposed here, who withdrew consent)."""
    from silo_agent.config import load_config
    from silo_agent.exclusions import read_exclusions
    from silo_agent.ladder.scratch import scratch_in
    from silo_agent.ladder.trial import Trial
    from silo_agent.policy.files import load_policy
    from silo_agent.policy.model import dataset_of
    from silo_agent.state import StateFolder
    from silo_agent.steward import find_plan
    from silo_agent.worker import Worker

    config, folder = load_config(state), StateFolder(state)
    folder.check_private()
    if not folder.journal.exists():
        raise ConfigError("no plan has arrived here yet: enrol, and let `silo-agent run` fetch what is proposed")
    _check_idle(folder, config)
    journal = Journal(folder.journal, config.site)
    try:
        plan = find_plan(journal, wanted).parsed
        gone = [one.reference for one in journal.private.withdrawals()]
    finally:
        journal.close()
    policy = load_policy(state).policy
    dataset = dataset_of(policy, plan.dataset.name)
    gone += read_exclusions(Path(dataset.rules.exclusions.path)).difference(gone)
    with scratch_in(folder.root) as scratch:
        worker = Worker(folder.root / "trial.log", config.resources.threads)
        trial = Trial(
            plan, dataset, worker, scratch, folder.root, folder.dataset_key_file, config, secrets.token_bytes,
            devices=policy.resources.devices, weights=policy.weights_folder,
        )  # fmt: skip
        yield trial, {"before": gone, "after": []}
    (folder.root / "trial.log").unlink(missing_ok=True)  # kept after a failure only: it may name paths


def _check_idle(folder: Any, config: Any) -> None:
    """Not beside a training: the real one might be killed for memory, and its budget is spent all the same."""
    from boundary.protocol import Step
    from silo_agent.errand import disk_shortage

    if folder.journal.exists():
        journal = Journal(folder.journal, config.site)
        try:
            if any(order.step is Step.WORKING for order in journal.open_orders()):
                raise ConfigError("the agent is working on a round: run this when `silo-agent status` shows none")
        finally:
            journal.close()
    if shortage := disk_shortage(folder, config.resources):
        raise ConfigError(shortage)


def _new_file(path: Path, outside: Path | None = None) -> None:
    """Make it, for our own eyes. Nothing is ever written over, least of all an image or a label table."""
    if outside is not None and path.resolve().is_relative_to(outside.resolve()):
        raise ConfigError(f"{path} lies in the folder that is looked at: write it somewhere else")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError as why:
        raise ConfigError(f"{path} is there already and is not written over: choose another name") from why
    except OSError as why:
        raise ConfigError(f"{path} cannot be written: {why.strerror}") from why


def _in_child(log: Path, threads: int, work: Callable[[Any], Awaitable[T]]) -> T:
    from silo_agent.worker import Worker

    worker = Worker(log, threads)
    return _finish(worker, work(worker))


def _finish(worker: Any, work: Awaitable[T]) -> T:
    """Run it, and end the child whatever happens: Ctrl-C, SIGTERM, and a terminal that is closed included."""

    async def both() -> T:
        ours, loop = asyncio.current_task(), asyncio.get_running_loop()
        for told in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(told, lambda: ours and ours.cancel())
        try:
            return await work
        finally:
            await worker.stop()

    try:
        return asyncio.run(both())
    except asyncio.CancelledError as why:
        raise ConfigError("ended before it was through; what lay on the disk for it is removed") from why


def _bar(quiet: bool) -> Callable[[int, int], None]:
    """Progress on one line of the terminal; nothing where the output is for a program or a file."""
    import sys

    if quiet or not sys.stderr.isatty():
        return lambda _step, _steps: None

    def show(step: int, steps: int) -> None:
        if step == steps or step % 20 == 0:
            sys.stderr.write(f"\r{step} of {steps} " + ("\n" if step == steps else ""))
            sys.stderr.flush()

    return show


def _explained(code: str) -> str:
    from silo_agent.intake.refusals import Refusal

    return Refusal(code).explanation
