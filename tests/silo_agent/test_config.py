"""agent.toml: what is wrong is said with its place and the fix."""

from pathlib import Path

import pytest

from silo_agent.config import CONFIG_NAME, load_config, parse_config, quoted, starting_config
from silo_agent.errors import ConfigError


def good(site: str = "st-olavs") -> str:
    return starting_config(site, threads=2, heartbeat=10.0)


def test_what_init_writes_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text(good())
    config = load_config(tmp_path)
    assert config.site == "st-olavs"
    assert config.timing.heartbeat == 10.0
    assert config.proxy is None


WRONG = {
    "an unknown key": (good() + "\n[network]\nlisten = 80\n", "network: unknown key"),
    "what the policy says": (good() + "\n[dataset.images]\n", "dataset: unknown key"),
    "a misspelt key": (good().replace("threads", "treads"), "resources.treads: unknown key"),
    "a site with a capital": (good("St-Olavs"), "site: has to be a short name"),
    "the coordinator's own name": (good("coordinator"), "'coordinator' is the coordinator's own name"),
    "threads as text": (good().replace("threads = 2", 'threads = "2"'), "resources.threads"),
    "a heartbeat of never": (good().replace("heartbeat = 10.0", "heartbeat = 0.0"), "timing.heartbeat"),
    "a future version": (good().replace("version = 1", "version = 2"), "version"),
    "not TOML": ("version = ", "cannot be read"),
    "more images at once than are exact": (good().replace("= 16 ", "= 257 "), "resources.images_at_once"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_said_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(text, "agent.toml")
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_missing_or_unreadable_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `silo-agent init` first"):
        load_config(tmp_path)
    (tmp_path / CONFIG_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize("path", ['/data/"ct"', "/data\\ct", "/data\nsite = 'x'"])
def test_paths_that_would_need_escapes_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="quotes, backslashes or control characters"):
        quoted(path)
