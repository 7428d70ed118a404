"""A real federation on this machine for a benchmark: relay over TLS, Prefect server, agents; no MLflow."""

import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boundary.identity import SigningIdentity
from boundary.parts import parts_of
from boundary.plan import StudyPlan, parse_plan
from boundary.tensors import TensorManifest, TensorSpec
from compliance.records import RoundRecord
from flows import coordinator as home
from flows.coordinator import Coordinator, create, load, starting_settings
from flows.demo.archive import Site
from flows.demo.processes import Processes, answers, choose_port, listens
from flows.demo.stage import Ports, Stage
from flows.deployment import environment
from flows.publication import begin_study, pinned, propose
from flows.store import rounds, studies
from flows.store.database import reading

STANDIN = "infra.bench.standin"
REAL_CHILD = "silo_agent.trainer"
SILOS = ("alpha", "beta", "gamma")


@dataclass(frozen=True)
class BenchStage(Stage):
    """The demo's stage without MLflow, whose agents run the child we say."""

    child: str = STANDIN

    def start_coordinator(self) -> Coordinator:
        place = self.workdir / "coordinator"
        text = starting_settings(place, self.ports.relay_url, "127.0.0.1", self.ports.relay, ["127.0.0.1", "localhost"])
        made = create(place, text)
        os.environ[home.HOME_VARIABLE] = str(place)
        self.start_relay()
        self.processes.wait_until("the relay", lambda: listens(self.ports.relay), 60)
        return made

    def start_prefect(self) -> None:
        """In the background: it takes several seconds, see `await_prefect`."""
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.ports.prefect)]
        self.processes.start("prefect server", [str(Path(sys.executable).parent / command[0]), *command[1:]],
                             self.prefect_environment)  # fmt: skip

    def await_prefect(self) -> None:
        self.processes.wait_until("the Prefect server", lambda: answers(f"{self.ports.prefect_url}/api/health"), 120)

    @property
    def prefect_environment(self) -> dict[str, str]:
        return environment(f"{self.ports.prefect_url}/api") | {"PREFECT_HOME": str(self.workdir / "prefect")}

    def _init(self, site: Site) -> str:
        """With the sign of life every 10 s that an installed agent gives, not the demo's every second."""
        fingerprint = super()._init(site)
        config = self.state_of(site) / "agent.toml"
        config.write_text(config.read_text("utf-8").replace("heartbeat = 1.0", "heartbeat = 10.0"), "utf-8")
        return fingerprint

    def start_agent(self, site: Site) -> None:
        command = [sys.executable, "-m", "infra.bench.hospital", "--child", self.child, "--state"]
        self.processes.start(f"agent {site.silo}", [*command, str(self.state_of(site))], dict(os.environ))

    @property
    def coordinator(self) -> Coordinator:
        return load(self.workdir / "coordinator")

    def records(self) -> list[RoundRecord]:
        with reading(self.coordinator.store) as connection:
            every = studies.every(connection)
            return rounds.committed(connection, every[0].study) if every else []


@contextmanager
def federation(
    workdir: Path, *, sites: list[Site] | None = None, child: str = STANDIN,
    hospitals: int = 3, agents: bool = True, prefect: bool = True,
) -> Iterator[BenchStage]:  # fmt: skip
    """Enrolled hospitals that wait for a plan, and a Prefect server; all ended with the block."""
    processes = Processes(workdir / "logs")
    processes.logs.mkdir(parents=True)  # without its `with`: its sampling of memory would be in the figures
    ports = Ports(*[choose_port(0, usual) for usual in (4210, 5010, 8453)])
    stage = BenchStage(workdir, sites or _empty_sites(workdir, hospitals), ports, processes, lambda _: None, child)
    try:
        if prefect:
            stage.start_prefect()
        coordinator = stage.start_coordinator()
        stage.enrol_all(coordinator)
        if agents:
            stage.start_agents()
        if prefect:
            stage.await_prefect()
        yield stage
    finally:
        processes.stop()


def _empty_sites(workdir: Path, count: int) -> list[Site]:
    """Hospitals for the stand-in, which looks at no file."""
    sites = []
    for silo in SILOS[:count]:
        folder = workdir / "archives" / silo
        (folder / "dicom").mkdir(parents=True)
        (folder / "labels.csv").write_text("SOPInstanceUID,finding\n")
        sites.append(Site(silo, folder / "dicom", folder / "labels.csv"))
    return sites


def publish_synthetic(coordinator: Coordinator, plan_text: str, parameters: int) -> StudyPlan:
    """Publish a study whose model is one tensor of this length, past the catalogue, which has no such network."""
    plan = pinned(coordinator, plan_text)
    manifest = TensorManifest(tensors=(TensorSpec(name="weights", shape=(parameters,)),))
    values = np.random.default_rng(0).normal(0, 0.02, parameters).astype(np.float32)
    propose(coordinator, begin_study(coordinator, plan, values, parts_of(plan.model, manifest)))
    return plan


def plan_text(silos: Sequence[str], dataset: str, rounds_: int, *, holdout: float = 0.2) -> str:
    """A study.toml for these hospitals, by name; everything else as a small study would have it."""
    listed = ", ".join(f'"{silo}"' for silo in silos)
    return f"""\
version = 1
name = "bench"
revision = 1
hospitals = [{listed}]

[purpose]
title = "Benchmark"
statement = "Measures Wardround."
legal_basis = "none needed: no data of persons"
ethics_reference = "none"
expires = 2099-12-31

[model]
name = "densenet-small"
version = 1

[preprocessing]
size = [64, 64]
intensity = "window"
low = -150.0
high = 350.0

[labels]
classes = ["0", "1"]

[dataset]
name = "{dataset}"
modalities = ["CT"]
max_images_per_patient = 8
holdout_share = {holdout}

[training]
rounds = {rounds_}
local_epochs = 1
batch_size = 16

[aggregation]
quorum = 3
ready_minutes = 10.0
lost_after_seconds = 30.0
"""


def keyed_plan(silos: Sequence[str], dataset: str, rounds_: int, *, holdout: float = 0.2) -> StudyPlan:
    """A parsed `plan_text` for hospitals that nobody enrolled, with new keys."""
    value = tomllib.loads(plan_text(silos, dataset, rounds_, holdout=holdout))
    keys = {silo: SigningIdentity.generate().public.text for silo in silos}
    return parse_plan(value | {"hospitals": [{"silo": silo, "signing_key": key} for silo, key in keys.items()]})
