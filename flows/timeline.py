"""A masked sum on Prefect's timeline: a task per hospital while they work, one per step, one for what is made of it.

Prefect records what tasks are given and return, so neither values nor watches go through it but context variables.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from time import monotonic
from typing import ParamSpec, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from boundary.messages import BlobRef, Phase
from compliance.merkle import BrokenProof
from compliance.witnessing import LogInDoubt
from flows.at_work import State_, hands, shown
from flows.collecting import CollectionFailed, Watch
from flows.engine import HEADLINES, Standing
from flows.round_work import Gathered, RoundWork

TRY_AGAIN = "; run the flow to try once more"
_LOOSE_ENDS_SECONDS = 1.0
_GIVEN_UP_SECONDS = 10.0
_PROGRESS_SECONDS = 30.0  # between log lines about a hospital at work: SQLite under Prefect dislikes more
_MADE_OF_IT: Mapping[Phase, str] = {
    "statistics": "count",
    "train": "aggregate",
    "evaluate": "evaluate",
    "validate": "evaluate",
    "personalise": "compare",
}

P = ParamSpec("P")
T = TypeVar("T")
_watch: ContextVar[Watch] = ContextVar("watch")
_act: ContextVar[Callable[[], Awaitable[bool]]] = ContextVar("act")
_job: ContextVar[Callable[[], Awaitable[None]]] = ContextVar("job")


def opened(number: int) -> RoundWork | State_:
    """The round, or the state of a run that stops because somebody's log is not what it was."""
    try:
        return hands.get().driver.open_round(number)
    except (LogInDoubt, BrokenProof) as why:
        return Failed(name="LogInDoubt", message=str(why))


async def single_sum(
    number: int, phase: Phase, use: Callable[[RoundWork, Gathered], T], advice: str = TRY_AGAIN
) -> T | State_:
    """Take a sum that round `number` opens and no record keeps; or the state of a run that did not come to it."""
    work = opened(number)
    if isinstance(work, State):
        return work
    _, found = await attempts(work, phase, work.model_in, use)
    return no_quorum(advice) if found is None else found


def no_quorum(advice: str = TRY_AGAIN) -> State_:
    consents = hands.get().driver.consents().values()
    declined = ", ".join(sorted(answer.silo for answer in consents if answer.code is not None))
    if declined:  # nobody approves the same plan again
        advice += f"; {declined} declined: if the others are too few for the quorum, publish a revision of the plan"
    return Failed(name="NoQuorum", message=f"too few hospitals in every attempt{advice}")


async def attempts(
    work: RoundWork, phase: Phase, model: BlobRef, use: Callable[[RoundWork, Gathered], T]
) -> tuple[RoundWork, T | None]:
    """Try as often as the plan says; `use` blocks. What hospitals have computed for a failed attempt they use again."""
    for _ in range(work.study.plan.aggregation.attempts):
        try:
            return work, await as_task(_MADE_OF_IT[phase], use, work, await _collect(work, phase, model))
        except CollectionFailed as failed:
            get_run_logger().warning(
                "attempt %d of round %d failed: %s", failed.collection.attempt, work.number, HEADLINES[failed.reason]
            )
            work = work.give_up(failed)
    return work, None


async def _collect(work: RoundWork, phase: Phase, model: BlobRef) -> Gathered:
    """One masked sum: a task per hospital while they work, then a task per step."""
    begun = monotonic()
    async with work.collecting(phase, model) as masked:
        token = _watch.set(masked.watch)
        orders = sorted(masked.watch.orders)
        waiting = asyncio.gather(*[shown(hospital, f"{silo} · {phase}", silo) for silo in orders])
        try:
            await masked.close_cohort()
            closed = monotonic()
            # they end with the decision; one of an earlier run may have left out a hospital that is alive again
            await asyncio.wait({waiting}, timeout=_LOOSE_ENDS_SECONDS)
            for name, act in masked.steps.items():
                await _step(f"{phase} · {name}", act)
            await waiting
        except CollectionFailed:
            # nobody waits for an answer any more: the tasks end by themselves, and say how each hospital stood
            await asyncio.wait({waiting}, timeout=_GIVEN_UP_SECONDS)
            raise
        finally:
            _watch.reset(token)
            waiting.cancel()  # changes nothing for those that are through
            await asyncio.gather(waiting, return_exceptions=True)
    assert masked.decision is not None  # noqa: S101 - the cohort was closed above
    return Gathered(masked, masked.decision, closed - begun, monotonic() - closed)


