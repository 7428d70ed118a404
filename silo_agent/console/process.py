"""`silo-agent console`: a process of its own, beside the daemon or without it."""

import asyncio
import os
import secrets
import signal
import socket
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from silo_agent.config import load_config
from silo_agent.console.login import read_login
from silo_agent.console.reception import Reception
from silo_agent.console.server import LOOPBACK, listen, serve
from silo_agent.console.visit import World
from silo_agent.state import StateFolder

DEFAULT_PORT = 8787


def main(state: Path, port: int = DEFAULT_PORT) -> int:
    """Serve the console of a state folder until SIGTERM or Ctrl-C; returns the exit code.

    Raises `ConfigError` if the folder, its agent.toml or its login cannot be used, or the port is taken.
    """
    os.umask(0o077)
    config, folder = load_config(state), StateFolder(state)
    folder.check_private()
    read_login(folder)
    world = World(folder, lambda: datetime.now(UTC), secrets.token_bytes, metadata.version("wardround"))
    with listen(port) as listening:
        taken = listening.getsockname()[1]
        sys.stdout.write(f"the console of {config.site}: http://{LOOPBACK}:{taken}/  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        asyncio.run(_until_told(Reception(world, config.site, taken), listening))
    return 0


async def _until_told(reception: Reception, listening: socket.socket) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for told in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(told, stop.set)
    await serve(reception, listening, stop)
