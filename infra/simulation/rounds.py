"""A study's rounds in one process: what the product does between hospitals, without letters, processes and masks.

What learns is the product's own: `models.training` or `models.private.training` in each hospital, the fixed-point sum
of `boundary.secagg`, `flows.summing` and `flows.aggregation`. Masks cancel in the sum to the bit, so none are drawn.
Unlike the product all of it follows from a seed, the shuffling, the rounding and the noise of a guarantee too: figures
can be had again, and no patient is protected by them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import nn

from boundary.groups import groups_of, has_groups
from boundary.guarantee import PatientPrivacy
from boundary.layout import layout_in
from boundary.parts import Parts, parts_of, tuned_of
from boundary.plan import StudyPlan
from boundary.robustness import Median, RolledBack, counted
from boundary.rotation import resting
from boundary.secagg.encoding import Quantiser, count_clipped, decode_numbers, encode_numbers
from boundary.secagg.ring import Encoding, first_encoding, next_encoding
from boundary.tensors import Vector, flatten, manifest_of, unflatten
from compliance.terms import PlanTerms
from flows.aggregation import strategy_of
from flows.aggregation.state import CONTROL, Mean
from flows.medians import read_round
from flows.summing import Total, TrainSum, read_train_sum
from flows.verdict import of_sum
from models.catalogue import build
from models.measuring import guess_of, layout_of, mean_loss_of
from models.parameters import initial_tensors, load_tensors, to_tensors, train_only
from models.personal import personalise
from models.private.training import PrivateSteps, PrivateTraining
from models.training import LocalData, evaluate, next_control, planned_steps, shorten, train, weight_of
from models.weiszfeld import weight_beside

IMAGES_AT_ONCE = 64  # through the network in a private training: time and memory, not the result


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital's training images, and the most patients it declares: of a plan with a guarantee that is public.

    `held_back` are those it votes by, if the plan has a vote.
    """

    data: LocalData
    declared: int = 0
    held_back: LocalData | None = None


@dataclass(frozen=True, slots=True)
class Spoiler:
    """A hospital that sends `scale` times its change in rounds of which `when` is true, and votes for the result.

    With `clipped` its agent is ours, and shortens what it is given; otherwise nothing holds it back.
    """

    hospital: int
    scale: float
    when: Callable[[int], bool]
    clipped: bool = False


@dataclass(frozen=True, slots=True)
class Learned:
    """After the last round: what moved, float32 [parts.moving.size], and what stayed in each hospital.

    `rolled_back` are the rounds that were, from 1, with why.
    `owns` are the hospitals' own networks, float32 [parts.whole.size], where the plan trains such beside the rounds.
    """

    parts: Parts
    base: Vector
    moving: Vector
    homes: tuple[Vector, ...]
    rolled_back: Mapping[int, RolledBack] = field(default_factory=dict)
    owns: tuple[Vector, ...] = ()

    def of(self, hospital: int) -> Vector:
        """The whole network that a hospital has, float32 [parts.whole.size]: with what stayed home in its place."""
        return self.parts.joined(self.base, self.moving, self.homes[hospital])


@dataclass(frozen=True, slots=True)
class LocalChange:
    """What one hospital would send: `delta` float32 [n] is not weighted yet and, for FedNova, not divided either.

    `home` and `control` are what it keeps, the latter SCAFFOLD's c_i, float32 [n].
    """

    delta: Vector
    weight: float
    steps: int
    home: Vector
    control: Vector


