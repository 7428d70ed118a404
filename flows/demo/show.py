"""The demo as a person sees it: steps, live progress, a table of results, two addresses."""

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from compliance.records import RoundRecord, current
from flows import pages, readings
from flows.coordinator import Coordinator
from flows.demo.archive import ENOUGH_PATIENTS, Site, compose_plan, compose_segmentation, find_sites, look_at
from flows.demo.processes import DemoFailed, Processes, answers
from flows.demo.stage import Stage, choose_ports
from flows.deployment import DEPLOYMENT, REVIEW
from flows.store import members, rounds, studies
from flows.store.database import reading
from flows.store.studies import Study

_FLOW_SECONDS = 4 * 3600
_REVIEW_SECONDS = 300
PHANTOM_IMAGES = 400  # of about 160 patients in each hospital: enough for noise that leaves something to learn

PHANTOM_VOLUMES = 16  # patients in each hospital, a CT series and its mask each


@dataclass(frozen=True, slots=True)
class Choices:
    """The demo's options."""

    archive: Path | None
    rounds: int
    hospitals: int
    workdir: Path
    summary: Path | None
    plan: Path | None
    keep_running: bool
    ports: tuple[int, int, int]
    epsilon: float | None
    segmentation: bool = False


def run_demo(choices: Choices) -> int:
    """The exit code: 0 when the study finished, 1 with a sentence when it did not, 130 after Ctrl-C."""
    console = Console()
    try:
        _demo(choices, console)
    except DemoFailed as why:
        console.print(f"[bold red]demo:[/bold red] {why}")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; everything the demo started has ended")
        return 130
    return 0


def _demo(choices: Choices, console: Console) -> None:
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/dim]  {text}", highlight=False)

    workdir = choices.workdir.resolve()
    if workdir.exists() and any(workdir.iterdir()):
        raise DemoFailed(f"{workdir} is not empty: remove it, or choose another with --workdir")
    archive_sites = find_sites(choices.archive, segmentation=choices.segmentation) if choices.archive else None
    ports = choose_ports(choices.ports)
    workdir.mkdir(parents=True, exist_ok=True)
    with Processes(workdir / "logs") as processes:
        sites = archive_sites or _phantoms(workdir, choices, say)
        look, text = look_at(sites), choices.plan.read_text("utf-8") if choices.plan else None
        if text is None and choices.segmentation:
            text = compose_segmentation(sites, choices.rounds)
        epsilon = 0.0 if choices.segmentation else look.epsilon(choices.epsilon)
        is_private = epsilon > 0 if text is None else "patient-dp" in text
        declared = {site.silo: look.declared(site.silo) for site in sites} if is_private else {}
        stage = Stage(workdir, sites, ports, processes, say, declared)
        stage.start_servers()
        say(f"{len(sites)} hospitals: {', '.join(site.silo for site in sites)}")
        say("the plan is your own" if choices.plan else _promise(epsilon, choices))
        coordinator = stage.start_coordinator()
        say(f"the relay listens at {ports.relay_url}")
        stage.enrol_all(coordinator)
        stage.start_agents()
        plan = workdir / "study.toml"
        plan.write_text(text or compose_plan(sites, choices.rounds, look, epsilon), "utf-8")
        label = stage.publish(plan)
        say(f"plan {label} is published ({plan})")
        stage.start_serve()
        stage.approve_all(label)
        processes.wait_until("MLflow", lambda: answers(f"{ports.mlflow_url}/health"), 120)
        run = start_run(stage, label, DEPLOYMENT, {"rounds": choices.rounds, "dry_run": False})
        console.print(f"          watch it: {ports.prefect_url}/v2/runs/flow-run/{run}", highlight=False)
        _watch(stage, coordinator, label, run, console)
        bundle = _evidence(stage, label, say)
        _finish(stage, coordinator, label, choices, console)
        _how_to_verify(bundle, workdir / "keys.toml", console)
        if choices.keep_running:
            console.print("the servers stay up; Ctrl-C ends them")
            while True:
                processes.check()
                time.sleep(1)


def _promise(epsilon: float, choices: Choices) -> str:
    if epsilon:
        return f"a guarantee per patient: epsilon {epsilon:g} in every hospital for the whole study"
    if choices.segmentation:
        return "NO privacy noise: a dozen patients in a hospital are too few for it"
    if choices.epsilon is None:
        return f"NO privacy noise: a hospital has fewer than {ENOUGH_PATIENTS} patients, noise would leave nothing"
    return "NO privacy noise: asked for with --epsilon 0"


