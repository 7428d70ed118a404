"""Puts our flows into the Prefect UI: deployed by module path, with the published plans in their forms."""

import asyncio
import contextlib
import logging
import os
from datetime import timedelta
from typing import Any

import httpx

from flows.coordinator import Coordinator
from flows.store import studies
from flows.store.database import reading

DEPLOYMENT, REVIEW = "federated-training/study", "compliance-review/evidence"
ENTRYPOINT = "flows.federated_training.federated_training"
_LOOK_SECONDS = 2.0  # for newly published plans
_LONGEST_PAUSE = 30.0  # between two tries to reach Prefect
_log = logging.getLogger("wardround.serve")

PREFECT_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "true",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # for the server: by default every event of a task is a transaction of its own. On SQLite those collide with the
    # flow's requests, which are then refused (503) and repeated two seconds later, in nearly every round.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
}


def offers(coordinator: Coordinator) -> tuple[list[str], list[str]]:
    """(plans that can still train, all plans), newest first: the choices in the forms."""
    with reading(coordinator.store) as connection:
        known = list(reversed(studies.every(connection)))
    unfinished = [study.label for study in known if study.state != "finished" and study.plan.training.rounds]
    return unfinished, [study.label for study in known]


async def serve(coordinator: Coordinator) -> None:
    """Keep the deployment's form in step with the published plans and run what is asked for, until SIGTERM."""
    from prefect.runner import Runner

    await _await_prefect(str(coordinator.settings.prefect_url))
    runner = Runner(name="wardround", pause_on_shutdown=False)
    await _ensure_zombie_automation()
    offered = offers(coordinator)
    await _offer(runner, *offered)
    for deployment in _scheduled():
        await runner.aadd_deployment(deployment)
    keeping = asyncio.create_task(_keep_form(runner, coordinator, offered))
    try:
        await runner.start()  # ends by itself on SIGTERM and SIGINT
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def _await_prefect(url: str) -> None:
    """Prefect may start after us, or be away for a while: say so and try again."""
    pause = 1.0
    while True:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
                (await client.get(f"{url}/health")).raise_for_status()
        except httpx.HTTPError as why:
            _log.warning("Prefect at %s does not answer (%s); again in %.0f s", url, type(why).__name__, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return


async def _keep_form(runner: Any, coordinator: Coordinator, offered: tuple[list[str], list[str]]) -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        now = offers(coordinator)
        if now != offered:
            await _offer(runner, *now)
            offered = now


async def _offer(runner: Any, unfinished: list[str], every: list[str]) -> None:
    """The flows that are about one plan, with these plans in their forms."""
    from flows.federated_evaluation import federated_evaluation
    from flows.federated_statistics import federated_statistics
    from flows.federated_training import federated_training
    from flows.review import compliance_review, model_release

    training = _deployment(
        federated_training, "study",
        "Train a published plan across its hospitals. It goes on at the first uncommitted round.",
    )  # fmt: skip
    review = _deployment(
        compliance_review, "evidence", "Put the evidence about a study together and show it in MLflow."
    )  # fmt: skip
    release = _deployment(
        model_release, "gate", "Release a finished study's model, after an officer's signed decision."
    )  # fmt: skip
    evaluation = _deployment(
        federated_evaluation, "study", "How good models are on held-back patients. Measure finished ones."
    )  # fmt: skip
    counting = _deployment(
        federated_statistics, "study", "Describe the data of all hospitals together, in one masked sum."
    )  # fmt: skip
    forms = ((training, unfinished), (evaluation, every), (counting, every), (review, every), (release, every))
    for deployment, offered in forms:
        schema = deployment._parameter_openapi_schema  # noqa: SLF001 - the form's choices are data, the flow's type is not
        schema.properties["plan"]["enum"] = offered or ["publish-a-plan-first@0"]
        await runner.aadd_deployment(deployment)


def _scheduled() -> list[Any]:
    from flows.review import audit_watch, retention_

    return [
        _deployment(audit_watch, "hourly", "Verify all logs from the bytes up.", interval=timedelta(hours=1)),
        _deployment(retention_, "daily", "Remove what finished studies no longer need.", interval=timedelta(days=1)),
    ]


def _deployment(of: Any, name: str, description: str, interval: timedelta | None = None) -> Any:
    from prefect.deployments.runner import EntrypointType, RunnerDeployment  # type: ignore[attr-defined]

    return RunnerDeployment.from_flow(
        of, name=name, tags=["wardround"], entrypoint_type=EntrypointType.MODULE_PATH, concurrency_limit=None,
        description=description, interval=interval,
    )  # fmt: skip


async def _ensure_zombie_automation() -> None:
    """A flow killed together with its worker stays Running for ever without this (prefect-and-mlflow.md)."""
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    name = "wardround: flow runs without a heartbeat have crashed"
    async with get_client() as client:
        if await client.read_automations_by_name(name):
            return
        trigger = EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", "prefect.flow-run.Completed", "prefect.flow-run.Failed",
                    "prefect.flow-run.Cancelled", "prefect.flow-run.Crashed"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=90,
        )  # fmt: skip
        action = ChangeFlowRunState(
            state=StateType.CRASHED, message="No heartbeat for 90 s: the process is gone. Run the flow again to go on."
        )
        await client.create_automation(
            AutomationCore(name=name, trigger=trigger, actions=[action], description="Made by `wardround serve`.")
        )


def environment(prefect_url: str) -> dict[str, str]:
    """The environment of every process that talks to Prefect."""
    return dict(os.environ) | PREFECT_ENVIRONMENT | {"PREFECT_API_URL": prefect_url}
