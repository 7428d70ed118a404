"""`silo-agent policy`: what this hospital allows, and the signatures of two people under it."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silo_agent.commands.options import DEFAULT_STATE, PlanArgument, StateOption, opened_journal
from silo_agent.errors import ConfigError

if TYPE_CHECKING:
    from boundary.identity import SigningIdentity
    from silo_agent.policy.adoption import PolicyInForce

policy_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""What this hospital allows, in policy.toml, signed by two people. What it does not name is refused.

    [bold]The first one[/bold]: `init` wrote it; key (the second person) → edit → sign, by each → begin.
    [bold]A change[/bold]: write policy.proposed.toml, or `allow` a study → show → sign, by each → adopt.""",
)


@policy_app.command()
def key(file: Annotated[Path, typer.Argument(help="Where the private key goes. Keep it where only you read.")]) -> None:
    """Make the key of a person who signs policies, on that person's machine; print its public part for policy.toml."""
    from boundary.identity import SigningIdentity

    made = SigningIdentity.generate()
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as why:
        raise ConfigError(f"{file} cannot be made ({why.strerror}): choose another name") from why
    with os.fdopen(handle, "wb") as out:
        out.write(made.to_pem())
    typer.echo(made.public.text)


@policy_app.command()
def show(
    proposed: Annotated[bool, typer.Option("--proposed", help="The one that waits, and what it would change.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show the policy in plain words, who signed it, and with --proposed what the next one would change."""
    from silo_agent.policy.describe import difference, lines, standing_lines
    from silo_agent.policy.files import PolicyFiles, load_policy, next_number, read_proposed
    from silo_agent.status import print_lines

    if not proposed:
        force = load_policy(state)
        print_lines([*lines(force.policy), *standing_lines(force)])
        return
    waiting, before = read_proposed(state)
    print_lines(lines(waiting))
    if before is not None:
        changed = difference(before, waiting)
        typer.echo("What it changes:" if changed else "It changes nothing.")
        print_lines(changed)
    number, name = next_number(state), PolicyFiles(state).waiting.name
    typer.echo(
        "to sign it: `silo-agent policy sign`, and on another machine, with a copy of the text, "
        f"`silo-agent policy sign --role ROLE --key KEY --text {name} --number {number} --out FILE`"
    )


@policy_app.command()
def sign(
    role: Annotated[str, typer.Option(help="Your role, as approvers.roles in the policy names it.")] = "data_steward",
    key_file: Annotated[
        Path | None, typer.Option("--key", help="Your key; without it the steward's, which lies in the state folder.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="On another machine: the policy.toml to sign. Needs --out, and no state folder.")
    ] = None,
    number: Annotated[int, typer.Option(help="With --text: which policy of this hospital it is, from 1.")] = 1,
    out: Annotated[Path | None, typer.Option(help="With --text: where the signature goes, for `policy add`.")] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Sign the proposed policy, or the first one. Read it before: `policy show --proposed`."""
    from silo_agent.policy.files import sign as sign_text
    from silo_agent.policy.files import sign_here
    from silo_agent.policy.signing import to_json
    from silo_agent.state import StateFolder, write_private

    if text is None:
        mine = StateFolder(state).steward if key_file is None else _key(key_file)
        file = sign_here(state, mine, role)
        typer.echo(f"signed as {role}: number {file.number}, {file.digest}")
        return
    if out is None or key_file is None:
        raise ConfigError("with --text name your key with --key, and with --out where the signature goes")
    file = sign_text(_bytes(text), _key(key_file), role, number=number)
    write_private(out, to_json(file))
    typer.echo(f"signed as {role}: number {file.number}, {file.digest}; give {out} to the agent's `policy add`")


@policy_app.command()
def add(
    signature: Annotated[Path, typer.Argument(help="What `policy sign --text` wrote on another machine.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Add a signature that was made on another machine."""
    from silo_agent.policy.files import add_signatures

    file = add_signatures(state, _bytes(signature))
    typer.echo(f"number {file.number} of {file.digest} is signed by {', '.join(sorted(_roles(file.signatures)))}")


@policy_app.command()
def begin(state: StateOption = DEFAULT_STATE) -> None:
    """Put the first policy into force, once all that it asks for have signed it."""
    from silo_agent.config import load_config
    from silo_agent.policy.files import begin as begin_policy

    _in_force(state, begin_policy(state, load_config(state).site, datetime.now(UTC)))


@policy_app.command()
def adopt(state: StateOption = DEFAULT_STATE) -> None:
    """Put the proposed policy into force. A running agent obeys it from its next step on.

    What only tightens takes one signature of the policy in force, everything else all of them.
    """
    from silo_agent.policy.files import adopt as adopt_policy

    adopted = adopt_policy(state, datetime.now(UTC))
    _in_force(state, adopted.force)
    if not adopted.changed:
        typer.echo("it was in force already")


@policy_app.command()
def allow(
    plan: PlanArgument,
    irb: Annotated[str, typer.Option(help="The ethics committee's reference in this hospital.")],
    dpia: Annotated[str, typer.Option(help="sha256:... of the data protection impact assessment, as it was filed.")],
    expires: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="The last day of both papers.")],
    max_rounds: Annotated[int | None, typer.Option(help="Without it, as many as the plan has.")] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Propose to add exactly this plan to the policy: writes policy.proposed.toml, for two people to read and sign."""
    from boundary.parties import last_round
    from silo_agent.policy.proposing import papers_of, propose_plan
    from silo_agent.steward import find_plan

    with opened_journal(state) as journal:
        kept = find_plan(journal, plan).parsed
    papers = papers_of(irb, dpia, expires.date())
    path = propose_plan(state, kept, papers, max_rounds or last_round(kept))
    typer.echo(f"wrote {path}: read it with `policy show --proposed`, then `policy sign`, by each, and `policy adopt`")


def _in_force(state: Path, force: "PolicyInForce") -> None:
    from silo_agent.permission import announce

    with opened_journal(state) as journal:
        announce(journal, force, datetime.now(UTC))
    typer.echo(f"in force: number {force.standing.pin.number}, {force.digest}")


def _key(path: Path) -> "SigningIdentity":
    from boundary.identity import SigningIdentity

    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`")
        return SigningIdentity.from_pem(path.read_bytes())
    except OSError as why:
        raise ConfigError(f"{path} cannot be read ({why.strerror})") from why
    except ValueError as why:
        raise ConfigError(f"{path} is no key: make one with `silo-agent policy key`") from why


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as why:
        raise ConfigError(f"{path} cannot be read ({why.strerror})") from why


def _roles(signatures: object) -> list[str]:
    return [one.role for one in signatures]  # type: ignore[attr-defined]