# --- one task per hospital -------------------------------------------------------------------------------
@task(name="hospital", cache_policy=NO_CACHE, persist_result=False)
async def hospital(silo: str) -> State_:
    """Wait for one hospital to be ready; its heartbeat says how far it is."""
    watch, log = _watch.get(), get_run_logger()
    waiting = asyncio.create_task(watch.until_answered(silo))
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=_PROGRESS_SECONDS)
        if not waiting.done():
            log.info("%s · round %d: %s", silo, watch.collection.round, _where(watch, silo))
    return _standing(waiting.result(), silo, watch)


def _where(watch: Watch, silo: str) -> str:
    progress = watch.progress.get(silo)
    if progress is None or progress.seen_at is None:
        return "never seen"
    if silo in watch.view.silent:
        return f"no sign of life since {progress.seen_at:%H:%M:%S} UTC"
    if progress.activity is None or progress.activity.steps == 0:
        return "alive"
    return f"{100 * progress.activity.step // progress.activity.steps} %"


def _standing(standing: Standing, silo: str, watch: Watch) -> State_:
    match standing:
        case Standing.READY:
            return Completed(name="Ready", message=f"{silo} is ready")
        case Standing.REFUSED:
            return Failed(name="Refused", message=f"{silo} refused: {watch.view.refused.get(silo, 'INTERNAL')}")
        case Standing.SILENT:
            return Failed(name="Silent", message=f"{silo}: {_where(watch, silo)}; the round went on without it")
        case Standing.NOT_NEEDED:
            return Completed(name="NotNeeded", message=f"enough others were ready before {silo}")
        case Standing.WORKING:
            return Completed(name="GivenUp", message=f"{silo} was at work when the attempt was given up")
        case Standing.LATE:
            return Failed(name="Late", message=f"{silo} was not ready in time; it joins the next round")


# --- one task per step -----------------------------------------------------------------------------------
async def _step(name: str, act: Callable[[], Awaitable[None]]) -> None:
    """Run one step as a task that shows who is missing. Raises `CollectionFailed`."""
    failures: list[CollectionFailed] = []

    async def run() -> bool:
        try:
            await act()
        except CollectionFailed as failed:
            failures.append(failed)
        return not failures

    token = _act.set(run)
    try:
        await shown(step, name)
    finally:
        _act.reset(token)
    if failures:
        raise failures[0]


@task(name="step", cache_policy=NO_CACHE, persist_result=False)
async def step() -> State_:
    """One step of the masked sum. While it waits, it says for whom."""
    watch, log = _watch.get(), get_run_logger()
    doing = asyncio.ensure_future(_act.get()())
    while not doing.done():
        await asyncio.wait({doing}, timeout=_PROGRESS_SECONDS)
        if not doing.done():
            log.info("waiting for %s", ", ".join(sorted(watch.view.outstanding)) or "the last answers")
    is_through, there = await doing, len(watch.view.answered)
    missing = ", ".join(f"{silo} ({code})" for silo, code in watch.absences.items())
    if not is_through:
        return Failed(name="TooFew", message=f"{there} of {watch.view.needed.fewest} needed; not {missing}")
    if there == 0:
        return Completed(name="Found", message="decided by an earlier run of this flow")
    if missing:
        return Completed(name="Without", message=f"{there} hospitals; without {missing}")
    return Completed(message=f"all {there} hospitals")


# --- one task for the coordinator's own work -------------------------------------------------------------
async def as_task(name: str, job: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Run blocking work in a thread, shown as a task, without handing its values to Prefect."""
    found: list[T] = []

    async def run() -> None:
        found.append(await asyncio.to_thread(job, *arguments, **named))

    token = _job.set(run)
    try:
        await own_work.with_options(name=name, task_run_name=name)()
    finally:
        _job.reset(token)
    return found[0]


@task(name="own work", cache_policy=NO_CACHE, persist_result=False)
async def own_work() -> None:
    """What the coordinator does by itself; the name of the run says what."""
    await _job.get()()


# --- at the end ------------------------------------------------------------------------------------------
@task(name="witness", task_run_name="logs shown and cosigned", cache_policy=NO_CACHE, persist_result=False)
async def witness() -> State_:
    """Have every party's log shown to and cosigned by all others, once more, before the hospitals are let go."""
    missing = await hands.get().driver.witness_end()
    if missing:
        return Completed(name="Without", message=f"without {', '.join(sorted(set(missing)))}")
    return Completed(message="by all hospitals")
