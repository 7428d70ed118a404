"""SIGKILL at several points of a study: flow, relay, agents, children. No round is lost, none applied twice.

One study with real processes. What a service manager would do (start again what died) and what a coordinator would
do (run the flow again), the test does.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from boundary.protocol import Step
from compliance.events import (
    AnyEvent,
    AttemptFailed,
    RoundClosed,
    UnmaskingHelped,
    WorkDone,
)
from compliance.records import RoundRecord
from compliance.trail import Leaf, read_leaf
from flows.coordinator import Coordinator
from flows.demo.archive import Site, compose_plan, find_sites, look_at
from flows.demo.processes import DemoFailed, Processes
from flows.demo.show import flow_state, start_run
from flows.demo.stage import Ports, Stage
from flows.deployment import DEPLOYMENT
from flows.store import audit, rounds, studies
from flows.store.database import reading
from flows.store.schema import cohorts, envelopes
from flows.store.schema import rounds as rounds_table
from infra.hospitals.phantoms import make_phantom_hospitals
from silo_agent.journal import Journal

pytestmark = pytest.mark.slow
ROUNDS = 6
DONE = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Ward:
    """A staged federation whose parts may be killed and started again."""

    stage: Stage
    coordinator: Coordinator
    label: str
    run: str = ""

    # --- what the store says ---
    @property
    def study(self) -> str:
        with reading(self.coordinator.store) as connection:
            return studies.find(connection, self.label).study

    def records(self) -> list[RoundRecord]:
        with reading(self.coordinator.store) as connection:
            return rounds.committed(connection, self.study)

    def is_open(self, number: int) -> bool:
        with reading(self.coordinator.store) as connection:
            wanted = select(rounds_table.c.state).where(rounds_table.c.round == number)
            return connection.execute(wanted).scalar() == "open"

    def has_candidate(self, number: int) -> bool:
        with reading(self.coordinator.store) as connection:
            wanted = select(rounds_table.c.candidate).where(rounds_table.c.round == number)
            return connection.execute(wanted).scalar() is not None

    def is_closed(self, number: int, phase: str) -> bool:
        with reading(self.coordinator.store) as connection:
            names = connection.execute(select(cohorts.c.collection)).scalars()
            return any(f"/{number}/{phase}/" in name for name in names)

    # --- what a person or a service manager does ---
    def start_run(self) -> None:
        self.run = start_run(self.stage, self.label, DEPLOYMENT, {"rounds": ROUNDS, "dry_run": False})

    def flow_process(self) -> psutil.Process | None:
        for child in psutil.Process(self.stage.processes.pid("flow")).children(recursive=True):
            with suppress(psutil.Error):
                if "prefect.engine" in " ".join(child.cmdline()) or "flow-run" in " ".join(child.cmdline()):
                    return child
        return None

    def kill(self, name: str) -> None:
        os.killpg(self.stage.processes.pid(name), signal.SIGKILL)
        psutil.Process(self.stage.processes.pid(name)).wait(timeout=20)

    def kill_flow(self) -> None:
        process = self.flow_process()
        assert process is not None
        for child in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                child.kill()
        wait_for("Prefect to notice", lambda: flow_state(self.stage, self.run)["type"] in DONE, 60)

    def step_of(self, silo: str, collection: str) -> Step | None:
        """Where an agent stands with a collection, read from its journal while it runs."""
        site = next(site for site in self.stage.sites if site.silo == silo)
        journal = Journal(self.stage.state_of(site) / "journal.sqlite", silo)
        try:
            order = journal.order(collection)
        finally:
            journal.close()
        return None if order is None else order.step

    def is_posted(self, kind: str, collection: str) -> bool:
        with reading(self.coordinator.store) as connection:
            wanted = select(envelopes.c.digest).where(envelopes.c.kind == kind, envelopes.c.slot == collection)
            return connection.execute(wanted).first() is not None

    def kill_child_of(self, silo: str) -> None:
        children = psutil.Process(self.stage.processes.pid(f"agent {silo}")).children()
        assert children
        children[0].kill()


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} took longer than {seconds} s"
        time.sleep(0.01)


@pytest.fixture
def ward(
    tmp_path: Path, request: pytest.FixtureRequest, three_ports: Callable[[], tuple[int, int, int]]
) -> Iterator[Ward]:
    workdir = tmp_path / "w"
    archives = workdir / "agents" / "archives"
    make_phantom_hospitals(archives, getattr(request, "param", 3), images_per_hospital=48)
    sites = find_sites(archives)
    with Processes(workdir / "logs") as processes:
        stage = Stage(workdir, sites, Ports(*three_ports()), processes, lambda _: None)
        stage.start_servers()
        coordinator = stage.start_coordinator()
        stage.enrol_all(coordinator)
        stage.start_agents()
        plan = workdir / "study.toml"
        text = compose_plan(sites, ROUNDS, look_at(sites), 0.0).replace("local_epochs = 2", "local_epochs = 12")
        text = text.replace("[preprocessing]\n", '[preprocessing]\nnormalise = "federated"\n')
        plan.write_text(text.replace("lost_after_seconds = 30.0", "lost_after_seconds = 90.0"), "utf-8")
        label = stage.publish(plan)
        stage.start_serve()
        stage.approve_all(label)
        yield Ward(stage, coordinator, label)


def test_a_study_survives_sigkill_of_flow_relay_agent_and_child(ward: Ward) -> None:
    first, second, third = (site.silo for site in ward.stage.sites)
    site_of = {site.silo: site for site in ward.stage.sites}
    ward.start_run()

    wait_for("round 1 to be trained", lambda: ward.is_open(1))
    time.sleep(1.5)
    ward.kill_child_of(first)  # the attempt fails, the others' finished work is kept, the next attempt goes through
    wait_for("round 1", lambda: len(ward.records()) >= 1)

    wait_for("round 2 to be trained", lambda: ward.is_open(2))
    ward.kill_flow()  # while hospitals train
    ward.start_run()
    wait_for("round 2", lambda: len(ward.records()) >= 2)

    wait_for("round 3 to be trained", lambda: ward.is_open(3))
    ward.kill(f"agent {second}")  # in the middle of its work
    ward.stage.start_agent(site_of[second])
    wait_for("round 3", lambda: len(ward.records()) >= 3)

    wait_for("round 4's cohort", lambda: ward.is_closed(4, "train"))
    ward.kill("relay")  # while vectors travel
    time.sleep(1)
    ward.stage.start_relay()
    wait_for("round 4", lambda: len(ward.records()) >= 4)

    wait_for("round 5's candidate", lambda: ward.has_candidate(5))
    ward.kill_flow()  # between aggregation and commit
    ward.kill("relay")
    ward.kill(f"agent {third}")
    ward.stage.start_relay()
    ward.stage.start_agent(site_of[third])
    ward.start_run()
    wait_for("round 5", lambda: len(ward.records()) >= 5)

    wait_for("the end", lambda: flow_state(ward.stage, ward.run)["type"] in DONE, 240)
    assert flow_state(ward.stage, ward.run)["type"] == "COMPLETED"
    check_books(ward)


def trail(ward: Ward) -> list[Leaf]:
    with reading(ward.coordinator.store) as connection:
        return [read_leaf(leaf) for leaf in audit.leaves(connection)]


def own_trail(ward: Ward, site: Site) -> list[AnyEvent]:
    journal = Journal(ward.stage.state_of(site) / "journal.sqlite", site.silo)
    try:
        return [read_leaf(leaf).event for leaf in journal.trail()]
    finally:
        journal.close()


def check_books(ward: Ward) -> None:
    """Each round once, each model made from the one before, each hospital's work done once for each order."""
    records = ward.records()
    assert [record.round for record in records] == list(range(1, ROUNDS + 1))
    for before, after in pairwise(records):
        assert after.model_in == before.model_out.digest
    assert all(len(record.contributing) == 3 for record in records)
    leaves = trail(ward)
    with reading(ward.coordinator.store) as connection:
        study = studies.find(connection, ward.label)
    assert [leaf.event.round for leaf in leaves if isinstance(leaf.event, RoundClosed)] == list(range(1, ROUNDS + 1))
    assert study.state == "finished"
    for site in ward.stage.sites:
        done = [event for event in own_trail(ward, site) if isinstance(event, WorkDone)]
        assert len({event.order for event in done}) == len(done), "an order was answered twice"
        assert {(event.round, event.phase) for event in done} == {
            (1, "statistics"),
            *((number, phase) for number in range(1, ROUNDS + 1) for phase in ("train", "evaluate")),
        }


