"""A finished piece of work on the agent's disk: the vector and what it is made of. And what may be thrown away."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from boundary.layout import VectorLayout
from boundary.messages import MEASURING, Collection, Phase
from silo_agent.errors import StoredFileLost
from silo_agent.intake.erasing import alone
from silo_agent.journal import Journal
from silo_agent.ladder.scratch import clear
from silo_agent.state import StateFolder, write_private

# Beside a training's vector: what it did not send, what is never sent, SCAFFOLD's own control variate, Ditto's model
RESIDUAL, HOME, CONTROL, DITTO = CARRIED = ".residual", ".home", ".control", ".ditto"
MODEL, ROW = ".model", ".row"  # beside that of the end: our own model, and how it does (`silo_agent.personal`)
BASE = ".base."  # in the name of the network as a study begins, where not all of it moves


@dataclass(frozen=True, slots=True)
class StoredResult:
    """`vector` is its file, `layout` where things lie in it, and `identity` what it is remembered by.

    `made_in` is the round of a training. The vector lies beside the description, also where the folder was moved since
    (`silo_agent.late`).
    """

    identity: str
    vector: Path
    layout: VectorLayout
    made_in: int = 0

    def save(self, folder: Path) -> None:
        """Write the description last: a folder with it is complete."""
        layout = self.layout.model_dump(mode="json")
        content = {"identity": self.identity, "vector": str(self.vector), "layout": layout, "made_in": self.made_in}
        write_private(folder / "result.json", json.dumps(content).encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises `StoredFileLost`."""
        try:
            content = json.loads((folder / "result.json").read_bytes())
        except (OSError, ValueError) as why:
            raise StoredFileLost(f"the result in {folder} cannot be read: {why}") from why
        match content:
            case {"identity": str(name), "vector": str(vector), "layout": dict(layout), "made_in": int(made_in)}:
                with suppress(ValidationError):
                    return cls(name, folder / Path(vector).name, VectorLayout.model_validate(layout), made_in)
        raise StoredFileLost(f"{folder / 'result.json'} is not a result's description")


def identity_of(collection: Collection, model: str, entropy: Callable[[int], bytes], *, withdrawn: int = 0) -> str:
    """By what a result is known when it was unmasked once and is asked for again (`Journal.spent_on`).

    Each training gives another result. What has nothing random in it is the same one however often it is computed,
    in whatever round: two sums of it over other hospitals would differ by exactly one hospital's numbers. It is another
    one after each patient who has `withdrawn` from the study.
    """
    if collection.phase == "train":
        return entropy(16).hex()
    same = f"{collection.study}/{collection.phase}/{model}"
    return f"{same}#{withdrawn}" if withdrawn else same


def forget_result(folder: Path) -> None:
    """The work has to be done anew: this result was unmasked in a sum over other hospitals."""
    (folder / "result.json").unlink(missing_ok=True)


def result_folder(folder: StateFolder, study: str, number: int, phase: str, model: str) -> Path:
    """Where the work of a round is kept. Not by attempt: another attempt with the same model is not trained again."""
    return folder.work / study / f"{number:04d}-{phase}-{model.removeprefix('sha256:')[:16]}"


def carried(folder: StateFolder, study: str, suffix: str) -> Path:
    """What goes on from round to round, float32 arrays.

    `RESIDUAL` is for each weight that moves what the rounds so far did not send, `CONTROL` SCAFFOLD's c_i of it; `HOME`
    are the parameters that stay home, `DITTO` is a whole network of our own.
    """
    return folder.work / study / suffix.removeprefix(".")


def home_of(folder: StateFolder, study: str, number: int, phase: Phase) -> Path:
    """Parameters that stay home (`boundary.parts`), float32: as the last round left them that was committed with us.

    What is evaluated in round `number` is looked at with those that its training made.
    """
    made = sorted((folder.work / study).glob(f"{number:04d}-train-*/*{HOME}")) if phase in MEASURING else []
    return made[-1] if made else carried(folder, study, HOME)


def carry_later(journal: Journal, study: str, number: int) -> None:
    """A round was committed with us in it. In the transaction that says so, so that a crash cannot come between."""
    journal.set_fact(f"carry {study}", str(number).encode())


def carry_over(folder: StateFolder, journal: Journal, study: str) -> None:
    """What the training of that round left over, or keeps, is what there is now; again is harmless.

    Not of a round in which somebody had a share who has withdrawn since.
    """
    number = int((journal.fact(f"carry {study}") or b"0").decode())
    if number < journal.private.effective_from(study):
        return
    for suffix in CARRIED:
        for kept in (folder.work / study).glob(f"{number:04d}-train-*/*{suffix}"):
            kept.replace(carried(folder, study, suffix))


def forget_carried(folder: StateFolder, study: str) -> None:
    """Somebody who had a share in it has withdrawn: the next training begins without what was carried over."""
    for suffix in CARRIED:
        carried(folder, study, suffix).unlink(missing_ok=True)


def forget_rounds(
    folder: StateFolder, study: str, upto: int, *, keep_model: str, spared: frozenset[int] = frozenset()
) -> None:
    """Remove vectors of rounds that are over, and global models that were replaced; not trainings of rounds spared."""
    for done in (folder.work / study).glob("*-*-*"):
        number, _, phase = done.name.partition("-")
        if number.isdecimal() and int(number) <= upto:
            if int(number) in spared and phase.startswith("train-"):
                continue
            shutil.rmtree(done, ignore_errors=True)
    for model in folder.models.glob(f"{study}.*"):
        if BASE not in model.name and keep_model.removeprefix("sha256:") not in model.name:
            model.unlink(missing_ok=True)


def forget_study(folder: StateFolder, study: str) -> tuple[int, int]:
    """Remove everything of a study but its entries in the journal; give how many files that were, and their bytes."""
    with alone(folder.cache):
        places = (folder.work / study, folder.cache / study, *folder.cache.glob(f".{study}.*"))
        models = [*folder.models.glob(f"{study}.*")]
        sizes = [path.stat().st_size for place in places for path in place.rglob("*") if path.is_file()]
        sizes += [model.stat().st_size for model in models]
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    for model in models:
        model.unlink(missing_ok=True)
    return len(sizes), sum(sizes)


def sweep_scan(folder: StateFolder, study: str) -> None:
    """Remove what a scan that did not end by itself has left; one that did has left nothing. `*` is every study."""
    for end in ("partial", "fetched"):
        for left in folder.cache.glob(f".{study}.{end}"):
            shutil.rmtree(left, ignore_errors=True)


def sweep(folder: StateFolder, journal: Journal) -> None:
    """At the start: remove what a crash left of closed studies, scans, and vectors that have left or never will."""
    for plan in journal.plans():
        if plan.state == "closed":
            forget_study(folder, plan.study)
        else:
            carry_over(folder, journal, plan.study)  # of a round that was committed just before a kill
    clear(folder.root)  # of a rehearsal or a baseline that was killed
    sweep_scan(folder, "*")  # scans end with the agent; patients may withdraw meanwhile
    wanted = {parcel.blob_path for parcel in journal.waiting()}
    for masked in folder.work.glob("*/*/*.masked"):
        if str(masked) not in wanted:
            masked.unlink(missing_ok=True)
