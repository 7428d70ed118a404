"""agent.toml: what is wrong is said with its place and the fix."""

from pathlib import Path

import pytest

from silo_agent.config import CONFIG_NAME, load_config, parse_config, starting_config
from silo_agent.errors import ConfigError


def good(site: str = "st-olavs", dataset: str = "images", dicom: str = "/data/ct") -> str:
    return starting_config(site, dataset, Path(dicom), Path("/data/ct/labels.csv"), threads=2, heartbeat=10.0)


def test_what_init_writes_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text(good())
    config = load_config(tmp_path)
    assert config.site == "st-olavs"
    assert config.dataset["images"].source.path == "/data/ct"
    assert config.timing.heartbeat == 10.0
    assert config.proxy is None


WRONG = {
    "an unknown key": (good() + "\n[network]\nlisten = 80\n", "network: unknown key"),
    "a misspelt key": (good().replace("threads", "treads"), "resources.treads: unknown key"),
    "a site with a capital": (good("St-Olavs"), "site: String should match"),
    "the coordinator's own name": (good("coordinator"), "'coordinator' is the coordinator's own name"),
    "a data set with a dot": (good(dataset="ct.chest"), "dataset.ct"),
    "threads as text": (good().replace("threads = 2", 'threads = "2"'), "resources.threads"),
    "a heartbeat of never": (good().replace("heartbeat = 10.0", "heartbeat = 0.0"), "timing.heartbeat"),
    "a future version": (good().replace("version = 1", "version = 2"), "version"),
    "not TOML": ("version = ", "cannot be read"),
    "another kind of archive": (good().replace('kind = "folder"', 'kind = "ftp"'), "dataset.images.source.kind"),
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
        good(dicom=path)
