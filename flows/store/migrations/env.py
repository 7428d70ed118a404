"""Alembic's entry point. The connection, in a transaction, comes from `flows.store.database.migrate`."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from flows.store.schema import UtcDateTime, metadata


def _render(kind: str, value: Any, _context: AutogenContext) -> str | Literal[False]:
    """A revision is frozen: it says what a column was, not what schema.py says today."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(value, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=_render,
)
with context.begin_transaction():
    context.run_migrations()
