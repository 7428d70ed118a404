"""What the hospital's own staff see in the terminal."""

from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from boundary.errors import BoundaryError
from boundary.roster import TrustedRoster
from silo_agent.certificate import read_certificate
from silo_agent.cost import Account
from silo_agent.daemon import CONTACT, RELAY_URL, ROSTER, TROUBLES
from silo_agent.errors import ConfigError
from silo_agent.journal import Journal
from silo_agent.permission import holds_still
from silo_agent.personal import own_rows, sentence
from silo_agent.plain import plain
from silo_agent.state import StateFolder
from silo_agent.steward import Dossier, difference, lines


def _text(data: bytes | None, otherwise: str) -> str:
    return otherwise if data is None else data.decode()


def print_status(journal: Journal, folder: StateFolder, now: datetime) -> None:
    console = Console(markup=False, highlight=False)
    for heading, text in summary(journal, folder, now):
        console.print(f"{heading:<14} {text}", soft_wrap=True)
    print_plans(journal)
    for own in own_rows(folder):
        said = f"our own model of {own.study}: {sentence(own)} (silo-agent personal {own.study})"
        console.print(said, soft_wrap=True)
    orders = Table("work", "step", title="Rounds", title_justify="left")
    kept = [order for plan in journal.plans() for order in journal.orders_of(plan.study)]
    for order in kept[-12:]:
        orders.add_row(order.collection, order.step.value)
    console.print(orders)
    left = Table("what", "state", "masked bytes", title="What has left, or is leaving", title_justify="left")
    for slot, _kind, parcel_state, size in journal.left()[-20:]:
        left.add_row(slot, parcel_state, "" if size is None else f"{size:,}")
    console.print(left)


def summary(journal: Journal, folder: StateFolder, now: datetime) -> list[tuple[str, str]]:
    """(heading, text): contact, certificate, roster, and what does not work at present."""
    said = [
        ("relay", _text(journal.fact(RELAY_URL), "not enrolled: silo-agent enrol INVITATION")),
        ("last contact", _text(journal.fact(CONTACT), "never")),
        ("certificate", _certificate(folder, now)),
        ("roster", _roster(journal, now)),
        ("state folder", str(folder.root)),
    ]
    if holds_still(journal):
        said.append(("PAUSED", "nothing is computed until `silo-agent resume`"))
    troubles = [(f"TROUBLE {name}", _text(journal.fact(f"trouble {name}"), "")) for name in TROUBLES]
    doubts = [
        (f"INCIDENT {one.incident}", f"the log of {one.log}: {one.code}. No order is taken: silo-agent incidents")
        for one in journal.incidents(only_open=True)
    ]
    said += doubts + [trouble for trouble in troubles if trouble[1]]
    return [(heading, plain(text)) for heading, text in said]


def _certificate(folder: StateFolder, now: datetime) -> str:
    if not folder.tls_certificate.exists():
        return "none yet"
    try:
        return read_certificate(folder.tls_certificate).sentence(now)
    except ConfigError as why:
        return f"TROUBLE: {why}"


def _roster(journal: Journal, now: datetime) -> str:
    data = journal.fact(ROSTER)
    if data is None:
        return "none yet"
    try:
        roster = TrustedRoster.kept(data).roster
    except (BoundaryError, ValueError, LookupError, TypeError):
        return "TROUBLE: damaged, see docs/hospital.md"
    ends = f"{roster.expires_at:%Y-%m-%d %H:%M} UTC"
    if now >= roster.expires_at:
        return f"version {roster.version}, EXPIRED at {ends}: the coordinator must issue a new one"
    return f"version {roster.version} of {len(roster.members)} hospitals, until {ends}"


def print_plans(journal: Journal) -> None:
    table = Table("study", "plan", "state here", "to do", title="Plans", title_justify="left")
    to_do = {
        "received": "wait: our data are being checked",
        "scanned": "silo-agent plan show STUDY, then approve or decline",
        "unsuitable": "see plan show; correct, then plan rescan",
    }
    for kept in journal.plans():
        table.add_row(kept.study, kept.parsed.label, kept.state, to_do.get(kept.state, ""))
    Console().print(table)


def print_budget(found: list[Account]) -> None:
    """One bar per study and one per population: what is spent of the cap. No patient and no count is in it."""
    console = Console()
    table = Table("study", "spent here", "cap", "", "rounds", title="Privacy budget: epsilon per study")
    lifetimes: dict[str, tuple[float, float, float]] = {}
    for account in found:
        if account.cost is None:
            table.add_row(account.study, "?", "?", Text(plain(account.unable)), "")  # Text: [dataset.x] is no markup
            continue
        balance, terms = account.cost.balance, account.cost.terms
        spent, cap = balance.study.epsilon, balance.caps.study.epsilon
        rounds = f"{balance.committed} trained" + (f", {balance.reserved} lost" if balance.reserved else "")
        table.add_row(account.study, f"{spent:.2f}", f"{cap:g}", _bar(spent, cap), f"{rounds}, {account.cost.fits} fit")
        lifetime = (balance.lifetime.epsilon, balance.caps.lifetime.epsilon, terms.delta)
        lifetimes[terms.declared.population] = lifetime
    together = Table("people", "spent", "cap", "", "delta", title="All studies together: epsilon for life")
    for population, (spent, cap, delta) in lifetimes.items():
        together.add_row(population, f"{spent:.2f}", f"{cap:g}", _bar(spent, cap), f"{delta:.1e}")
    if not found:
        console.print("Nothing was spent: no plan with a guarantee per patient was approved here.")
        return
    console.print(table)
    console.print(together)


def _bar(spent: float, cap: float) -> str:
    full = min(20, round(20 * spent / cap))
    return "█" * full + "░" * (20 - full)


def print_lines(said: list[tuple[str, str]]) -> None:
    """(heading, text) pairs, in plain words."""
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # a digest is read to its end
    for heading, text in said:
        table.add_row(Text(heading), Text(text))  # not str: square brackets in a plan are no markup
    Console().print(table)


def print_dossier(file: Dossier) -> None:
    console = Console()
    print_lines(lines(file))
    changes = difference(file)
    if changes:
        console.print(f"[bold]Changed since the last approved plan ({file.before.label if file.before else ''})[/bold]")
        for change in changes:
            console.print(change, markup=False, highlight=False)
    if file.kept.state == "scanned" and file.refused:
        console.print("It cannot be approved while the policy does not allow it: see Policy above", markup=False)
    elif file.kept.state == "scanned":
        console.print(
            f"To approve exactly this: silo-agent plan approve {file.kept.study} --reason '...'", markup=False
        )