class Simulation:
    """One study with these sites, in the order of the plan's hospitals.

    With `encoded` sums are taken in fixed point, as masked vectors add up; otherwise in float64, to be compared with.
    """

    def __init__(
        self, plan: StudyPlan, sites: Sequence[Site], seed: int, *, encoded: bool = True, spoiler: Spoiler | None = None
    ) -> None:
        if len(sites) != len(plan.hospitals):
            raise ValueError(f"{len(sites)} sites for the {len(plan.hospitals)} hospitals of the plan")
        if has_groups(plan) and not encoded:
            raise ValueError("the median of groups is taken of sums in fixed point")
        self.plan, self.sites, self.encoded = plan, tuple(sites), encoded
        self._seed, self._spoiler = seed, spoiler
        self.module, self.base = network_of(plan)
        self.parts = parts_of(plan.model, manifest_of(to_tensors(self.module)))
        train_only(self.module, self.parts.trained)

    def run(self) -> Learned:
        """All rounds of the plan."""
        strategy, zeros = strategy_of(self.plan), np.zeros(self.parts.moving.size, np.float32)
        homes = [self.parts.home_of(self.base) for _ in self.sites]
        state, encoding = strategy.init(self.parts.moving_of(self.base)), first_encoding(self.plan)
        controls = [zeros for _ in self.sites]
        rolled_back: dict[int, RolledBack] = {}
        history: list[bool] = []  # whether each round was rolled back
        owns: dict[int, Vector] = {}
        for number in range(self.plan.training.rounds):
            if strategy.begins_anew(number + 1):
                state = replace(state, memory=strategy.init(state.weights).memory)
                controls = [zeros for _ in self.sites]
            common, out = state.memory.get(CONTROL, zeros), resting(self.plan, history)
            there = [k for k, hospital in enumerate(self.plan.hospitals) if hospital.silo not in out]
            changes = {k: self.local(number, k, state.weights, homes[k], common, controls[k]) for k in there}
            beside = {k: self.beside(number, k, state.weights, owns.get(k)) for k in there if self.plan.trains_beside}
            mean, fitted, median = self._mean(changes, encoding, number)
            tried = strategy.apply(state, replace(mean, local_rate=self.plan.training.learning_rate))
            why = self._verdict(number, state.weights, tried.weights, float(np.linalg.norm(mean.delta)), median)
            history.append(why is not None)
            if why is not None:
                rolled_back[number + 1] = why
                continue
            state, encoding = tried, fitted
            for k, change in changes.items():
                homes[k], controls[k] = change.home, change.control
            owns |= beside
        if self.plan.trains_beside:
            last = self.plan.training.rounds
            owns = {k: self.beside(last, k, state.weights, owns.get(k)) for k in range(len(self.sites))}
        return Learned(self.parts, self.base, state.weights, tuple(homes), rolled_back, tuple(owns.values()))

    def beside(self, number: int, hospital: int, moving: Vector, before: Vector | None) -> Vector:
        """A hospital's own network one training further, pulled to the global model as Ditto has it.

        Raises `ValueError` for a plan without.
        """
        how, module = self.plan.personalisation, network_of(self.plan)[0]
        if how is None:
            raise ValueError("the plan has no personalisation")
        personalise(
            module, self.sites[hospital].data, self.plan.training, how,
            federated=unflatten(self.parts.joined(self.base, moving), self.parts.whole),
            own=None if before is None else unflatten(before, self.parts.whole),
            tuned=tuned_of(self.parts, how.parameters),
            seed=seed_of(entropy(self._seed, number, hospital, 3)), on_step=quiet,
        )  # fmt: skip
        return flatten(to_tensors(module), self.parts.whole)

    def _mean(
        self, changes: Mapping[int, LocalChange], encoding: Encoding, number: int
    ) -> tuple[Mean, Encoding, Median | None]:
        """The mean, or the median of the groups' where the plan has such, and the encoding for the next round."""
        if not self.encoded:
            return plain_mean(list(changes.values()), counts_steps=self.plan.counts_steps), encoding, None
        at = {self.plan.hospitals[k].silo: k for k in changes}
        groups = groups_of(self.plan, "train", at)
        totals = (self.total({at[silo]: changes[at[silo]] for silo in one}, encoding, number) for one in groups)
        summed, median = read_round(self.plan, totals, at)
        fitted = next_encoding(self.plan, encoding, largest=summed.largest, clipped=summed.clipped)
        return Mean(summed.mean_delta, summed.mean_steps, share=len(changes) / len(self.sites)), fitted, median

    def _verdict(
        self, number: int, before: Vector, tried: Vector, update_norm: float, median: Median | None
    ) -> RolledBack | None:
        """As the coordinator has it of the sum and of the votes. Who spoils a round votes for what came of it."""
        why, robustness = of_sum(self.plan, update_norm, tried, median), self.plan.robustness
        if why is not None or not robustness.vote:
            return why
        against, voted, rise = 0, 0, 0.0
        for k, site in enumerate(self.sites):
            old, new = (self._measured(weights, site) for weights in (before, tried))
            losses = mean_loss_of(old), mean_loss_of(new)
            if losses[0] is None or losses[1] is None:
                continue
            voted += 1
            rise += losses[1] - losses[0]
            spoils = self._spoiler is not None and self._spoiler.hospital == k and self._spoiler.when(number + 1)
            against += robustness.is_worse(losses[1], losses[0], guess_of(self.plan)) and not spoils
        vote = counted(against, voted, rise, len(self.sites))
        if vote is None:
            return RolledBack.VOTE_INVALID
        return RolledBack.VOTED_DOWN if robustness.is_down(vote, number + 1) else None

    def _measured(self, moving: Vector, site: Site) -> NDArray[np.float64]:
        """In a study that votes all of the network moves: nobody's home is asked for."""
        if site.held_back is None:
            raise ValueError("a site that is to vote needs patients who are held back")
        load_tensors(self.module, unflatten(moving, self.parts.whole))
        return evaluate(self.module, site.held_back, layout_of(self.plan))

    def local(
        self, number: int, hospital: int, moving: Vector, home: Vector, common: Vector | None = None,
        own: Vector | None = None,
    ) -> LocalChange:  # fmt: skip
        """Train in one hospital, from the global model, what stayed there, and SCAFFOLD's c and c_i, 0 without."""
        site, training = self.sites[hospital], self.plan.training
        load_tensors(self.module, unflatten(self.parts.joined(self.base, moving, home), self.parts.whole))
        drawn = entropy(self._seed, number, hospital)
        zeros = np.zeros_like(moving)
        common, own = zeros if common is None else common, zeros if own is None else own
        if self.plan.privacy.mechanism == "none":
            correction = unflatten(common - own, self.parts.moving) if self.plan.has_controls else None
            train(self.module, site.data, training, seed=seed_of(drawn), on_step=quiet, correction=correction)
        else:
            private = PrivateTraining(self.private_steps(site), drawn, IMAGES_AT_ONCE)
            private.run(self.module, site.data, training, on_step=quiet)
        whole = flatten(to_tensors(self.module), self.parts.whole)
        steps = planned_steps(len(site.data), training) if self.plan.counts_steps else 1
        delta = self._sent(self.parts.moving_of(whole) - moving, number, hospital)
        control = next_control(own, common, delta, steps, training)
        weight = weight_beside(self.plan, weight_of(self.plan, site.data, site.declared), delta)
        return LocalChange(delta, weight, steps, self.parts.home_of(whole), control)

    def _sent(self, delta: Vector, number: int, hospital: int) -> Vector:
        """Shortened as the plan has it; by whoever spoils the round blown up before, or instead."""
        spoiler, clip = self._spoiler, self.plan.robustness.clip
        if spoiler is not None and spoiler.hospital == hospital and spoiler.when(number + 1):
            delta = delta * np.float32(spoiler.scale)
            clip = clip if spoiler.clipped else None
        shorten(delta, clip)
        return delta

    def sum(self, changes: Mapping[int, LocalChange], encoding: Encoding, number: int) -> TrainSum:
        """The sum of these hospitals, read."""
        return read_train_sum(self.total(changes, encoding, number), hospitals=len(changes))

    def total(self, changes: Mapping[int, LocalChange], encoding: Encoding, number: int) -> Total:
        """The sum as hospitals' masked vectors give it once the masks are off."""
        plan = self.plan
        layout = layout_in(plan, "train", parameters=self.parts.moving.size, metrics=0)
        numbers = np.zeros(layout.numbers, "<u8")
        words = np.zeros(self.parts.moving.size, f"<u{encoding.ring // 8}")
        for hospital, change in changes.items():
            weighted = change.delta * np.float32(change.weight / change.steps)
            mine = {"weight": change.weight, "clipped": count_clipped(weighted, encoding)}
            mine |= {"steps": change.weight * change.steps} if plan.counts_steps else {}
            mine |= {} if plan.bands else {"images": len(self.sites[hospital].data)}  # the loss, nobody asks for here
            said = np.zeros(layout.numbers)
            for name, value in mine.items():
                said[layout.where(name)] = value
            encoded = np.empty_like(words)
            Quantiser(encoding, entropy(self._seed, number, hospital, 1)).encode(weighted, encoded)
            words += encoded  # modulo the ring
            numbers += encode_numbers(said, encoding.most)
        return Total(layout, encoding, decode_numbers(numbers), words)

    def private_steps(self, site: Site) -> PrivateSteps:
        """The public numbers of a site's private training. Raises `OutOfReach`; `ValueError` without a guarantee."""
        privacy = self.plan.privacy
        if privacy.mechanism == "none":
            raise ValueError("the plan has no guarantee per patient")
        terms = _terms(privacy, self.plan.rounds_in_all, site.declared)
        return PrivateSteps(
            steps=privacy.steps, rate=terms.rate, denominator=terms.denominator, clip=privacy.clip,
            noise_multiplier=terms.noise_multiplier, images=privacy.images_per_patient,
        )  # fmt: skip


