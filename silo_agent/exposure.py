"""What the studies here had of one patient: which rounds, which models. Answered here, for our own people only."""

from dataclasses import dataclass

from boundary.messages import MEASURING
from compliance.events import LateUpdateOffered, RoundReceived, TrainingStarted
from silo_agent.entries import entries
from silo_agent.intake.withdrawn import numbers_of, read_known, tag_of
from silo_agent.journal import Journal
from silo_agent.private_trail import Effect, Withdrawal
from silo_agent.trainer import study_key

_LAST_ROUND = 10_000  # boundary.names.RoundNumber: a study that is there has no next round


@dataclass(frozen=True, slots=True)
class Exposure:
    """What one study had of a patient. `rounds` could have used them; `models` came out of those with us in them.

    A patient who was held back is in no model: `rounds` are those that were measured on them. `under_way` are rounds
    that had begun, and of which we do not know yet what became of them. `counted` is whether their images are in the
    study's intensity statistics, `personal` whether this hospital's own model was trained with or compared on them.
    """

    label: str
    state: str
    effect: Effect
    holdout: bool
    private: bool
    counted: bool
    personal: bool
    rounds: tuple[int, ...]
    models: tuple[tuple[int, str], ...]
    under_way: tuple[int, ...]


def side_of(journal: Journal, master: bytes, study: str, reference: str) -> bool | None:
    """Whether the study holds this patient back; None if its data have nothing of them."""
    _, data = journal.private.cohort(study)
    known = read_known(data)
    found = numbers_of(known, {tag_of(study_key(master, study), reference)})
    return known[found.pop()][1] if found else None


def first_without(journal: Journal, study: str) -> int:
    """The round after the last one that is over or that work here has begun on. Counting images is not such work."""
    begun = [one.round for one in entries(journal, TrainingStarted, study) if one.phase != "statistics"]
    begun += [one.round for one in entries(journal, LateUpdateOffered, study)]
    return min(_LAST_ROUND, 1 + max([journal.committed_round(study), *begun]))


def exposures_of(journal: Journal, master: bytes, silo: str, withdrawal: Withdrawal) -> list[Exposure]:
    """One for each study whose data had the patient when they were withdrawn, also for those that are over."""
    effects = journal.private.effects(withdrawal)
    return [_exposure(journal, master, silo, withdrawal.reference, effect) for effect in effects]


def _exposure(journal: Journal, master: bytes, silo: str, reference: str, effect: Effect) -> Exposure:
    kept = journal.plan(effect.study)
    if kept is None:
        raise KeyError(effect.study)
    plan, holdout = kept.parsed, bool(side_of(journal, master, effect.study, reference))
    started = list(entries(journal, TrainingStarted, effect.study))
    over = [one for one in entries(journal, RoundReceived, effect.study) if one.round < effect.round]
    phases = MEASURING if holdout else ("train",)
    begun = {one.round for one in started if one.phase in phases and one.round < effect.round}
    if not holdout:  # into which round what was made with them went, if it came too late for its own
        offered = entries(journal, LateUpdateOffered, effect.study)
        begun |= {one.round for one in offered if one.made_in in begun and one.round < effect.round}
    rounds = sorted(begun)
    models = [(one.round, one.model) for one in over if silo in one.contributing and one.round in rounds]
    return Exposure(
        label=plan.label,
        state=kept.state,
        effect=effect,
        holdout=holdout,
        private=plan.bands > 0,
        counted=not holdout and any(one.phase == "statistics" for one in started),
        personal=any(one.phase == "personalise" and one.round < effect.round for one in started),
        rounds=tuple(rounds),
        models=() if holdout else tuple(models),
        under_way=tuple(sorted(set(rounds) - {one.round for one in over})),
    )