def _phantoms(workdir: Path, choices: Choices, say: Any) -> list[Site]:
    folder = workdir / "agents" / "archives"
    if choices.segmentation:
        from infra.hospitals.phantom_volumes import make_volume_hospitals

        make_volume_hospitals(folder, choices.hospitals, PHANTOM_VOLUMES)
    else:
        from infra.hospitals.phantoms import make_phantom_hospitals

        make_phantom_hospitals(folder, choices.hospitals, PHANTOM_IMAGES)
    say(f"made phantom studies as DICOM in {folder}")
    return find_sites(folder, segmentation=choices.segmentation)


# --- the flow run ----------------------------------------------------------------------------------------
def start_run(stage: Stage, label: str, deployment: str, parameters: dict[str, Any]) -> str:
    """As the Run button does: through a deployment that is about one plan, by the API."""
    api = f"{stage.ports.prefect_url}/api"

    found: dict[str, str] = {}

    def answered(key: str, method: str, path: str, body: dict[str, object] | None = None) -> bool:
        """Whether Prefect answered; 503 is its word for "my database is locked, ask again"."""
        try:
            answer = httpx.request(method, api + path, json=body, trust_env=False, timeout=30)
        except httpx.TransportError:
            return False
        if answer.status_code in {404, 503}:
            return False
        if answer.status_code >= 300:
            raise DemoFailed(f"Prefect refused the run: {answer.text}")
        found[key] = str(answer.json()["id"])
        return label in answer.text

    by_name = f"/deployments/name/{deployment}"
    stage.processes.wait_until("the deployment", lambda: answered("deployment", "GET", by_name), 120)
    create = f"/deployments/{found['deployment']}/create_flow_run"
    body: dict[str, object] = {
        "parameters": {"plan": label} | parameters,
        "state": {"type": "SCHEDULED"},
        "idempotency_key": secrets.token_hex(16),  # asked twice, it is made once
    }
    stage.processes.wait_until("the flow run", lambda: answered("run", "POST", create, body), 60)
    return found["run"]


def _watch(stage: Stage, coordinator: Coordinator, label: str, run: str, console: Console) -> None:
    end = time.monotonic() + _FLOW_SECONDS
    with reading(coordinator.store) as connection:
        study = studies.find(connection, label)
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while time.monotonic() < end:
            stage.processes.check()
            live.update(_progress(coordinator, study))
            state = flow_state(stage, run)
            if state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
                break
            time.sleep(0.5)
        else:
            raise DemoFailed("the study did not finish in time")
    if state["type"] != "COMPLETED":
        raise DemoFailed(
            f"the flow run ended as {state['name']}: {state.get('message')}; see {stage.processes.log_of('flow')}"
        )
    console.print(f"[bold green]{state['name']}[/bold green]  {state.get('message') or ''}", highlight=False)


def flow_state(stage: Stage, run: str) -> dict[str, Any]:
    try:
        found = httpx.get(f"{stage.ports.prefect_url}/api/flow_runs/{run}", trust_env=False, timeout=10)
        return dict(found.json()["state"] or {"type": "PENDING", "name": "Pending"})
    except (httpx.HTTPError, ValueError, KeyError):
        return {"type": "PENDING", "name": "Pending"}


def _progress(coordinator: Coordinator, study: Study) -> Table:
    with reading(coordinator.store) as connection:
        records = rounds.committed(connection, study.study)
        known = members.members(connection)
    total = study.plan.training.rounds
    table = Table(box=None, padding=(0, 2, 0, 10))
    table.add_column(f"{len(records)} of {total} rounds committed", no_wrap=True)
    table.add_column(_last(records), no_wrap=True)
    for member in known:
        activity = member.heartbeat.activity if member.heartbeat else None
        if activity is None:
            table.add_row(member.silo, "waiting")
            continue
        share = activity.step / activity.steps if activity.steps else 0.0
        done = int(20 * share)
        bar = "█" * done + "░" * (20 - done)
        table.add_row(member.silo, f"round {activity.round} {activity.phase} {bar} {share:.0%}")
    return table


def _last(records: list[RoundRecord]) -> str:
    metrics = current(records)
    if metrics is None:
        return ""
    name, value = readings.readings(metrics)[0]
    return f"loss {pages.number(metrics.loss)}  {name} {pages.number(value, 3)}"


# --- evidence --------------------------------------------------------------------------------------------
def _evidence(stage: Stage, label: str, say: Any) -> Path:
    """Have the evidence put together, as an officer would in the Prefect UI, and the reviewer's keys beside it."""
    run, end = start_run(stage, label, REVIEW, {}), time.monotonic() + _REVIEW_SECONDS
    while (state := flow_state(stage, run))["type"] not in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
        stage.processes.check()
        if time.monotonic() > end:
            raise DemoFailed("the evidence was not put together in time")
        time.sleep(0.5)
    if state["type"] != "COMPLETED":
        raise DemoFailed(f"compliance-review ended as {state['name']}: {state.get('message')}")
    say(f"the evidence is put together: {state.get('message')}")
    stage.write_keys(stage.workdir / "keys.toml")
    return max((stage.workdir / "coordinator" / "evidence").glob("*bundle*"))