@cache
def _terms(privacy: PatientPrivacy, rounds: int, declared: int) -> PlanTerms:
    """The search for a noise multiplier takes a second, and every round asks again."""
    return PlanTerms.of(privacy, rounds, declared)


def plain_mean(changes: Sequence[LocalChange], *, counts_steps: bool) -> Mean:
    """The same mean in float64, without the fixed-point sum."""
    total = sum(change.weight for change in changes)
    delta = sum(change.delta.astype(np.float64) * (change.weight / change.steps) for change in changes) / total
    steps = sum(change.weight * change.steps for change in changes) / total
    return Mean(np.asarray(delta, np.float32), steps if counts_steps else None)


def network_of(plan: StudyPlan) -> tuple[nn.Module, Vector]:
    """The plan's network as its study begins, and its weights, float32 [n]."""
    classes = len(plan.labels.classes)
    module, tensors = build(plan.model, classes), initial_tensors(plan.model, classes)
    load_tensors(module, tensors)
    return module, flatten(tensors, manifest_of(tensors))


def entropy(*numbers: int) -> bytes:
    """32 bytes that follow from these numbers: of keys for noise and rounding."""
    return np.random.SeedSequence(numbers).generate_state(8, np.uint32).tobytes()


def seed_of(drawn: bytes) -> int:
    """For torch's generators, as many bits as `silo_agent.local_round` draws."""
    return int.from_bytes(drawn[:8], "little") >> 1


def quiet(_step: int, _steps: int) -> None:
    """Nobody watches."""
