"""`silo-agent`: what hospital IT and the data steward type."""

import asyncio
import json
import logging
import os
import secrets
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boundary.errors import BoundaryError
from silo_agent.errors import AgentError, ConfigError
from silo_agent.journal import Journal
from silo_agent.ladder.commands import add_to as add_ladder_to
from silo_agent.options import DEFAULT_STATE, PlanArgument, StateOption

if TYPE_CHECKING:
    from silo_agent.daemon import Surroundings
    from silo_agent.outbound import Outbound

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""The agent a hospital runs: it dials out to one address, trains on the hospital's own images, and lets
    nothing leave but what its steward approved.

    [bold]First time[/bold]: init → check → rehearse → scan FOLDER → enrol INVITATION → run.
    [bold]For each study[/bold]: plan list → plan show STUDY → dry-run STUDY → plan approve STUDY.""",
)
plan_app = typer.Typer(no_args_is_help=True, help="Look at, approve or decline the plans that were proposed.")
app.add_typer(plan_app, name="plan")
incidents_app = typer.Typer(help="Logs that are not what they were: look into one, close it.")
app.add_typer(incidents_app, name="incidents")


class Decision(StrEnum):
    """What becomes of models that saw a patient who withdraws (`compliance.events.WithdrawalEffective`)."""

    KEEP = "keep"
    RETRAIN = "retrain"
    RETIRE = "retire"


def main() -> None:
    """Entry point of `silo-agent`: one line and an exit code for every error we know."""
    os.umask(0o077)
    try:
        app()
    except AgentError as why:
        sys.stderr.write(f"silo-agent: {why}\n")
        raise SystemExit(why.exit_code) from why
    except BoundaryError as why:
        sys.stderr.write(f"silo-agent: {why.code}: {why}\n")
        raise SystemExit(1) from why
    except (sqlite3.Error, OSError) as why:
        sys.stderr.write(f"silo-agent: the state folder or its disk: {why}. Nothing was half done; try again\n")
        raise SystemExit(1) from why


@app.command()
def init(  # noqa: PLR0913, PLR0917 - one for each option
    site: Annotated[str, typer.Option(help="This hospital's short name, as the coordinator will list it.")],
    dicom: Annotated[Path, typer.Option(help="Folder with the DICOM files of the first data set.")],
    labels: Annotated[Path, typer.Option(help="CSV with the labels, keyed by SOP/Series/StudyInstanceUID.")],
    dataset: Annotated[str, typer.Option(help="Name of the data set, as study plans ask for it.")] = "images",
    most_patients: Annotated[
        int | None,
        typer.Option(help="A public number of patients the archive will not outgrow; needed for private plans."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Processor threads for training.")] = 2,
    heartbeat: Annotated[float, typer.Option(help="Seconds between signs of life.")] = 10.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Make the state folder: keys that never leave it, and an agent.toml to look through."""
    from silo_agent.config import CONFIG_NAME, parse_config, starting_config
    from silo_agent.console.login import make_login
    from silo_agent.state import StateFolder

    for path, what in ((dicom, "the DICOM folder"), (labels, "the label table")):
        if not path.exists():
            raise ConfigError(f"{what} {path} does not exist")
    folder = StateFolder(state)
    text = starting_config(
        site, dataset, dicom.resolve(), labels.resolve(), threads=threads, heartbeat=heartbeat,
        most_patients=most_patients,
    )  # fmt: skip
    parse_config(text, f"{state / CONFIG_NAME}, as it would be,")
    folder.create(secrets.token_bytes, text)
    typer.echo(f"made {state} for {site}")
    typer.echo(f"fingerprint: {folder.identity.public.fingerprint}")
    if _is_terminal():  # elsewhere it would end up in the log of whatever runs this
        typer.echo(f"passphrase of the console, shown this once: {make_login(state, secrets.token_bytes)}")
    else:
        typer.echo("for the console's passphrase: `silo-agent console --new-login`, at a terminal")
    typer.echo("next: ask the coordinator for an invitation file, then `silo-agent enrol INVITATION`")


