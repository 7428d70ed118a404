"""What documents quote from the code is what the code says."""

from pathlib import Path

from boundary.protocol import diagram

DOCS = Path(__file__).parents[2] / "docs"


def test_the_protocol_page_shows_the_table_the_agent_uses() -> None:
    page = (DOCS / "protocol.md").read_text("utf-8")
    assert f"```mermaid\n{diagram()}\n```" in page, "run: python -c 'from boundary.protocol import *; print(diagram())'"
