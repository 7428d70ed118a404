"""What a study leaves this hospital for itself: its own model, and how that one does on its own held-back patients.

It lies in the state folder and is never sent, by anybody (`silo_agent.personal_round` makes it). It outlives the study;
who withdraws with another decision than `keep` takes it with them, and `silo-agent personal STUDY --remove` removes it.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from boundary.images import Normalisation
from boundary.layout import COMPARED
from boundary.names import Frozen, list_in
from boundary.plan import StudyPlan
from compliance.events import DataPurged
from silo_agent.errors import ConfigError, StoredFileLost, WorkCancelled
from silo_agent.journal import Journal, KeptPlan
from silo_agent.plain import plain
from silo_agent.results import MODEL, ROW
from silo_agent.state import StateFolder, sync_folder, write_private

Name = Literal["local", "federated", "personal"]
_ROW, _WEIGHTS = "row.json", "model.safetensors"
NAMES: dict[Name, str] = {"local": "alone", "federated": "federated", "personal": "own"}
_LONG: dict[Name, str] = {
    "local": "trained here alone, with as many epochs as the study had",
    "federated": "the federated model",
    "personal": "our own model, made from the federated one",
}
_PLANNED = {
    "fine-tune": "fine-tuned from the last federated model, {epochs} epoch(s)",
    "ditto": "trained beside each round, {epochs} epoch(s), pulled to the federated one with {strength:g} (Ditto)",
}
_METHODS = {"fine-tune": "fine-tuned from the federated model", "ditto": "trained beside the rounds (Ditto)"}


Figure = Annotated[tuple[float, float | None, float | None], BeforeValidator(list_in)]  # and the ends of its interval


class Row(Frozen):
    """How the three models do on our held-back patients, as the child wrote it (`silo_agent.personal_round`)."""

    model: str
    method: Literal["fine-tune", "ditto"]
    classes: Annotated[tuple[str, ...], BeforeValidator(list_in)]
    normalisation: Normalisation | None
    figure: str
    patients: Annotated[int, Field(ge=0)]
    figures: dict[Name, Figure]
    differences: Annotated[
        tuple[Annotated[tuple[Name, Name, Figure, str | None], BeforeValidator(list_in)], ...], BeforeValidator(list_in)
    ]


class _Kept(Frozen):
    label: str
    federated: str
    row: Row


@dataclass(frozen=True, slots=True)
class OwnRow:
    """One study's; `model` is the file of the weights. Without `row` the file that says what they are is damaged."""

    study: str
    label: str
    federated: str
    row: Row | None
    model: Path


def keep_own(
    journal: Journal, folder: StateFolder, kept: KeptPlan, federated: str, vector: Path, withdrawn: int
) -> None:  # fmt: skip
    """Put what lies beside the finished vector into its place, with whom the work began.

    Again is harmless. In one transaction with the look at who has withdrawn, whose entry is in another: either they are
    not in it, or they find it. Raises `WorkCancelled`, `StoredFileLost`.
    """
    place = folder.personal / kept.study
    with journal.transaction():
        if withdrawn != journal.private.count_of(kept.study):
            raise WorkCancelled("somebody withdrew meanwhile")
        try:
            row = json.loads(vector.with_suffix(ROW).read_bytes())
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            vector.with_suffix(MODEL).replace(place / _WEIGHTS)
        except (OSError, ValueError) as why:
            raise StoredFileLost(f"our own model of {kept.study} cannot be kept: {why}") from why
        about = {"label": kept.parsed.label, "federated": federated, "row": row}
        write_private(place / _ROW, json.dumps(about).encode())
        sync_folder(place)


def own_row(folder: StateFolder, study: str) -> OwnRow | None:
    """None if there is none; without its row if that cannot be read."""
    place = folder.personal / study
    try:
        kept = _Kept.model_validate_json((place / _ROW).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError):
        return OwnRow(study, study, "", None, place / _WEIGHTS)
    return OwnRow(study, kept.label, kept.federated, kept.row, place / _WEIGHTS)


def find_own(folder: StateFolder, wanted: str) -> OwnRow:
    """By study or `name@revision`; raises `ConfigError` listing what there is."""
    rows = own_rows(folder)
    for one in rows:
        if wanted in {one.study, one.label}:
            return one
    known = ", ".join(one.study for one in rows) or "none"
    raise ConfigError(f"there is no model of our own of {wanted!r}; known: {known}")


def own_rows(folder: StateFolder) -> list[OwnRow]:
    found = (own_row(folder, place.name) for place in sorted(folder.personal.glob("*")))
    return [one for one in found if one is not None]