@app.command()
def check(
    invitation: Annotated[
        Path | None, typer.Option(help="Before enrolment: try the way to this invitation's relay. It is not used up.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for a program.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Look at everything the agent needs, each failure with its fix: network, proxy, TLS, clock, disk, GPU, data.

    Exit code 0: nothing failed. Else that of the first that did: 2 agent.toml, 19 state folder, keys or enrolment, 10
    network, 11 proxy, 12 TLS, 13 clock, 20 relay, 14 disk, 15 memory, 16 child or GPU, 17 archive, 18 labels.
    """
    from silo_agent.preflight.command import main as look

    raise SystemExit(look(state, as_json=as_json, invitation=invitation))


add_ladder_to(app)  # here, because commands are listed in the order in which they are used


@app.command()
def enrol(
    invitation: Annotated[Path, typer.Argument(help="The invitation file from the coordinator. Keep it secret.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for the coordinator to admit us.")] = 600.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Ask to be admitted. Both fingerprints are then compared by telephone, each side reading the other's.

    On an agent that is enrolled already, a new invitation renews the certificate. All keys are kept, and a running
    agent takes the new certificate up by itself.
    """
    from boundary.identity import PublicIdentity
    from silo_agent.config import load_config
    from silo_agent.enrolment import Enrolment, read_invitation
    from silo_agent.state import StateFolder

    config, folder = load_config(state), StateFolder(state)
    folder.check_private()
    enrolled = folder.tls_certificate.exists()
    paper = read_invitation(invitation, config.site)
    typer.echo(f"our fingerprint:         {folder.identity.public.fingerprint}")
    typer.echo(f"coordinator fingerprint: {PublicIdentity(paper.coordinator_key).fingerprint}")
    typer.echo(f"asking {paper.relay_url}; read both aloud over the telephone now, then the coordinator admits you")
    admitted = asyncio.run(Enrolment(config, folder, paper, _world()).ask_and_wait(wait, lambda: None))
    if not admitted:
        raise ConfigError("not admitted yet: run the same command again later, nothing is lost")
    if enrolled:
        typer.echo("renewed: a running agent uses the new certificate within seconds")
    else:
        typer.echo("admitted: start the agent with `silo-agent run`")


@app.command()
def run(
    state: StateOption = DEFAULT_STATE,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also log to the terminal.")] = False,
) -> None:
    """Run the daemon: dial out, wait, work. SIGTERM or Ctrl-C ends it cleanly; it goes on where it stopped.

    Exit codes: 2 configuration, 3 not enrolled, 4 wrong coordinator, 5 upgrade needed. Do not restart on these.
    """
    from silo_agent.config import load_config
    from silo_agent.daemon import Agent
    from silo_agent.state import StateFolder
    from silo_agent.worker import Worker

    config, folder = load_config(state), StateFolder(state)
    folder.check_private()
    with folder.only_one():
        _log_to(folder.log, verbose=verbose)
        worker = Worker(folder.root / "child.log", config.resources.threads)
        asyncio.run(Agent(config, folder, _world(), worker).run())


@app.command()
def console(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1 only; 0 takes any that is free.")] = 8787,
    new_login: Annotated[bool, typer.Option("--new-login", help="Make a new passphrase, show it, and end.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Serve the steward's pages to a browser on this machine: plans, budget, rounds, what left, incidents, the log.

    A process of its own, beside the daemon or without it. From another desk: `ssh -L 8787:127.0.0.1:8787 HOST`.
    """
    from silo_agent.console.login import make_login
    from silo_agent.console.process import main as serve_console
    from silo_agent.state import StateFolder

    if new_login:
        StateFolder(state).check_private()
        if not _is_terminal():
            raise ConfigError("a passphrase is shown at a terminal only, lest it end up in a log: run this in one")
        typer.echo(f"passphrase of the console, shown this once: {make_login(state, secrets.token_bytes)}")
        return
    raise SystemExit(serve_console(state, port))


@app.command()
def status(state: StateOption = DEFAULT_STATE) -> None:
    """Show, to the hospital's own staff: contact, trouble, plans, rounds, and everything that has left."""
    from silo_agent.state import StateFolder
    from silo_agent.status import print_status

    with _journal(state) as journal:
        print_status(journal, StateFolder(state), datetime.now(UTC))


@app.command()
def budget(
    state: StateOption = DEFAULT_STATE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per study, a line each.")] = False,
) -> None:
    """Show what patients have been exposed to: epsilon spent and left, per study and for all studies together."""
    from silo_agent.config import load_config
    from silo_agent.cost import accounts
    from silo_agent.state import StateFolder
    from silo_agent.status import print_budget

    config = load_config(state)
    with _journal(state) as journal:
        found = accounts(config, journal, StateFolder(state))
    if as_json:
        for account in found:
            typer.echo(json.dumps(account.figures()))
    else:
        print_budget(config, found)


@app.command()
def keys(state: StateOption = DEFAULT_STATE) -> None:
    """Print this hospital's lines of a reviewer's keys.toml. Give them to the reviewer by a way of your own."""
    from silo_agent.config import load_config
    from silo_agent.state import StateFolder

    folder, site = StateFolder(state), load_config(state).site
    typer.echo(f'[hospitals.{site}]\nkey = "{folder.identity.public.text}"\nsteward = "{folder.steward.public.text}"')


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A study's bundle, from the coordinator.")],
    trust: Annotated[Path, typer.Option(help="keys.toml: the parties' keys, from themselves, not from the bundle.")],
    every_cosignature: Annotated[bool, typer.Option(help="Of very many, also those behind newer ones.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings for a program.")] = False,
) -> None:
    """Verify a study's evidence from scratch, offline. Exit code 0: verified, 1: broken, 2: something is missing."""
    from compliance.verify_command import run

    raise SystemExit(run(bundle, trust, every=every_cosignature, as_json=as_json))


@app.command()
def trail(
    after: Annotated[int, typer.Option(help="Only entries behind this number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The entries' exact bytes, a line each.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show this hospital's own log: everything the agent did, entry by entry, and the root over all of it."""
    from silo_agent.trail_view import print_trail

    with _journal(state) as journal:
        if as_json:
            for leaf in journal.trail(after):
                typer.echo(leaf.decode())
        else:
            print_trail(journal, after)


@app.command()
def withdraw(
    decision: Annotated[Decision, typer.Option(help="What becomes of the models that have seen the patient.")],
    patient: Annotated[str | None, typer.Argument(help="Patient ID. Better leave it out: you are asked.")] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Record that a patient withdraws consent. From the next round on, and in all later scans, they are left out.

    Leave PATIENT out and type it when asked, unseen: an argument ends up in the shell's history, and others on this
    machine can see it while the command runs. It is the Patient ID (0010,0020) of the files the agent reads. It is kept
    nowhere, only a hash of it under this hospital's key; others learn that somebody withdrew only if the plan says so.

    Prints which rounds and models could have seen the patient, for this hospital's people. It cannot be undone, and
    nothing of the privacy budget comes back. Asking again for the same patient changes nothing and prints the same.
    """
    from silo_agent.config import load_config
    from silo_agent.exposure import exposures_of
    from silo_agent.ladder.scratch import clear
    from silo_agent.state import StateFolder
    from silo_agent.withdrawal import master_key
    from silo_agent.withdrawal import withdraw as withdraw_patient
    from silo_agent.withdrawal_view import print_answer

    folder = StateFolder(state)
    folder.check_private()
    if not clear(state):
        raise ConfigError("a dry run or a baseline has this hospital's images on the disk: end it, then withdraw")
    with _journal(state) as journal:
        who = patient or typer.prompt("Patient ID (not shown)", hide_input=True, confirmation_prompt=True)
        found, new = withdraw_patient(journal, folder, who, decision.value, datetime.now(UTC))
        print_answer(found, exposures_of(journal, master_key(folder), load_config(state).site, found), new=new)


@app.command()
def withdrawals(state: StateOption = DEFAULT_STATE) -> None:
    """List who withdrew consent, without saying who: when, the private entry, and what was decided for which study."""
    from silo_agent.withdrawal_view import print_withdrawals

    with _journal(state) as journal:
        print_withdrawals(journal)


@incidents_app.callback(invoke_without_command=True)
def incidents(context: typer.Context, state: StateOption = DEFAULT_STATE) -> None:
    """List the incidents: logs that are not what they were. While one is open, no order is taken."""
    from silo_agent.trail_view import print_incidents

    if context.invoked_subcommand is None:
        with _journal(state) as journal:
            print_incidents(journal)


@incidents_app.command("close")
def incidents_close(
    number: Annotated[int, typer.Argument(help="The incident's number.")], state: StateOption = DEFAULT_STATE
) -> None:
    """Take orders again, after somebody has looked into an incident: that log is believed anew."""
    from silo_agent.witness import close_incident

    with _journal(state) as journal:
        closed = close_incident(journal, number, datetime.now(UTC))
    typer.echo(f"incident {number} about the log of {closed.log} is closed: its next head is believed as the first was")


@plan_app.command("list")
def plan_list(state: StateOption = DEFAULT_STATE) -> None:
    """List the plans that were proposed, and where each stands here."""
    from silo_agent.status import print_plans

    with _journal(state) as journal:
        print_plans(journal)


@plan_app.command("show")
def plan_show(plan: PlanArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Show in plain words what a plan does, to which data, what leaves and what stays, and what changed."""
    from silo_agent.config import load_config
    from silo_agent.state import StateFolder
    from silo_agent.status import print_dossier
    from silo_agent.steward import dossier, find_plan

    with _journal(state) as journal:
        print_dossier(dossier(journal, StateFolder(state), find_plan(journal, plan), load_config(state)))


@plan_app.command("approve")
def plan_approve(
    plan: PlanArgument,
    reason: Annotated[str, typer.Option(help="Why, for the hospital's own records; it does not leave.")],
    role: Annotated[str, typer.Option(help="In which role you approve.")] = "data_steward",
    wait: Annotated[float, typer.Option(help="Seconds to wait for the running agent to check our data.")] = 0.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Approve exactly this digest, for exactly the data as they were checked. Any change needs a new approval."""
    from silo_agent.state import StateFolder
    from silo_agent.steward import approve, wait_for_scan

    with _journal(state) as journal:
        wait_for_scan(journal, plan, wait)
        kept = approve(journal, StateFolder(state), _outbound(state, journal), plan, role, reason)
    typer.echo(f"approved {kept.study}: {kept.digest}")


@plan_app.command("decline")
def plan_decline(
    plan: PlanArgument,
    reason: Annotated[str, typer.Option(help="Why, for the hospital's own records; it does not leave.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Say no, also to a plan that was approved: work on it stops. The coordinator learns that we decline, not why."""
    from silo_agent.steward import decline

    with _journal(state) as journal:
        kept = decline(journal, _outbound(state, journal), plan, reason)
    typer.echo(f"declined {kept.study}")


@plan_app.command("rescan")
def plan_rescan(plan: PlanArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Check our data against the plan again, after the label table or agent.toml was corrected."""
    from silo_agent.steward import forget_scan

    with _journal(state) as journal:
        kept = forget_scan(journal, plan)
    typer.echo(f"the running agent will check our data for {kept.study} again")


def _is_terminal() -> bool:
    return sys.stdout.isatty()


@contextmanager
def _journal(state: Path) -> Iterator[Journal]:
    from silo_agent.config import load_config

    config = load_config(state)
    journal = Journal(state / "journal.sqlite", config.site)
    try:
        yield journal
    finally:
        journal.close()


def _outbound(state: Path, journal: Journal) -> "Outbound":
    from silo_agent.config import load_config
    from silo_agent.outbound import Outbound
    from silo_agent.state import StateFolder

    world = _world()
    return Outbound(
        load_config(state).site, StateFolder(state).identity, journal, world.now, world.entropy, world.version
    )


def _world() -> "Surroundings":
    from silo_agent.daemon import Surroundings

    return Surroundings(lambda: datetime.now(UTC), secrets.token_bytes, metadata.version("wardround"))


def _log_to(path: Path, *, verbose: bool) -> None:
    try:
        handlers: list[logging.Handler] = [RotatingFileHandler(path, maxBytes=5_000_000, backupCount=5)]
    except OSError as why:
        raise ConfigError(f"{path} cannot be written: {why}") from why
    if verbose:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", handlers=handlers)
    logging.getLogger("httpx").setLevel(logging.WARNING)
