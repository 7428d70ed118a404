"""The demo, of which one hospital keeps its images in an archive over DICOMweb, and one goes out through a proxy.

Normalisation stays home in each of them, their steps are corrected as SCAFFOLD does, the network begins with a file of
weights that each of them has, and after the last round each fine-tunes a head of its own.

    python three_ways.py WORKDIR ARCHIVE ORTHANC_URL PROXY_URL PROXY_CA LOGIN PREFECT_PORT MLFLOW_PORT RELAY_PORT

The first hospital of ARCHIVE reads from Orthanc and the second is behind the proxy; both want LOGIN (user:password).
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy

from boundary.learning import ModelChoice
from flows.demo import show
from flows.demo.archive import DATASET, Site
from flows.demo.stage import Stage
from models.parameters import initial_tensors
from silo_agent.config import CONFIG_NAME

WORKDIR, ARCHIVE = (Path(word).resolve() for word in sys.argv[1:3])
ORTHANC, PROXY, PROXY_CA, LOGIN = sys.argv[3:7]
WEIGHTS = WORKDIR / "weights"  # the hospitals' own: one folder stands for three here
PREFECT, MLFLOW, RELAY = (int(word) for word in sys.argv[7:10])


@dataclass(frozen=True)
class ThreeWays(Stage):
    """Its hospitals' own people write another address into their files, before they sign."""

    def policy_of(self, site: Site, text: str) -> str:
        state, number = self.state_of(site), self.sites.index(site)
        text = super().policy_of(site, text)
        if number == 0:
            folder = f'kind = "folder", path = "{site.dicom.resolve()}"'
            if folder not in text:
                raise SystemExit(f"no {folder} in {text}")
            text = text.replace(folder, f'kind = "dicomweb", url = "{ORTHANC}"')
            _write_login(state / f"archive-{DATASET}.credentials")
        if number == 1:
            with (state / CONFIG_NAME).open("r+", encoding="utf-8") as file:
                before = file.read()
                file.seek(0)
                file.write(f'proxy = "{PROXY}"\n{before}')
            _write_login(state / "proxy.credentials")
            (state / "proxy.pem").write_bytes(Path(PROXY_CA).read_bytes())
        return f"{text}\n[weights]\nfolder = '{WEIGHTS}'\n"

    def publish(self, plan: Path) -> str:
        text, pin = plan.read_text("utf-8"), _weights(self.workdir / "coordinator" / "weights")
        for before, after in (
            ("initial_seed = 7", f'initial_seed = 7\nhome = ["*norm*"]\n{pin}'),
            ("rounds = 2", 'rounds = 2\nstrategy = "scaffold"\nweighting = "equal"'),
            ('optimizer = "adam"\nlearning_rate = 0.001', 'optimizer = "sgd"\nlearning_rate = 0.02'),
        ):
            if before not in text:
                raise SystemExit(f"no {before} in {text}")
            text = text.replace(before, after)
        plan.write_text(f'{text}\n[personalisation]\nparameters = ["class_layers.*"]\nepochs = 2\n', "utf-8")
        return super().publish(plan)


def _weights(coordinators: Path) -> str:
    """The same file for everybody, each in a folder of their own; the lines of a plan that begins with it."""
    WEIGHTS.mkdir()
    tensors = initial_tensors(ModelChoice(name="densenet-small", version=1, initial_seed=99), 2)
    data = safetensors.numpy.save({f"net.{name}": tensor for name, tensor in tensors.items()})
    coordinators.mkdir()
    for folder in (coordinators, WEIGHTS):
        (folder / "elsewhere.safetensors").write_bytes(data)
    pin = f'file = "elsewhere.safetensors", sha256 = "{hashlib.sha256(data).hexdigest()}"'
    return f'pretrained = {{ {pin}, strip = "net.", leave_out = ["class_layers.*"] }}'


def _write_login(path: Path) -> None:
    path.touch(0o600)
    path.write_text(LOGIN, "utf-8")


if __name__ == "__main__":
    show.Stage = ThreeWays
    choices = show.Choices(
        archive=ARCHIVE, rounds=2, hospitals=3, workdir=WORKDIR / "w", summary=WORKDIR / "out.json", plan=None,
        keep_running=False, ports=(PREFECT, MLFLOW, RELAY), epsilon=0.0,
    )  # fmt: skip
    raise SystemExit(show.run_demo(choices))
