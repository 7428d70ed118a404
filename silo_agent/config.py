"""`agent.toml`: how this machine runs the agent. Parsed once to a frozen value; unknown keys are refused.

What the agent may do, and with which data, stands in the signed policy (`silo_agent.policy`).
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from boundary.names import Frozen, SiloId
from silo_agent.errors import ConfigError
from silo_agent.forms import reason_of

CONFIG_NAME = "agent.toml"


class Resources(Frozen):
    """What the child process may use."""

    threads: Annotated[int, Field(ge=1, le=256)] = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    images_at_once: Annotated[int, Field(ge=1, le=256)] = 16
    min_free_disk_mb: Annotated[int, Field(ge=0)] = 500


class Timing(Frozen):
    """Seconds. The defaults suit a hospital; the demo is more impatient."""

    heartbeat: Annotated[float, Field(ge=0.2, le=60)] = 10.0
    retry_first: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    retry_most: Annotated[float, Field(ge=0.1, le=600)] = 60.0


class AgentConfig(Frozen):
    """All of agent.toml."""

    version: Literal[1]
    site: SiloId
    resources: Resources = Resources()
    timing: Timing = Timing()
    proxy: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None  # its login is in proxy.credentials


def load_config(state: Path) -> AgentConfig:
    """Raises `ConfigError` with the place and the fix."""
    path = state / CONFIG_NAME
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as why:
        raise ConfigError(f"{path} does not exist: run `silo-agent init` first") from why
    except (OSError, UnicodeDecodeError) as why:
        raise ConfigError(f"{path} cannot be read: {why}") from why
    return parse_config(text, str(path))


def parse_config(text: str, where: str) -> AgentConfig:
    """Raises `ConfigError`; `where` is the file's name in its sentence."""
    try:
        return AgentConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as why:
        raise ConfigError(f"{where} cannot be read: {why}") from why
    except ValidationError as why:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: "
            + ("unknown key" if error["type"] == "extra_forbidden" else reason_of(error))
            for error in why.errors(include_url=False, include_input=False)
        )
        raise ConfigError(f"{where}: {problems}") from why


def starting_config(site: str, *, threads: int, heartbeat: float) -> str:
    """The agent.toml that `silo-agent init` writes, with its comments."""
    return f"""\
# How this machine runs the agent; what it may do stands in policy.toml. Read docs/hospital.md before changing anything.
version = 1
site = {quoted(site)}
# proxy = "http://proxy.hospital.example:3128"   # only if the way out needs one; a login as user:password in the
#   file proxy.credentials beside this one (chmod 600), the proxy's own CA in proxy.pem

[resources]
threads = {threads}          # processor threads for training
images_at_once = 16  # through the network in a private training: memory depends on it, results do not
device = "auto"      # "cuda" when a GPU is there, else "cpu"
min_free_disk_mb = 500

[timing]
heartbeat = {heartbeat}     # seconds between signs of life
"""


def quoted(text: str) -> str:
    """A TOML basic string; what would need an escape is refused. Raises `ConfigError`."""
    if not text.isprintable() or '"' in text or "\\" in text:
        raise ConfigError(f"a path or name with quotes, backslashes or control characters: {text!r}: choose another")
    return f'"{text}"'
