"""`silo-agent`: what hospital IT and the data steward type."""

import asyncio
import json
import logging
import os
import secrets
import sqlite3
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated

import typer

from boundary.errors import BoundaryError
from silo_agent.commands.consent import add_to as add_consent_to
from silo_agent.commands.incidents import incidents_app
from silo_agent.commands.ladder import add_to as add_ladder_to
from silo_agent.commands.options import DEFAULT_STATE, StateOption, opened_journal, surroundings
from silo_agent.commands.personal import add_to as add_personal_to
from silo_agent.commands.plan import plan_app
from silo_agent.commands.policy import policy_app
from silo_agent.errors import AgentError, ConfigError

NO_KEY_YET = "ed25519:..."  # in policy.toml until the second person has made theirs

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""The agent a hospital runs: it dials out to one address, trains on the hospital's own images, and lets
    nothing leave but what its steward approved.

    [bold]First time[/bold]: init → check --invitation FILE → policy sign, by two → policy begin → rehearse
    → scan FOLDER → enrol FILE → run.
    [bold]For each study[/bold]: plan list → plan show STUDY → dry-run STUDY → policy allow → plan approve STUDY.""",
)
app.add_typer(policy_app, name="policy")
app.add_typer(plan_app, name="plan")
app.add_typer(incidents_app, name="incidents")


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
    labels: Annotated[
        Path,
        typer.Option(
            help="CSV or Parquet with the labels, keyed by SOP/Series/StudyInstanceUID or AccessionNumber; or a folder "
            "of masks, DICOM SEG (it may be the DICOM folder) or NIfTI."
        ),
    ],
    dataset: Annotated[str, typer.Option(help="Name of the data set, as study plans ask for it.")] = "images",
    second_key: Annotated[
        str, typer.Option(help="Public key of the second person who signs policies, of `silo-agent policy key`.")
    ] = NO_KEY_YET,
    second_role: Annotated[str, typer.Option(help="That person's role.")] = "it_security",
    most_patients: Annotated[
        int,
        typer.Option(
            min=1, max=10_000_000, help="A public number of patients that the archive will not outgrow, never a count."
        ),
    ] = 2000,
    exclusions: Annotated[
        Path | None, typer.Option(help="Where the list of excluded patients lies or will lie. Default: in --state.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of the hours in the policy, like Europe/Oslo.")] = "UTC",
    threads: Annotated[int, typer.Option(help="Processor threads for training.")] = 2,
    heartbeat: Annotated[float, typer.Option(help="Seconds between signs of life.")] = 10.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Make the state folder: keys that never leave it, agent.toml, and a policy.toml to go through and sign."""
    from silo_agent.config import CONFIG_NAME, parse_config, starting_config
    from silo_agent.console.login import make_login
    from silo_agent.forms import check_key
    from silo_agent.policy.files import PolicyFiles
    from silo_agent.policy.starting import Start, kind_of_labels, starting_policy
    from silo_agent.state import StateFolder, write_private

    for path, what in ((dicom, "the DICOM folder"), (labels, "the label table, or the folder of masks,")):
        if not path.exists():
            raise ConfigError(f"{what} {path} does not exist")
    if second_key != NO_KEY_YET:
        check_key(second_key, "--second-key")
    folder = StateFolder(state)
    text = starting_config(site, threads=threads, heartbeat=heartbeat)
    parse_config(text, f"{state / CONFIG_NAME}, as it would be")
    listed = (state / "excluded.hmac" if exclusions is None else exclusions).resolve()
    today = datetime.now(UTC).date()
    start = Start(
        site, [("data_steward", NO_KEY_YET), (second_role, second_key)], dataset, dicom.resolve(), labels.resolve(),
        listed, today, today + timedelta(days=365), timezone, n_max_patients=most_patients,
        labels_kind=kind_of_labels(labels),
    )  # fmt: skip
    starting_policy(start)  # says what is wrong with a name before a key is made
    folder.create(secrets.token_bytes, text)
    approvers = [("data_steward", folder.steward.public.text), (second_role, second_key)]
    write_private(PolicyFiles(state).policy, starting_policy(replace(start, approvers=approvers)).encode())
    if not listed.exists():
        write_private(listed, b"")
    typer.echo(f"made {state} for {site}")
    typer.echo(f"fingerprint: {folder.identity.public.fingerprint}")
    if _is_terminal():  # elsewhere it would end up in the log of whatever runs this
        typer.echo(f"passphrase of the console, shown this once: {make_login(state, secrets.token_bytes)}")
    else:
        typer.echo("for the console's passphrase: `silo-agent console --new-login`, at a terminal")
    typer.echo("next: go through policy.toml, have both people sign it (`silo-agent policy --help`), and ask the")
    typer.echo("coordinator for an invitation file: `silo-agent check --invitation FILE` tells what [network] needs")


