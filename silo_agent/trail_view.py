"""The hospital's own log and its incidents, for its own people."""

import json

from rich.console import Console
from rich.table import Table

from compliance.merkle import leaf_hash, root_at
from compliance.trail import read_leaf
from compliance.witnessing import MEANS, NO_MEANING, Contradiction
from silo_agent.journal import Journal
from silo_agent.plain import plain

_SHORT = 60


def print_trail(journal: Journal, after: int) -> None:
    """The entries, and whether the log is still what its tree says."""
    console, table = Console(markup=False, highlight=False), Table(box=None, pad_edge=False)
    for head in ("no.", "time (UTC)", "event", "about"):
        table.add_column(head, justify="right" if head == "no." else "left")
    for data in journal.trail(after):
        leaf = read_leaf(data)
        about = json.dumps(leaf.event.model_dump(mode="json"), separators=(", ", "="))[1:-1].replace('"', "")
        table.add_row(str(leaf.sequence), leaf.time[:19].replace("T", " "), leaf.event.event, plain(about)[:_SHORT])
    console.print(table)
    console.print(sentence(journal))


def sentence(journal: Journal) -> str:
    """What a look at every entry gives: the root, or from which entry on the journal was changed."""
    number = 0
    try:
        for number, leaf in enumerate(journal.trail(), 1):
            if journal.node(0, number - 1) != leaf_hash(leaf):
                return f"BROKEN: entry {number} is not what was written: somebody changed the journal's file"
        size = number
        root = root_at(size, journal.node).hex()
    except (KeyError, TypeError):  # a hash is gone, or something else than bytes was put in the place of an entry
        return f"BROKEN: something is missing at entry {number}: somebody changed the journal's file"
    return f"{size} entries, root {root[:16]}…: no entry was changed since it was written"


def print_incidents(journal: Journal) -> None:
    """Open ones first; what was known and what was shown."""
    console, found = Console(markup=False, highlight=False), journal.incidents()
    if not found:
        console.print("no incident: every log that we were shown goes on from what we knew of it")
    for one in sorted(found, key=lambda one: (one.closed_at is not None, one.incident)):
        state = "OPEN: no order is taken" if one.closed_at is None else f"closed {one.closed_at[:16]}"
        evidence = Contradiction.model_validate_json(one.evidence)
        console.print(f"incident {one.incident}  {one.log}  {one.code}  {one.opened_at[:16]}  {state}")
        for line in (MEANS.get(one.code, NO_MEANING), *evidence.lines):
            console.print(f"  {line}", soft_wrap=True)
