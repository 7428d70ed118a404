"""`federated-statistics`: the data of all hospitals together, in one masked sum, before or without any training.

The sum is taken once in a study, over one set of hospitals: who asks again is shown what came out.
"""

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from boundary.parties import counts_images
from flows import coordinator as home
from flows.at_work import State_, at_work, explained, hands, not_enough, run_name
from flows.describing import told
from flows.driver import StudyDriver
from flows.pages import statistics_page
from flows.records import Statistics
from flows.round_work import RoundWork
from flows.store.database import reading
from flows.store.studies import Study, find
from flows.timeline import single_sum, witness

DESCRIBED = "DATA_DESCRIBED"


@flow(name="federated-statistics", flow_run_name=run_name, persist_result=False, log_prints=False)
@explained
async def federated_statistics(plan: str) -> State_:
    """Describe the data of all hospitals together: patients, images, classes, intensities, in one masked sum.

    The plan has to ask for it, because stewards approve it: dataset.described = true, with training.rounds = 0 if
    nothing is to be trained (yet). Counts below ten are not told.

    Args:
        plan: Which published plan, as NAME@REVISION.

    """
    with reading(home.load().store) as connection:
        study = find(connection, plan)
    if not counts_images(study.plan):
        message = f"{study.label} counts no images: a revision with dataset.described = true would"
        return Failed(name="NotAsked", message=message)
    is_over = study.state == "finished" or bool(study.plan.training.rounds or study.plan.evaluation.models)
    if study.statistics is not None and is_over:
        return await _told(study)
    if study.state == "finished":
        return Failed(name="Over", message=f"{study.label} has ended, and its images were never counted")
    async with at_work(plan) as working:
        return await _count(working.driver)


async def _count(driver: StudyDriver) -> State_:
    if driver.lacks_statistics:
        refused = await not_enough(driver, "statistics") or await not_counted(driver)
        if refused is not None:
            return refused
    plan = driver.study.plan
    if not plan.training.rounds and not plan.evaluation.models:
        await witness()
        driver.finish(DESCRIBED)
    return await _told(driver.study)


async def not_counted(driver: StudyDriver) -> State_ | None:
    """Count images if the plan wants that and nobody has; the state of a run that cannot go on without."""
    if not driver.lacks_statistics:
        return None
    counted: State_ = await statistics(return_state=True)
    if counted.is_completed():
        return None
    return Failed(name=counted.name, message=f"statistics: {counted.message}")


@flow(name="statistics", flow_run_name="statistics", persist_result=False, log_prints=False)
async def statistics() -> State_:
    """Count the images of all hospitals once: the plan normalises intensities over all of them."""
    driver = hands.get().driver
    found = await single_sum(1, "statistics", RoundWork.count)
    if isinstance(found, State):
        return found
    driver.learn(found)
    await _show(driver.study, found)
    images = f"{told(found.images)} training images" if found.description is None else "the data"
    return Completed(message=f"{images} of {len(found.decision.members)} hospitals")


async def _told(study: Study) -> State_:
    found = study.statistics
    if found is None:
        raise ValueError(f"{study.label} was not counted")
    await _show(study, found)
    members = len(found.decision.members)
    return Completed(message=f"the data of {members} hospitals: see the artifact {study.study}-statistics")


async def _show(study: Study, found: Statistics) -> None:
    page = statistics_page(study, found)
    await acreate_markdown_artifact(page, key=f"{study.study}-statistics", description="Images of all hospitals")
