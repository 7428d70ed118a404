"""What the hospital's own staff see in the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from boundary.canonical import parse_json
from boundary.plan import plan_from_json
from silo_agent.daemon import CONTACT, RELAY_URL
from silo_agent.journal import Journal
from silo_agent.steward import Dossier, difference, lines


def _text(data: bytes | None, otherwise: str) -> str:
    return otherwise if data is None else data.decode()


def print_status(journal: Journal, state: Path) -> None:
    console = Console()
    console.print(f"relay          {_text(journal.fact(RELAY_URL), 'not enrolled: silo-agent enrol INVITATION')}")
    console.print(f"last contact   {_text(journal.fact(CONTACT), 'never')}")
    console.print(f"state folder   {state}")
    print_plans(journal)
    orders = Table("work", "step", title="Rounds", title_justify="left")
    kept = [order for plan in journal.plans() for order in journal.orders_of(plan.study)]
    for order in kept[-12:]:
        orders.add_row(order.collection, order.step.value)
    console.print(orders)
    left = Table("what", "state", "sealed bytes", title="What has left, or is leaving", title_justify="left")
    for slot, _kind, parcel_state, size in journal.left()[-20:]:
        left.add_row(slot, parcel_state, "" if size is None else f"{size:,}")
    console.print(left)


def print_plans(journal: Journal) -> None:
    table = Table("study", "plan", "state here", "to do", title="Plans", title_justify="left")
    to_do = {
        "received": "wait: our data are being checked",
        "scanned": "silo-agent plan show STUDY, then approve or decline",
        "unsuitable": "see plan show; correct, then plan rescan",
    }
    for kept in journal.plans():
        table.add_row(kept.study, plan_from_json(parse_json(kept.plan)).label, kept.state, to_do.get(kept.state, ""))
    Console().print(table)


def print_dossier(file: Dossier) -> None:
    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for heading, text in lines(file):
        table.add_row(heading, text)
    console.print(table)
    changes = difference(file)
    if changes:
        console.print(f"[bold]Changed since the last approved plan ({file.before.label if file.before else ''})[/bold]")
        for change in changes:
            console.print(change, markup=False, highlight=False)
    if file.kept.state == "scanned":
        console.print(
            f"To approve exactly this: silo-agent plan approve {file.kept.study} --reason '...'", markup=False
        )
