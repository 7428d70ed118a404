"""`federated-statistics`: the data of all hospitals together, in one masked sum, before or without any training.

The sum is taken once in a study, over one set of hospitals: who asks again is shown what came out.
"""

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.states import Completed, Failed

from boundary.parties import counts_images
from flows import coordinator as home
from flows.at_work import State_, at_work, not_enough, run_name
from flows.driver import StudyDriver
from flows.federated_training import statistics
from flows.pages import statistics_page
from flows.store.database import reading
from flows.store.studies import DrivenElsewhere, Study, StudyUnknown, find

DESCRIBED = "DATA_DESCRIBED"


@flow(name="federated-statistics", flow_run_name=run_name, persist_result=False, log_prints=False)
async def federated_statistics(plan: str) -> State_:
    """Describe the data of all hospitals together: patients, images, classes, intensities, in one masked sum.

    The plan has to ask for it, because stewards approve it: dataset.described = true, with training.rounds = 0 if
    nothing is to be trained (yet). Counts below ten are not told.

    Args:
        plan: Which published plan, as NAME@REVISION.

    """
    try:
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
    except StudyUnknown as why:
        return Failed(name="UnknownPlan", message=str(why))
    except DrivenElsewhere as why:
        return Failed(name="AlreadyRunning", message=str(why))


async def _count(driver: StudyDriver) -> State_:
    if driver.lacks_statistics:
        if (refused := await not_enough(driver, "statistics")) is not None:
            return refused
        counted: State_ = await statistics(return_state=True)
        if not counted.is_completed():
            return Failed(name=counted.name or "StatisticsFailed", message=counted.message)
    plan = driver.study.plan
    if not plan.training.rounds and not plan.evaluation.models:
        driver.finish(DESCRIBED)
    return await _told(driver.study)


async def _told(study: Study) -> State_:
    found = study.statistics
    if found is None:
        raise ValueError(f"{study.label} was not counted")
    page = statistics_page(study, found)
    await acreate_markdown_artifact(page, key=f"{study.study}-statistics", description="Images of all hospitals")
    members = len(found.decision.members)
    return Completed(message=f"the data of {members} hospitals: see the artifact {study.study}-statistics")
