"""What a withdrawal means, in the words of the hospital's own people. Nothing here knows who the patient is."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from silo_agent.exposure import Exposure
from silo_agent.journal import Journal
from silo_agent.private_trail import Withdrawal

NEXT = {
    "keep": "the models stay as they are",
    "retrain": "ask the coordinator to train again from the last model before round {first}; nothing does so by itself",
    "retire": "ask the coordinator to take the study's models out of use; nothing does so by itself",
}
_UNKNOWN = (
    "No study here has data of this patient, as far as the agent has seen. If that surprises you, compare the ID with "
    "Patient ID (0010,0020) in the files the agent reads, to the letter: a pseudonymised archive has other IDs. Scans "
    "from now on refuse the patient's files."
)
_GUARANTEE = (
    "The study has a guarantee per patient: it bounds what these models can tell about any one of them "
    "(silo-agent budget). Nothing of the budget comes back, and what the noise was made for does not change."
)


def print_answer(withdrawal: Withdrawal, exposures: Sequence[Exposure], *, new: bool) -> None:
    console = Console(markup=False, highlight=False)
    day = withdrawal.withdrawn_at[:16].replace("T", " ")
    said = "recorded" if new else f"recorded before, {day} UTC; nothing was changed now"
    console.print(f"withdrawal {withdrawal.sequence}: {said}", soft_wrap=True)
    console.print(f"private entry {withdrawal.private}", soft_wrap=True)
    for line in lines(exposures):
        console.print(line, soft_wrap=True)


def lines(exposures: Sequence[Exposure]) -> list[str]:
    """For this terminal only: in which studies the patient was, and what came out of it."""
    if not exposures:
        return [_UNKNOWN]
    return [line for one in exposures for line in _of_study(one)]


def _of_study(one: Exposure) -> list[str]:
    side = "held back, never trained on" if one.holdout else "trained on"
    measured = "measured on them in" if one.holdout else "could have trained on them:"
    said = [
        f"study {one.effect.study} ({one.label}, {one.state} here): {side}",
        f"  {measured} {_rounds(one.rounds)}",
        *(f"  model of round {number}: {model}" for number, model in one.models),
    ]
    if one.models:
        said.append("  all later models of the study go on from these")
    if one.under_way:
        said.append(f"  begun, and not told over when we looked: {_rounds(one.under_way)}; it may finish with them")
    if one.counted:
        said.append("  their images are in the study's intensity statistics, which are taken once")
    if one.personal:
        share = "was compared on them" if one.holdout else "was trained with them"
        fate = "stays" if one.effect.decision == "keep" else "was removed, with its figures"
        said.append(f"  this hospital's own model {share}, and {fate}")
    said.append(f"  without them from round {one.effect.round} on; their images are overwritten in the scan")
    if one.private and not one.holdout:
        said.append(f"  {_GUARANTEE}")
    first = one.rounds[0] if one.rounds else one.effect.round
    said.append(f"  decided: {one.effect.decision}: {NEXT[one.effect.decision].format(first=first)}")
    return said


def _rounds(numbers: Iterable[int]) -> str:
    found = [*numbers]
    return "no round" if not found else f"round{'s' * (len(found) > 1)} {', '.join(map(str, found))}"


def print_withdrawals(journal: Journal) -> None:
    """When, which entry of the private log, from which studies. Not who."""
    console = Console(markup=False, highlight=False)
    found = journal.private.withdrawals()
    if not found:
        console.print("nobody has withdrawn consent")
        return
    for one in found:
        erased = "in no scan any more" if one.erased_at else "NOT YET out of every scan: start the agent"
        day = one.withdrawn_at[:16].replace("T", " ")
        console.print(f"{one.sequence}  {day} UTC  {one.private}  {erased}", soft_wrap=True)
        effects = journal.private.effects(one)
        table = Table(box=None, show_header=False, pad_edge=True)
        for effect in effects:
            table.add_row(effect.study, f"without them from round {effect.round} on", effect.decision)
        console.print(table if effects else "   no study here had data of them")