def _how_to_verify(bundle: Path, keys: Path, console: Console) -> None:
    from compliance.verify_command import run

    said: list[str] = []
    run(bundle, keys, write=said.append)
    console.print(f"evidence {bundle}", highlight=False, soft_wrap=True)
    console.print(f"keys     {keys}", highlight=False, soft_wrap=True)
    console.print(f"verify   wardround verify {bundle} --trust {keys}", highlight=False, soft_wrap=True)
    console.print(f"         {''.join(said).strip().splitlines()[-1]}", highlight=False)


# --- results ---------------------------------------------------------------------------------------------
def _finish(stage: Stage, coordinator: Coordinator, label: str, choices: Choices, console: Console) -> None:
    with reading(coordinator.store) as connection:
        study = studies.find(connection, label)
        records = rounds.committed(connection, study.study)
        run = rounds.is_published(connection, study.study, "start")
        registered = rounds.is_published(connection, study.study, "model")
    console.print(_results(study, records))
    spent = {site.silo: stage.budget_of(site) for site in stage.sites} if study.plan.bands else {}
    if spent:
        console.print(_spent(spent))
    if registered:
        console.print(f"model registered in MLflow: {registered}", highlight=False)
    console.print(f"Prefect  {stage.ports.prefect_url}", highlight=False)
    console.print(f"MLflow   {stage.ports.mlflow_url}/?workflowType=machine_learning", highlight=False)
    if choices.summary is not None:
        content = summary(study, records, stage.processes.peak_mb, run) | {"privacy": spent}
        choices.summary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        console.print(f"summary  {choices.summary}", highlight=False)


def _results(study: Study, records: list[RoundRecord]) -> Table:
    title = f"{study.label} · study {study.study}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    names = readings.headings(study.plan)
    for head in ("round", "training\nloss", "loss", *names, "reg./ready/\ncontrib.", "up", "down", "seconds"):
        # fits a terminal of 80 columns
        table.add_column(head.replace("accuracy", "accu-\nracy"), justify="right", no_wrap=True)
    for record in records:
        metrics = record.metrics
        table.add_row(
            str(record.round),
            pages.number(record.train_loss),
            pages.number(metrics.loss if metrics else None),
            *(pages.number(value, 3) for value in readings.values(study.plan, metrics)),
            f"{len(record.registered)}/{len(record.ready)}/{len(record.contributing)}",
            pages.size(sum(traffic.up for traffic in record.traffic.values())),
            pages.size(sum(traffic.down for traffic in record.traffic.values())),
            f"{record.timing.total:.1f}",
        )
    return table


def _spent(by_hospital: dict[str, dict[str, Any]]) -> Table:
    """What the study has cost each hospital's patients, from its own ledger."""
    table = Table(title="What it cost each hospital's patients", title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("hospital", "epsilon", "cap", "delta", "noise", "in a step", "rounds"):
        table.add_column(head, justify="left" if head == "hospital" else "right", no_wrap=True)
    for silo, figures in sorted(by_hospital.items()):
        if "epsilon" not in figures:
            table.add_row(silo, figures.get("unable", "took no part"))
            continue
        table.add_row(
            silo,
            f"{figures['epsilon']:.2f}",
            f"{figures['cap']:g}",
            f"{figures['delta']:.1e}",
            f"{figures['noise_multiplier']:.2f} x C",
            f"{figures['sampling_rate']:.0%}",
            str(figures["committed"] + figures["reserved"]),
        )
    return table


def summary(
    study: Study, records: list[RoundRecord], peak_mb: dict[str, float], mlflow_run: str | None
) -> dict[str, Any]:
    """The results for machines. Seconds, bytes, and megabytes (10^6) of resident memory."""
    return {
        "study": study.study,
        "plan": study.label,
        "plan_digest": study.plan_digest,
        "model": {"name": study.plan.model.name, "version": study.plan.model.version},
        "mlflow_run_id": mlflow_run,
        "peak_memory_mb": {name: round(value, 1) for name, value in sorted(peak_mb.items())},
        "rounds": [_round_summary(record) for record in records],
    }


def _round_summary(record: RoundRecord) -> dict[str, Any]:
    metrics = record.metrics
    return {
        "round": record.round,
        "seconds": record.timing.model_dump(),
        "train_loss": record.train_loss,
        **(readings.series(metrics) if metrics else {}),
        "bytes_up": {silo: traffic.up for silo, traffic in record.traffic.items()},
        "bytes_down": {silo: traffic.down for silo, traffic in record.traffic.items()},
        "registered": len(record.registered),
        "ready": len(record.ready),
        "contributing": len(record.contributing),
        "absent": record.absent,
        "rolled_back": record.rolled_back,
        "not_drawn": list(record.not_drawn),
    }
