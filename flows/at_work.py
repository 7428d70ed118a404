"""What every flow that asks hospitals for sums begins with: the study's reins, its MLflow run, enough approvals."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect import get_run_logger, runtime
from prefect.states import Failed

from boundary.parties import taking_part
from flows import coordinator as home
from flows.driver import StudyDriver, driving
from flows.federated_training import Hands, State_, consents, hands
from flows.mlflow_book import Publisher
from flows.publication import propose


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


async def not_enough(driver: StudyDriver, phase: str) -> State_ | None:
    """Ask for consent; the state of a run that cannot go on because too few hospitals of this phase approve."""
    study = driver.study
    propose(driver.coordinator, study)
    may = taking_part(study.plan, "statistics" if phase == "statistics" else "evaluate")
    consenting = [silo for silo in await consents(driver) if silo in may]
    quorum = study.plan.aggregation.quorum
    if len(consenting) >= quorum:
        return None
    message = f"{len(consenting)} hospitals have approved {study.label}, {quorum} are needed in every sum"
    return Failed(name="NotApproved", message=message)
