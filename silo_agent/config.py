"""`agent.toml`: parsed once, in `main`, to a frozen value. Unknown keys are refused.

The policy file of a later issue takes over the data sets; the shape of `[dataset.NAME]` is already its.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from boundary.names import Frozen, SiloId, StudyName
from boundary.plan import MAX_HOSPITALS, SMALLEST_COHORT
from silo_agent.errors import ConfigError

CONFIG_NAME = "agent.toml"


class FolderOf(Frozen):
    """DICOM files in a folder tree."""

    kind: Literal["folder"]
    path: str


class CsvOf(Frozen):
    """Labels in a table keyed by a UID."""

    kind: Literal["csv"]
    path: str


class PatientCaps(Frozen):
    """What the patients of a data set may be exposed to, by plans with a guarantee per patient.

    `most_patients` is a public number that the archive will not outgrow: sampling rates and delta come from it, never
    from a count. `population` names the people: data sets of one population may share patients, and what is spent on
    one is spent on all. Epsilons are at delta = 1 / (10 * most_patients).
    """

    most_patients: Annotated[int, Field(ge=1, le=10_000_000)]
    study_epsilon: Annotated[float, Field(gt=0, le=100)]
    lifetime_epsilon: Annotated[float, Field(gt=0, le=1000)]
    population: StudyName = "everybody"
    required: bool = True


class DatasetConfig(Frozen):
    """One data set of the hospital, by the name plans use."""

    source: FolderOf
    labels: CsvOf
    privacy: PatientCaps | None = None


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


class Sums(Frozen):
    """The hospital's own floor, whatever a plan says: the fewest hospitals in a sum it takes part in."""

    least_hospitals: Annotated[int, Field(ge=SMALLEST_COHORT, le=MAX_HOSPITALS)] = SMALLEST_COHORT


class AgentConfig(Frozen):
    """All of agent.toml."""

    version: Literal[1]
    site: SiloId
    dataset: dict[StudyName, DatasetConfig]
    resources: Resources = Resources()
    timing: Timing = Timing()
    sums: Sums = Sums()
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
            + ("unknown key" if error["type"] == "extra_forbidden" else error["msg"])
            for error in why.errors(include_url=False, include_input=False)
        )
        raise ConfigError(f"{where}: {problems}") from why


def starting_config(
    site: str,
    dataset: str,
    dicom: Path,
    labels: Path,
    *,
    threads: int,
    heartbeat: float,
    most_patients: int | None = None,
) -> str:
    """The agent.toml that `silo-agent init` writes, with its comments."""
    return f"""\
# Wardround silo agent. Read docs/hospital.md before changing anything here.
version = 1
site = {_quoted(site)}
# proxy = "http://proxy.hospital.example:3128"   # only if the way out needs one; a login as user:password in the
#   file proxy.credentials beside this one (chmod 600), the proxy's own CA in proxy.pem

[dataset.{dataset}]
source = {{ kind = "folder", path = {_quoted(str(dicom))} }}
labels = {{ kind = "csv", path = {_quoted(str(labels))} }}
{_caps(dataset, most_patients)}
[resources]
threads = {threads}          # processor threads for training
images_at_once = 16  # through the network in a private training: memory depends on it, results do not
device = "auto"      # "cuda" when a GPU is there, else "cpu"
min_free_disk_mb = 500

[timing]
heartbeat = {heartbeat}     # seconds between signs of life

[sums]
least_hospitals = 3  # refuse to be in a sum over fewer hospitals, whatever the plan says
"""


def _quoted(text: str) -> str:
    """A TOML basic string; paths with quotes or control characters are refused rather than escaped."""
    if any(ord(character) < 32 or character in '"\\' for character in text):
        raise ConfigError(f"a path or name with quotes, backslashes or control characters: {text!r}")
    return f'"{text}"'


def _caps(dataset: str, most_patients: int | None) -> str:
    off, most_patients = ("# ", 1000) if most_patients is None else ("", most_patients)
    return f"""
# What patients may be exposed to by plans with a guarantee per patient; without it such plans are turned down.
{off}[dataset.{dataset}.privacy]
{off}most_patients = {most_patients}      # a public number the archive will not outgrow, never a count
{off}study_epsilon = 8.0       # of one study, at delta = 1 / (10 * most_patients)
{off}lifetime_epsilon = 16.0   # of all studies on these people together
{off}population = "everybody"  # data sets of one population may share patients
{off}required = true           # turn down plans without a guarantee
"""
