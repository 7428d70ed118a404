"""Write the next revision from the difference between schema.py and the revisions so far.

    python -m flows.store.migrations.new 0002 "what changes"

Read what it wrote before you commit it: Alembic does not see renames.
"""

import sys
import tempfile
from pathlib import Path

from alembic import command

from flows.store.database import migrate, migrations, open_store, writing


def main(revision: str, message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = open_store(f"sqlite:///{Path(folder)}/store.db")
        migrate(engine)
        config = migrations()
        with writing(engine) as connection:
            config.attributes["connection"] = connection
            command.revision(config, message, rev_id=revision, autogenerate=True)
        engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
