"""`silo-agent run` with another child: the one thing the product has no option for, and shall not have.

python -m infra.bench.hospital --state FOLDER --child infra.bench.standin
"""

import argparse
import asyncio
import logging
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from silo_agent.config import load_config
from silo_agent.daemon import Agent, Surroundings
from silo_agent.state import StateFolder
from silo_agent.worker import Worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--child", required=True, help="module that speaks the child's protocol")
    chosen = parser.parse_args()
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config, folder = load_config(chosen.state), StateFolder(chosen.state)
    world = Surroundings(lambda: datetime.now(UTC), secrets.token_bytes, "0.0.0")
    with folder.only_one():
        worker = Worker(folder.root / "child.log", config.resources.threads, chosen.child)
        asyncio.run(Agent(config, folder, world, worker).run())


if __name__ == "__main__":
    main()