def forget_own(folder: StateFolder, study: str) -> None:
    """Again is harmless."""
    for one in _files(folder, study):
        one.unlink(missing_ok=True)


def _files(folder: StateFolder, study: str) -> list[Path]:
    """The weights first: without the row nobody knows what they are."""
    places = (folder.personal / study / name for name in (_WEIGHTS, _ROW))
    return [one for one in places if one.exists()]


def forget_after_withdrawals(journal: Journal, folder: StateFolder) -> None:
    """Of whoever withdrew and is still to be taken out: what was decided of the models holds for our own too."""
    for one in journal.private.withdrawals():
        for effect in journal.private.effects(one) if one.erased_at is None else ():
            if effect.decision != "keep":
                forget_own(folder, effect.study)


def remove_own(journal: Journal, folder: StateFolder, own: OwnRow, now: datetime) -> None:
    """A person has no more use for it. The entry comes first: a kill leaves files that are removed the next time."""
    files = _files(folder, own.study)
    size = sum(one.stat().st_size for one in files)
    with journal.transaction():
        journal.record(DataPurged(study=own.study, what="results", files=len(files), bytes=size), now)
    forget_own(folder, own.study)


# --- in words ------------------------------------------------------------------------------------------------
def personal_lines(plan: StudyPlan) -> list[tuple[str, str]]:
    """(heading, text) pairs for the steward who reads a plan: what it has us do for ourselves, what of it leaves."""
    how = plan.personalisation
    if how is None:
        return []
    which = "" if "*" in how.parameters else f" (parameters called {' or '.join(how.parameters)})"
    own = f"a model of our own{which} is {_PLANNED[how.method].format(epochs=how.epochs, strength=how.strength)}"
    trained, alone = f"{own}; another is trained here alone, to compare with", "the one trained alone, "
    if plan.bands:
        trained, alone = f"{own}, with the noise of a round and for as much of the budget; none is trained alone", ""
    return [
        ("For ourselves", f"{trained}. What is trained stays here, and so do its figures on our held-back patients"),
        ("What leaves of it", f"once, after the last round: whether {alone}the federated or our own model is better, "
         "the same or worse on our held-back patients, and by how much, in one vector under masks: only at how many "
         "hospitals, and the mean difference, can be read"),
    ]  # fmt: skip


def sentence(own: OwnRow) -> str:
    """`AUROC 0.91 alone, 0.94 federated, 0.95 own`, for a list of studies."""
    if own.row is None:
        return f"its figures cannot be read any more: {_ROW} is damaged"
    told = [f"{values[0]:.3f} {NAMES[name]}" for name, values in _figures(own.row).items()]
    return plain(f"{own.row.figure} {', '.join(told)}" if told else f"no {own.row.figure} could be worked out")


def lines(own: OwnRow) -> list[tuple[str, str]]:
    """(heading, text) pairs for this hospital's own people: figures with intervals, verdicts, where the model lies."""
    row = own.row
    if row is None:
        return [("On our patients", sentence(own)), ("Our own model", plain(f"the weights are at {own.model}"))]
    said = [("On our patients", f"{row.figure} on {row.patients} held-back patients, with 95 % intervals")]
    for name, values in _figures(row).items():
        said.append(("", f"{_LONG[name]}: {_with_interval(values)}"))
    for one, other, values, verdict in row.differences:
        compared = f"{NAMES[one]} less {NAMES[other]}: {_with_interval(values, signed=True)}"
        said.append(("", f"{compared}, {verdict or 'nobody can tell: too few held-back patients'}"))
    if len(row.differences) < len(COMPARED):
        said.append(("", "where a comparison is missing, there is no such model, or a class is absent"))
    scale = row.normalisation
    images = "" if scale is None else f"; it takes images less {scale.mean:.6g}, divided by {scale.deviation:.6g}"
    said += [
        ("Our own model", f"{row.model}, {_METHODS[row.method]}, for {', '.join(row.classes)}{images}"),
        ("", f"{own.model}; it never leaves. Made from the federated model {own.federated}"),
    ]
    return [(heading, plain(text)) for heading, text in said]


def _figures(row: Row) -> dict[Name, Figure]:
    return {name: row.figures[name] for name in NAMES if name in row.figures}


def _with_interval(values: Figure, *, signed: bool = False) -> str:
    value, low, high = values
    shape = "+.3f" if signed else ".3f"
    return f"{value:{shape}}" + ("" if low is None else f" ({low:{shape}} to {high:{shape}})")
