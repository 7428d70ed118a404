"""What every flow that asks hospitals for sums begins with: the study's reins, its MLflow run, enough approvals."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from boundary.groups import needed_in, suffice
from boundary.messages import Phase
from boundary.parties import taking_part
from flows import coordinator as home
from flows.driver import StudyDriver, driving
from flows.mlflow_book import Publisher
from flows.publication import propose
from flows.store.database import reading
from flows.store.studies import DrivenElsewhere, StudyUnknown, find

CONSENT_SECONDS = 120.0  # how long a run waits for stewards who have not answered yet

State_ = State[Any]
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Hands:
    """What the tasks of a run work with. In a context variable, because Prefect records every parameter."""

    driver: StudyDriver
    publisher: Publisher


hands: ContextVar[Hands] = ContextVar("hands")


def run_name() -> str:
    """`ct-contrast · study 7f3a90c1`; the plan as it was typed if there is no such study."""
    wanted = str(runtime.flow_run.parameters.get("plan", ""))
    try:
        with reading(home.load().store) as connection:
            study = find(connection, wanted)
    except (StudyUnknown, home.SettingsError):
        return wanted
    return f"{study.plan.name} · study {study.study.rpartition('-')[2]}"


@asynccontextmanager
async def at_work(plan: str) -> AsyncIterator[Hands]:
    """Hold the study for the block, with MLflow kept up to date. Raises `StudyUnknown` or `DrivenElsewhere`."""
    coordinator = home.load()
    async with driving(coordinator, plan, f"flow run {runtime.flow_run.id}") as driver:
        study = driver.study
        get_run_logger().info("%s is study %s, plan digest %s", plan, study.study, study.plan_digest)
        publisher = Publisher(coordinator, study)
        working = Hands(driver, publisher)
        token = hands.set(working)
        try:
            with publisher:
                yield working
        finally:
            hands.reset(token)


def explained(body: Callable[P, Awaitable[State_]]) -> Callable[P, Coroutine[Any, Any, State_]]:
    """A flow's body that ends in a named state where its plan is unknown, or another run is at it."""

    @wraps(body)  # Prefect reads parameters and help from what is wrapped
    async def told(*arguments: P.args, **named: P.kwargs) -> State_:
        try:
            return await body(*arguments, **named)
        except StudyUnknown as why:
            return Failed(name="UnknownPlan", message=str(why))
        except DrivenElsewhere as why:
            return Failed(name="AlreadyRunning", message=str(why))

    return told


async def not_enough(driver: StudyDriver, phase: Phase) -> State_ | None:
    """Ask for consent; the state of a run that cannot go on because too few hospitals of this phase approve."""
    study = driver.study
    propose(driver.coordinator, study)
    silos = study.plan.silos
    states = await asyncio.gather(*[shown(approval, f"{silo} · approval", silo) for silo in silos])
    driver.record_consents()
    consenting = {silo for silo, state in zip(silos, states, strict=True) if state.is_completed()}
    there = consenting.intersection(taking_part(study.plan, phase))
    if suffice(study.plan, phase, there):
        return None
    message = f"{len(there)} hospitals have approved {study.label}, {needed_in(study.plan, phase)}"
    return Failed(name="NotApproved", message=message)


@task(name="approval", cache_policy=NO_CACHE, persist_result=False)
async def approval(silo: str) -> State_:
    """Wait for the steward's answer, but not for ever: a hospital may still join a later round."""
    driver = hands.get().driver
    try:
        answer = await asyncio.wait_for(driver.consent_of(silo), CONSENT_SECONDS)
    except TimeoutError:
        return Failed(name="NoAnswer", message=f"{silo} has not answered yet; it can join a later round")
    if answer.code is not None:
        return Failed(name="Declined", message=f"{silo} declined ({answer.code})")
    return Completed(name="Approved", message=f"{silo} approved exactly this plan")


def shown(what: Any, name: str, *arguments: Any) -> Awaitable[State_]:
    """Run a task under a name of its own; gives its state, whatever it is."""
    return what.with_options(task_run_name=name)(*arguments, return_state=True)  # type: ignore[no-any-return]
