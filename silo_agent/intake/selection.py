"""Which files of an archive are candidates for a plan's cohort, and why the others are not. No file is opened here.

Everything is decided on pseudonyms. The label table is looked up by them too: its own keys are hashed as the archive's.
"""

from collections import defaultdict
from dataclasses import fields

from boundary.plan import StudyPlan
from silo_agent.intake.cohort import Candidate
from silo_agent.intake.facts import Known
from silo_agent.intake.header import Identifiers
from silo_agent.intake.labels import BY_ACCESSION, Key, LabelTable
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.withdrawn import Withdrawn

_NAMES = tuple(one.name for one in fields(Identifiers) if one.name != "patient_id")


class Selection:
    """What looking at the files one by one has found so far."""

    def __init__(self, plan: StudyPlan, table: LabelTable, withdrawn: Withdrawn, names: Pseudonyms) -> None:
        self.candidates: dict[int, Candidate] = {}
        self.refused: dict[int, Refusal] = {}
        self.keys_met: set[Key] = set()
        self.gone: set[int] = set()  # files of patients who withdrew: not named, and no image of them is kept
        self._modalities, self._table, self._withdrawn = plan.dataset.modalities, table, withdrawn
        self._all_withdrawn = withdrawn.before | withdrawn.after
        self._named = {names.uid(name): name for _, name in table.outcomes}
        self._by_accession: set[int] = set()  # files that the table knows by nothing better
        self._whose: dict[int, tuple[str, str]] = {}  # Accession Number and patient of all that the table may mean

    def wants(self, known: Known) -> bool:
        """Whether the image may be used, so that its pixels are needed; nobody's who withdrew before are read."""
        is_there = known.who is not None and known.who.patient_id not in self._withdrawn.before
        return is_there and known.refusal(self._modalities) is None

    def forgets(self, known: Known) -> bool:
        """Whether no index may remember it."""
        return known.who is not None and known.who.patient_id in self._all_withdrawn

    def take(self, number: int, known: Known) -> None:
        """Decide on a file; on one that was decided on before, anew."""
        self.candidates.pop(number, None)
        self.refused.pop(number, None)
        self._by_accession.discard(number)
        self._whose.pop(number, None)
        if known.who is not None and known.who.accession in self._named:
            self._whose[number] = known.who.accession, known.who.patient_id
        if self.forgets(known):
            self.gone.add(number)
        outcome = self._judged(number, known)
        if isinstance(outcome, Refusal):
            self.refused[number] = outcome
        elif known.who is not None and known.content is not None:
            who = known.who
            self.candidates[number] = Candidate(number, outcome, who.sop_uid, who.patient_id, known.content)

    def whose_is_unclear(self) -> set[int]:
        """The candidates with a label by an Accession Number that files of several patients have.

        Files that cannot be used count as well, and those of who withdrew: that they have the number too shows that
        a row may be about somebody else.
        """
        patients: dict[str, set[str]] = defaultdict(set)
        for accession, patient in self._whose.values():
            patients[accession] |= {patient} - {""}
        labelled = self._by_accession & self.candidates.keys()
        return {number for number in labelled if len(patients[self._whose[number][0]]) > 1}

    def _judged(self, number: int, known: Known) -> int | Refusal:
        if refusal := known.refusal(self._modalities):
            return refusal
        if known.who is None:
            return Refusal.UNREADABLE
        labelled = self._as_labelled(known.who)
        if met := self._table.key_of(labelled):
            self.keys_met.add(met)
            if met[0] == BY_ACCESSION:
                self._by_accession.add(number)
        if known.who.patient_id in self._withdrawn.before:
            return Refusal.WITHDRAWN
        return Refusal.UNREADABLE if known.content is None else self._table.label_of(labelled)

    def _as_labelled(self, who: Identifiers) -> Identifiers:
        """With the names that the label table has, and nothing in place of the others."""
        return Identifiers(patient_id="", **{name: self._named.get(getattr(who, name), "") for name in _NAMES})

    def kept(self, number: int) -> Candidate | None:
        """The candidate, unless its patient withdrew since the data were fixed: those count, and nothing is kept."""
        return None if number in self.gone else self.candidates.get(number)
