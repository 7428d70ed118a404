"""Somebody withdraws consent: recorded in one transaction, effective from the next round.

The rules it keeps. The Patient ID is hashed before anything else is done, and only hashes are kept. What is recorded is
carried out by whoever comes first, the command or the daemon, from the journal alone: a kill leaves nothing, or a
withdrawal that is completed. A round whose work has begun may finish with the patient; no later one sees them. Nothing
of the privacy budget comes back, and no denominator changes: what was computed was computed.
"""

from datetime import datetime

from compliance.events import PatientWithdrawn, WithdrawalEffective
from silo_agent.errors import ConfigError
from silo_agent.exposure import first_without, side_of
from silo_agent.intake.erasing import alone, erase, forget_rows
from silo_agent.intake.withdrawn import reference_of, tag_of
from silo_agent.journal import Journal
from silo_agent.late import forget_waiting
from silo_agent.personal import forget_after_withdrawals
from silo_agent.private_trail import Decision, Effect, Withdrawal
from silo_agent.results import forget_carried
from silo_agent.state import StateFolder
from silo_agent.trainer import study_key


def withdraw(
    journal: Journal, folder: StateFolder, patient: str, decision: Decision, now: datetime
) -> tuple[Withdrawal, bool]:
    """Record that this patient withdraws, and take them out of every scan. Also whether it is new.

    The first time counts, its decision too. Raises `ConfigError` for what is no Patient ID.
    """
    return withdraw_reference(journal, folder, _reference(master_key(folder), patient), decision, now)


def withdraw_reference(
    journal: Journal, folder: StateFolder, reference: str, decision: Decision, now: datetime
) -> tuple[Withdrawal, bool]:
    """As `withdraw`, of somebody who is known by their reference only."""
    with journal.transaction():
        known = journal.private.find(reference)
        withdrawal = known or _record(journal, master_key(folder), reference, decision, now)
    finish(journal, folder, now)
    return withdrawal, known is None


def master_key(folder: StateFolder) -> bytes:
    try:
        return folder.dataset_key_file.read_bytes()
    except OSError as why:
        raise ConfigError(f"{folder.dataset_key_file} cannot be read: {why.strerror}") from why


def _reference(master: bytes, patient: str) -> str:
    """As the intake reads a Patient ID: without blanks around it, and otherwise to the letter."""
    wanted = patient.strip(" \0")
    if not wanted:
        raise ConfigError("no Patient ID was given")
    try:
        return reference_of(master, wanted)
    except UnicodeEncodeError:
        raise ConfigError("the Patient ID is not text in this terminal's encoding") from None


def _record(journal: Journal, master: bytes, reference: str, decision: Decision, now: datetime) -> Withdrawal:
    withdrawal = journal.private.withdraw(reference, now)
    journal.record(PatientWithdrawn(private=withdrawal.private), now)
    for kept in journal.plans():
        if side_of(journal, master, kept.study, reference) is None:
            continue
        if kept.approval is None:  # its data are not fixed yet: they are looked at again, without the patient
            journal.set_plan(kept.study, "received", only_from="scanned")
        else:
            effect = Effect(kept.study, first_without(journal, kept.study), decision)
            journal.private.take_effect(withdrawal, effect)
            told = WithdrawalEffective(
                study=effect.study, round=effect.round, private=withdrawal.private, decision=decision
            )
            journal.record(told, now)
    return withdrawal


def finish(journal: Journal, folder: StateFolder, now: datetime, *, again: bool = False) -> None:
    """Take whoever withdrew out of all scans, and throw away what they had a share in and was not sent yet.

    Nothing is done if it was done before, but with `again`, for the start of the agent.
    """
    last = journal.private.last
    if not (journal.private.unfinished or (again and last)):
        return
    _forget(journal, folder)  # also without any plan
    for kept in journal.plans():
        _erase(journal, folder, kept.study)
    for study in journal.private.unfinished_of():
        forget_carried(folder, study)
        forget_waiting(journal, folder, study)
    forget_after_withdrawals(journal, folder)
    with journal.transaction():
        journal.private.finished(last, now)


def erase_from(journal: Journal, folder: StateFolder, study: str) -> None:
    """Take whoever withdrew out of one study's scan: also after each scan, which may have begun before.

    And out of what scans remember, to which that scan may have added.
    """
    if journal.private.last:
        _forget(journal, folder)
        _erase(journal, folder, study)


def _forget(journal: Journal, folder: StateFolder) -> None:
    forget_rows(folder.index, {one.reference for one in journal.private.withdrawals()})


def _erase(journal: Journal, folder: StateFolder, study: str) -> None:
    key = study_key(master_key(folder), study)
    tags = {tag_of(key, one.reference) for one in journal.private.withdrawals()}
    with alone(folder.cache):
        erase(folder.cache / study, tags)