@app.command()
def check(
    invitation: Annotated[
        Path | None, typer.Option(help="Before enrolment: try the way to this invitation's relay. It is not used up.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for a program.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Look at everything the agent needs, each failure with its fix: network, proxy, TLS, clock, disk, GPU, data.

    Exit code 0: nothing failed. Else that of the first that did: 2 agent.toml, 19 state folder, keys or enrolment, 21
    policy or exclusion list, 10 network, 11 proxy, 12 TLS, 13 clock, 20 relay, 14 disk, 15 memory, 16 child or GPU, 17
    archive, 18 labels.
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
    admitted = asyncio.run(Enrolment(config, folder, paper, surroundings()).ask_and_wait(wait, lambda: None))
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

    What it does is logged in agent.log of the state folder. Exit codes: 2 configuration, 3 not enrolled, 4 wrong
    coordinator, 5 upgrade needed, 6 no signed policy. Do not restart on these.
    """
    from silo_agent.config import load_config
    from silo_agent.daemon import Agent
    from silo_agent.state import StateFolder
    from silo_agent.worker import Worker

    config, folder = load_config(state), StateFolder(state)
    folder.check_private()
    with folder.only_one():
        _log_to(folder.log, verbose=verbose)
        if _is_terminal():
            typer.echo(f"{config.site} runs; its log is {folder.log}, `silo-agent status` shows more; Ctrl-C ends it")
        worker = Worker(folder.root / "child.log", config.resources.threads)
        asyncio.run(Agent(config, folder, surroundings(), worker).run())


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

    with opened_journal(state) as journal:
        print_status(journal, StateFolder(state), datetime.now(UTC))


@app.command()
def budget(
    state: StateOption = DEFAULT_STATE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per study, a line each.")] = False,
) -> None:
    """Show what patients have been exposed to: epsilon spent and left, per study and for all studies together."""
    from silo_agent.cost import accounts
    from silo_agent.policy.files import load_policy
    from silo_agent.state import StateFolder
    from silo_agent.status import print_budget

    with opened_journal(state) as journal:
        found = accounts(load_policy(state).policy, journal, StateFolder(state))
    if as_json:
        for account in found:
            typer.echo(json.dumps(account.figures()))
    else:
        print_budget(found)


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

    with opened_journal(state) as journal:
        if as_json:
            for leaf in journal.trail(after):
                typer.echo(leaf.decode())
        else:
            print_trail(journal, after)


add_personal_to(app)
add_consent_to(app)


@app.command()
def pause(state: StateOption = DEFAULT_STATE) -> None:
    """Compute nothing until `resume`: a training holds still after its step. Rounds may end without us meanwhile."""
    _pause(state, is_paused=True)


@app.command()
def resume(state: StateOption = DEFAULT_STATE) -> None:
    """Go on after `pause`."""
    _pause(state, is_paused=False)


def _pause(state: Path, *, is_paused: bool) -> None:
    from silo_agent.permission import pause as set_pause

    with opened_journal(state) as journal:
        changed = set_pause(journal, is_paused=is_paused, now=datetime.now(UTC))
    said = "paused: nothing is computed until `silo-agent resume`" if is_paused else "work goes on"
    typer.echo(said if changed else f"nothing changed: {said}")


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _log_to(path: Path, *, verbose: bool) -> None:
    try:
        handlers: list[logging.Handler] = [RotatingFileHandler(path, maxBytes=5_000_000, backupCount=5)]
    except OSError as why:
        raise ConfigError(f"{path} cannot be written: {why}") from why
    if verbose:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", handlers=handlers)
    logging.getLogger("httpx").setLevel(logging.WARNING)