@pytest.mark.parametrize("ward", [5], indirect=True)
def test_agents_killed_in_the_middle_of_a_masked_sum_rejoin(ward: Ward) -> None:
    """One of five between its keys and its vector, one between its vector and its shares."""
    one, other = (site.silo for site in ward.stage.sites[:2])
    site_of = {site.silo: site for site in ward.stage.sites}
    collection = f"{ward.study}/1/train/1"
    ward.start_run()

    wait_for("its keys", lambda: ward.step_of(one, collection) is Step.READY)
    ward.kill(f"agent {one}")
    ward.stage.start_agent(site_of[one])
    wait_for("the shares to be routed", lambda: ward.is_posted("shares-routed", collection))
    flow = ward.flow_process()
    assert flow is not None
    flow.suspend()  # nobody is named a survivor until the other is dead
    wait_for("its vector", lambda: ward.step_of(other, collection) is Step.MASKED)
    ward.kill(f"agent {other}")
    flow.resume()
    ward.stage.start_agent(site_of[other])

    wait_for("round 1", lambda: len(ward.records()) >= 1, 240)
    wait_for("round 2", lambda: len(ward.records()) >= 2, 240)
    first, second = ward.records()[:2]
    assert first.train.attempt > 1  # three of five were left: too few to open anything
    assert len(first.contributing) == len(second.contributing) == 5
    failures = [leaf.event for leaf in trail(ward) if isinstance(leaf.event, AttemptFailed)]
    assert failures
    helped = {
        site.silo: [e for e in own_trail(ward, site) if isinstance(e, UnmaskingHelped)] for site in ward.stage.sites
    }
    for silo, events in helped.items():
        told = [(event.round, event.phase, event.attempt) for event in events]
        assert len(told) == len(set(told)), f"{silo} helped to unmask twice in one attempt"


def test_the_demo_says_which_part_ended_when_one_does(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("short", ["sh", "-c", "echo the reason; exit 3"], dict(os.environ))
        with pytest.raises(DemoFailed, match=r"(?s)short ended with status 3.*the reason"):
            processes.wait_until("nothing", lambda: False, 10)
