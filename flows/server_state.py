"""What the server strategy goes on from in a round: the weights, and its memory of the last round that counts."""

from dataclasses import dataclass, replace
from functools import cached_property

from boundary.messages import BlobRef
from boundary.tensors import Vector, unpack
from flows.aggregation import Mean, ServerState, strategy_of
from flows.aggregation.memory import MemoryUnusable, recalled
from flows.coordinator import Coordinator
from flows.store import rounds
from flows.store.database import reading
from flows.store.studies import Study


@dataclass(frozen=True)
class ServerSide:
    """The server strategy in round `number`, which begins with `model_in`. The store is asked at most once."""

    coordinator: Coordinator
    study: Study
    number: int
    model_in: BlobRef

    def after(self, mean: Mean) -> ServerState:
        """The state that the mean of the hospitals' changes leads to. Raises `MemoryUnusable`."""
        strategy = strategy_of(self.study.plan)
        state = replace(strategy.init(self._weights()), round=self.number - 1)
        if state.memory and self._kept is not None:
            number, blob = self._kept
            state = replace(state, memory=recalled(blob, state.memory, number, self.coordinator.blobs.open))
        return strategy.apply(state, mean)

    def _weights(self) -> Vector:
        with self.coordinator.blobs.open(self.model_in.digest) as source:
            return unpack(source.read(), self.study.parts.moving, self.study.plan.aggregation.downlink)

    @property
    def control(self) -> BlobRef | None:
        """What SCAFFOLD's hospitals are told of all others, None where all begin anew. Raises `MemoryUnusable`."""
        return self._kept[1] if self.study.plan.has_controls and self._kept is not None else None

    @cached_property
    def _kept(self) -> tuple[int, BlobRef] | None:
        """The last round that was not rolled back, and the memory that it left; None where the strategy begins anew."""
        if strategy_of(self.study.plan).begins_anew(self.number):
            return None
        with reading(self.coordinator.store) as connection:
            last = rounds.last_kept(connection, self.study.study)
        if last is None:
            return None
        number, kept = last
        if kept.memory is None or kept.model != self.model_in:
            raise MemoryUnusable(number, "was not kept together with its model")
        return number, kept.memory
