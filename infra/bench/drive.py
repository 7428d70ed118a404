"""Drives rounds in a process of its own: the real flow, or the same steps without Prefect.

python -m infra.bench.drive prefect bench@1 6
"""

import asyncio
import sys
from time import monotonic

from flows.coordinator import load
from flows.driver import driving
from infra.driving import collect


async def bare(label: str, count: int) -> None:
    """What `flows.federated_training` does in a round, with nothing shown to anybody."""
    async with driving(load(), label, "benchmark") as driver:
        first = len(driver.records()) + 1
        for number in range(first, first + count):
            work = driver.open_round(number)
            candidate = await asyncio.to_thread(work.aggregate, await collect(work, "train", work.model_in))
            begun = monotonic()
            evaluated = await asyncio.to_thread(work.measure, await collect(work, "evaluate", candidate.model))
            await asyncio.to_thread(work.commit, candidate, evaluated, monotonic() - begun)


async def with_prefect(label: str, count: int) -> None:
    from flows.federated_training import federated_training

    state = await federated_training(plan=label, rounds=count, return_state=True)
    if not state.is_completed():
        raise SystemExit(f"the flow ended as {state.name}: {state.message}")


if __name__ == "__main__":
    how, plan, wanted = sys.argv[1:]
    asyncio.run({"prefect": with_prefect, "bare": bare}[how](plan, int(wanted)))
