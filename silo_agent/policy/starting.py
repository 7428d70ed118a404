"""The policy.toml that `silo-agent init` writes: complete, with its comments, and it allows nothing yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from silo_agent.config import quoted
from silo_agent.errors import ConfigError
from silo_agent.intake.archive import LabelKind
from silo_agent.intake.labels import kind_of
from silo_agent.policy.sections import Destination


@dataclass(frozen=True, slots=True)
class Start:
    """What the hospital's own people say at `init`. `approvers` are (role, public key) pairs of at least two roles."""

    site: str
    approvers: Sequence[tuple[str, str]]
    dataset: str
    dicom: Path
    labels: Path
    exclusions: Path
    first: date
    last: date
    timezone: str = "UTC"
    relay: Destination | None = None
    n_max_patients: int = 2000
    labels_kind: LabelKind = "csv"


def kind_of_labels(labels: Path) -> LabelKind:
    """What lies there, by its name: a folder has masks, in NIfTI if any file is called so, else as DICOM SEG."""
    if labels.is_dir():
        return "nifti" if any(labels.rglob("*.nii*")) else "seg"
    return kind_of(labels)


def starting_policy(start: Start) -> str:
    """The text; it parses as it is.

    Raises `ConfigError` for fewer than two roles, and for names and paths that TOML would have to escape.
    """
    if len({role for role, _ in start.approvers}) < 2:
        raise ConfigError("a policy is signed in two roles: name the key of a second person, in another role")
    roles = ", ".join(quoted(role) for role, _ in start.approvers)
    keys = ", ".join(quoted(key) for _, key in start.approvers)
    required = len({role for role, _ in start.approvers})
    return f"""\
# What this hospital allows. What is not named here is refused. Read docs/hospital.md before changing anything.
# A change that only tightens takes one signature, every other all that `required` asks for:
# write it to policy.proposed.toml, `silo-agent policy sign`, `silo-agent policy adopt`.
version = 1
site = {quoted(start.site)}
valid = {{ from = {start.first.isoformat()}, until = {start.last.isoformat()} }}   # days in UTC, both included

[approvers]
required = {required}   # so many different roles sign, each with its own key
roles = [{roles}]
keys = [{keys}]   # the n-th key is the n-th role's; a person makes theirs with `silo-agent policy key`

[network]   # the agent only dials out, and only to these
allow = [{_destination(start.relay)}]
max_egress_mb_per_round = 200   # what leaves, all messages of a round together
max_model_mb = 200              # what comes in

[hours]
timezone = {quoted(start.timezone)}
windows = ["Mon-Fri 19:00-06:00", "Sat-Sun 00:00-24:00"]   # 06:00 is that of the next morning
on_close = "finish-step-then-pause"

[dataset.{start.dataset}]
source = {{ kind = "folder", path = {quoted(str(start.dicom))} }}   # or kind = "dicomweb", url = "http://..."
labels = {{ kind = "{start.labels_kind}", path = {quoted(str(start.labels))} }}   # csv, parquet; of masks: seg, nifti
modalities = ["CT"]
exclusions = {{ path = {quoted(str(start.exclusions))}, max_age_hours = 24 }}   # older than that: no round
min_patients = 50
max_images_per_patient = 8
n_max_patients = {start.n_max_patients}   # a public number the archive will not outgrow, never a count
population = "everybody"   # data sets of one population may share patients: what is spent on one is spent on all
lossy = "refuse"
burned_in = "refuse"

# [weights]   # without it plans that begin with a file of pretrained weights are turned down
# folder = "/srv/wardround/weights"   # files that this hospital put there itself; plans pin them by SHA-256

[privacy]   # what a patient may be exposed to; epsilons are at delta = 1 / (10 * n_max_patients)
max_epsilon_per_study = 6.0
max_epsilon_lifetime = 10.0
max_delta = {1 / (10 * start.n_max_patients)!r}   # no less than 1 / (10 * n_max_patients) of each data set
min_noise_multiplier = 0.6
required = true   # turn down plans without a guarantee per patient

[release]
min_parties_in_sum = 3
metrics = ["loss", "accuracy", "auroc"]   # also "dice" of segmentation, "intensities" and "cohort" where plans ask
# "comparison": at how many hospitals a study's model is better than their own alone, by how much on average
smallest_cell = 10   # counts are told in steps of so many

# No study yet, so no plan can run. One looks like this:
# [study.ct-contrast]
# plan_digest = ["sha256:..."]   # as `silo-agent plan show` prints it, once it has been read
# purpose = "scientific research"
# legal = {{ irb = "2025/118", dpia = "sha256:...", expires = {start.last.isoformat()} }}
# max_rounds = 60

[resources]
devices = 1   # GPUs; 0 for processors only
max_hours_per_round = 2

[audit]
retain_years = 6
cosigners = 2
on_fork = "halt"
"""


def _destination(relay: Destination | None) -> str:
    if relay is None:
        return ""
    host, key = quoted(relay.host), quoted(relay.spki_sha256)
    return f"{{ host = {host}, port = {relay.port}, spki_sha256 = {key} }}"
