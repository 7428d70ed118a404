"""One request of a person who is logged in, with what its page may look at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from silo_agent.config import AgentConfig, load_config
from silo_agent.console.exchange import Request, Response
from silo_agent.console.rendering import render
from silo_agent.console.sessions import Session
from silo_agent.journal import Journal
from silo_agent.outbound import Outbound
from silo_agent.state import StateFolder


@dataclass(frozen=True, slots=True)
class World:
    """What is handed to the console from outside: clock, entropy, the agent's version, and where its state lies."""

    folder: StateFolder
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    version: str


@dataclass(frozen=True, slots=True)
class Visit:
    """`form` has been checked to be of this session; it is empty for a GET."""

    world: World
    request: Request
    session: Session
    journal: Journal
    config: AgentConfig
    form: dict[str, str]

    def page(self, template: str, title: str, /, *, status: int = 200, **values: object) -> Response:
        """A page with the console's frame around it."""
        return Response(status, render(template, self.frame | {"title": title} | values))

    @property
    def frame(self) -> dict[str, object]:
        return {
            "site": self.config.site,
            "version": self.world.version,
            "token": self.session.token,
            "here": "/" + self.request.path.split("/")[1],
            "now": self.world.now().isoformat(),
        }

    @property
    def outbound(self) -> Outbound:
        """The gate, as the terminal's commands open it."""
        world = self.world
        return Outbound(
            self.config.site, world.folder.identity, self.journal, world.now, world.entropy, world.version
        )  # fmt: skip


@contextmanager
def visit(world: World, request: Request, session: Session, form: dict[str, str]) -> Iterator[Visit]:
    """Opened anew for every request: agent.toml and the journal as they are now. Raises `ConfigError`."""
    config = load_config(world.folder.root)
    journal = Journal(world.folder.journal, config.site, world.entropy)
    try:
        yield Visit(world, request, session, journal, config, form)
    finally:
        journal.close()
