"""Sets the stage: servers up, hospitals enrolled and running, plan published and approved."""

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flows import coordinator as home
from flows.admission import admit, invite
from flows.coordinator import Coordinator, create, starting_settings
from flows.demo.archive import DATASET, Site
from flows.demo.processes import DemoFailed, Processes, answers, choose_port, listens
from flows.deployment import environment
from flows.store import members
from flows.store.database import reading

_BIN = Path(sys.executable).parent
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the three servers listen on loopback."""

    prefect: int
    mlflow: int
    relay: int

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.prefect}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow}"

    @property
    def relay_url(self) -> str:
        return f"https://127.0.0.1:{self.relay}"


def choose_ports(wanted: tuple[int, int, int]) -> Ports:
    usual = (4200, 5000, 8443)
    return Ports(*[choose_port(asked, common) for asked, common in zip(wanted, usual, strict=True)])


@dataclass(frozen=True)
class Stage:
    """Everything of one demo on this machine. Agents' state lies in `agents/`, all else is the coordinator's."""

    workdir: Path
    sites: list[Site]
    ports: Ports
    processes: Processes
    say: Say
    most_patients: dict[str, int] = field(default_factory=dict)  # what each hospital declares, if it has a budget

    def start_servers(self) -> None:
        """Prefect and MLflow, in the background: they take longest."""
        prefect = environment(f"{self.ports.prefect_url}/api") | {"PREFECT_HOME": str(self.workdir / "prefect")}
        self.processes.start(
            "prefect server",
            [str(_BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(self.ports.prefect)],
            prefect,
        )
        folder = self.workdir / "mlflow"
        folder.mkdir()
        self.processes.start(
            "mlflow server",
            [
                str(_BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self.ports.mlflow),
                "--workers", "1", "--serve-artifacts", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
                "--artifacts-destination", str(folder / "artifacts"),
            ],
            dict(os.environ) | {
                "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "DO_NOT_TRACK": "true",
            },
        )  # fmt: skip

    def start_coordinator(self) -> Coordinator:
        """Keys, CA, store, relay."""
        place = self.workdir / "coordinator"
        text = starting_settings(place, self.ports.relay_url, "127.0.0.1", self.ports.relay, ["127.0.0.1", "localhost"])
        text = text.replace(
            '# prefect_url = "http://127.0.0.1:4200/api"', f'prefect_url = "{self.ports.prefect_url}/api"'
        )
        text = text.replace('# mlflow_url = "http://127.0.0.1:5000"', f'mlflow_url = "{self.ports.mlflow_url}"')
        made = create(place, text)
        os.environ[home.HOME_VARIABLE] = str(place)
        self.start_relay()
        self.processes.wait_until("the relay", lambda: listens(self.ports.relay), 60)
        return made

    def start_relay(self) -> None:
        place = str(self.workdir / "coordinator")
        self.processes.start("relay", [str(_BIN / "wardround"), "relay", "--home", place], dict(os.environ))

    def start_serve(self) -> None:
        """The deployment in the Prefect UI."""
        self.processes.wait_until("the Prefect server", lambda: answers(f"{self.ports.prefect_url}/api/health"), 120)
        place = self.workdir / "coordinator"
        prefect = environment(f"{self.ports.prefect_url}/api") | {"PREFECT_HOME": str(self.workdir / "prefect")}
        self.processes.start("flow", [str(_BIN / "wardround"), "serve", "--home", str(place)], prefect)

    # --- hospitals -----------------------------------------------------------------------------------
    def state_of(self, site: Site) -> Path:
        return self.workdir / "agents" / site.silo

    def enrol_all(self, coordinator: Coordinator) -> None:
        """Each hospital makes its keys and asks; the coordinator compares fingerprints and admits."""
        (self.workdir / "invitations").mkdir(mode=0o700)
        with ThreadPoolExecutor(4) as pool:
            fingerprints = dict(zip([s.silo for s in self.sites], pool.map(self._init, self.sites), strict=True))
            for site in self.sites:
                invite(coordinator, site.silo, self._invitation(site))
            asking = [pool.submit(self._enrol, site) for site in self.sites]
            for site, one in zip(self.sites, asking, strict=True):
                self.processes.wait_until(f"{site.silo}'s request", partial(_asks, coordinator, site, one), 60)
                admit(coordinator, site.silo, fingerprints[site.silo])  # what its people would read aloud
                self.say(f"{site.silo} is admitted, fingerprint {fingerprints[site.silo][:19]} …")
            for one in asking:
                one.result()

    def _init(self, site: Site) -> str:
        threads = max(1, (os.cpu_count() or 2) // len(self.sites))
        self._key_of_it(site).parent.mkdir(parents=True, exist_ok=True)
        second = _run([str(_BIN / "silo-agent"), "policy", "key", str(self._key_of_it(site))]).strip()
        said = self._agent(
            site, "init", "--site", site.silo, "--dicom", str(site.dicom), "--labels", str(site.labels),
            "--dataset", DATASET, *self._declared(site), "--threads", str(threads), "--heartbeat", "1.0",
            "--second-key", second,
        )  # fmt: skip
        found = re.search(r"fingerprint: ([0-9a-f ]+)", said)
        if found is None:
            raise DemoFailed(f"silo-agent init of {site.silo} said no fingerprint: {said}")
        self._begin_policy(site)
        return found.group(1).strip()

    def _key_of_it(self, site: Site) -> Path:
        """Of the second person, who would have it on another machine."""
        return self.workdir / "people" / f"{site.silo}-it.pem"

    def _begin_policy(self, site: Site) -> None:
        """Two people go through policy.toml, as `init` wrote it, and sign it."""
        path = self.state_of(site) / "policy.toml"
        path.write_text(self.policy_of(site, path.read_text("utf-8")), "utf-8")
        self._sign(site)
        self._agent(site, "policy", "begin")

    def policy_of(self, site: Site, text: str) -> str:
        """What the two make of the policy.toml that `init` wrote. The hospital's state folder is there by then."""
        return wide(text, self.relay, is_private=site.silo in self.most_patients)

    def _sign(self, site: Site) -> None:
        self._agent(site, "policy", "sign")
        self._agent(site, "policy", "sign", "--role", "it_security", "--key", str(self._key_of_it(site)))

    @cached_property
    def relay(self) -> tuple[str, int, str]:
        """Host, port and key of the relay, as it shows itself: what IT would confirm by telephone."""
        shown = ssl.get_server_certificate(("127.0.0.1", self.ports.relay))
        key = x509.load_pem_x509_certificate(shown.encode()).public_key()
        spki = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
        return "127.0.0.1", self.ports.relay, spki

    def _declared(self, site: Site) -> list[str]:
        return ["--most-patients", str(self.most_patients[site.silo])] if site.silo in self.most_patients else []

    def budget_of(self, site: Site) -> dict[str, Any]:
        """What the study has cost this hospital, as its own people see it; empty without a guarantee."""
        said = self._agent(site, "budget", "--json").splitlines()
        return dict(json.loads(said[-1])) if said else {}

    def write_keys(self, path: Path) -> None:
        """A reviewer's keys.toml: each party's own lines, as its people would hand them over."""
        own = _run([str(_BIN / "wardround"), "keys", "--home", str(self.workdir / "coordinator")])
        path.write_text("\n".join([own, *(self._agent(site, "keys") for site in self.sites)]), "utf-8")

    def _enrol(self, site: Site) -> str:
        return self._agent(site, "enrol", str(self._invitation(site)), "--wait", "120")

    def _invitation(self, site: Site) -> Path:
        return self.workdir / "invitations" / f"{site.silo}.json"

    def start_agents(self) -> None:
        for site in self.sites:
            self.start_agent(site)

    def start_agent(self, site: Site) -> None:
        state = str(self.state_of(site))
        self.processes.start(
            f"agent {site.silo}", [str(_BIN / "silo-agent"), "run", "--state", state], dict(os.environ)
        )

    def publish(self, plan: Path) -> str:
        """Publish in a process of its own, which needs torch and MONAI; returns the plan's label."""
        said = _run(
            [str(_BIN / "wardround"), "plan", "publish", str(plan), "--home", str(self.workdir / "coordinator")]
        )
        found = re.search(r"published (\S+) as study", said)
        if found is None:
            raise DemoFailed(f"wardround plan publish said: {said}")
        return found.group(1)

    def approve_all(self, label: str) -> None:
        """Each steward approves once the agent has checked the hospital's data."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda site: self._approve(site, label), self.sites))

    def _approve(self, site: Site, label: str) -> None:
        try:
            self._agent(site, "plan", "await", label, "--wait", "180")
            self._agent(
                site, "policy", "allow", label, "--irb", "a demo", "--dpia", f"sha256:{hashlib.sha256().hexdigest()}",
                "--expires", f"{datetime.now(UTC).date() + timedelta(days=300)}",
            )  # fmt: skip
            self._sign(site)
            self._agent(site, "policy", "adopt")
            self._agent(site, "plan", "approve", label, "--reason", "demo")
        except DemoFailed as why:
            self.say(f"{site.silo} does not take part: {why}")
        else:
            self.say(f"{site.silo} has checked its data and approved {label}")

    def _agent(self, site: Site, *arguments: str) -> str:
        return _run([str(_BIN / "silo-agent"), *arguments, "--state", str(self.state_of(site))])


def wide(policy: str, relay: tuple[str, int, str], *, is_private: bool) -> str:
    """The policy.toml that `init` wrote, as wide as a demo on one machine needs it."""
    host, port, spki = relay
    for narrow, said in {
        "allow = []": f'allow = [{{ host = "{host}", port = {port}, spki_sha256 = "{spki}" }}]',
        'windows = ["Mon-Fri 19:00-06:00", "Sat-Sun 00:00-24:00"]': 'windows = ["Mon-Sun 00:00-24:00"]',
        'modalities = ["CT"]': 'modalities = ["CT", "CR", "DX", "US", "MR"]',
        "min_patients = 50": "min_patients = 1",
        "max_images_per_patient = 8": "max_images_per_patient = 1000",
        "max_epsilon_per_study = 6.0": "max_epsilon_per_study = 8.0",
        "max_epsilon_lifetime = 10.0": "max_epsilon_lifetime = 16.0",
        "min_noise_multiplier = 0.6": "min_noise_multiplier = 0.1",
        "required = true": f"required = {str(is_private).lower()}",
        'metrics = ["loss", "accuracy", "auroc"]': (
            'metrics = ["loss", "accuracy", "auroc", "dice", "intensities", "comparison"]'
        ),
    }.items():
        if narrow not in policy:
            raise DemoFailed(f"policy.toml has no {narrow}")
        policy = policy.replace(narrow, said)
    return policy


def _asks(coordinator: Coordinator, site: Site, enrolling: Future[str]) -> bool:
    """Whether the request is there; raises what went wrong in the hospital, if that came first."""
    if enrolling.done():
        enrolling.result()
    with reading(coordinator.store) as connection:
        return any(member.silo == site.silo for member in members.waiting(connection))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise DemoFailed(f"{' '.join(command[:3])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
