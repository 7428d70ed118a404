"""What the hospital's people are told of their own log when somebody has been at the journal's file."""

from pathlib import Path
from typing import Any

import pytest

from silo_agent.journal import Journal
from silo_agent.trail_view import sentence

FAULTS = {
    "an entry was changed": "UPDATE trail SET leaf = CAST('other' AS BLOB) WHERE sequence = 2",
    "a hash of the tree is gone": "DELETE FROM tree WHERE level = 0 AND position = 1",
    "an entry is no bytes any more": "UPDATE trail SET leaf = 7 WHERE sequence = 2",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_log_that_was_changed_is_said_to_be_broken(site: Any, fault: str) -> None:
    site.approve()
    assert "no entry was changed since it was written" in sentence(site.journal)
    for (name,) in site.journal._db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        site.journal._db.execute(f"DROP TRIGGER {name}")
    site.journal._db.execute(FAULTS[fault])
    assert sentence(site.journal).startswith("BROKEN: ")


def test_an_empty_log_has_the_root_of_an_empty_tree(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", "st-olavs")
    assert sentence(journal).startswith("0 entries, root e3b0c442")
    journal.close()
