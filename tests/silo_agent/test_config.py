"""agent.toml: what is wrong is said with its place and the fix."""

from pathlib import Path

import pytest

from silo_agent.config import CONFIG_NAME, PatientCaps, load_config, parse_config, starting_config
from silo_agent.errors import ConfigError


def good(
    site: str = "st-olavs", dataset: str = "images", dicom: str = "/data/ct", most_patients: int | None = None
) -> str:
    labels = Path("/data/ct/labels.csv")
    return starting_config(
        site, dataset, Path(dicom), labels, threads=2, heartbeat=10.0, most_patients=most_patients
    )  # fmt: skip


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
    "an archive of nobody": (good(most_patients=800).replace("= 800", "= 0"), "dataset.images.privacy.most_patients"),
    "half a patient": (good(most_patients=800).replace("= 800", "= 0.5"), "dataset.images.privacy.most_patients"),
    "a budget of nothing": (good(most_patients=8).replace("= 8.0", "= 0.0"), "dataset.images.privacy.study_epsilon"),
    "a budget without end": (good(most_patients=8).replace("= 16.0", "= inf"), "privacy.lifetime_epsilon"),
    "a delta of one's own": (good(most_patients=8).replace("required =", "delta ="), "privacy.delta: unknown key"),
    "a population with a space": (good(most_patients=8).replace('"everybody"', '"every body"'), "privacy.population"),
    "a budget that asks for nothing, perhaps": (good(most_patients=8).replace("= true", "= 1"), "privacy.required"),
    "more images at once than are exact": (good().replace("= 16 ", "= 257 "), "resources.images_at_once"),
    "another kind of archive": (good().replace('kind = "folder"', 'kind = "ftp"'), "dataset.images.source.kind"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_said_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(text, "agent.toml")
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


# --- what patients may be exposed to -----------------------------------------------------------------
def test_a_declared_number_gives_the_data_set_a_budget() -> None:
    caps = parse_config(good(most_patients=800), "agent.toml").dataset["images"].privacy
    assert caps == PatientCaps(most_patients=800, study_epsilon=8.0, lifetime_epsilon=16.0)
    assert caps is not None
    assert (caps.population, caps.required) == ("everybody", True), "careful, where nothing is said"


def test_without_one_the_budget_is_written_down_but_not_in_force() -> None:
    """A number made up by us would be a rate and a delta made up by us."""
    text = good()
    assert parse_config(text, "agent.toml").dataset["images"].privacy is None
    assert "# [dataset.images.privacy]" in text.splitlines()
    uncommented = "\n".join(
        line.removeprefix("# ") if (line.startswith("# ") and " = " in line) or line.startswith("# [") else line
        for line in text.splitlines()
        if not line.startswith("# proxy")
    )
    caps = parse_config(uncommented, "agent.toml").dataset["images"].privacy
    assert caps == PatientCaps(most_patients=1000, study_epsilon=8.0, lifetime_epsilon=16.0)


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
