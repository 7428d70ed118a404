"""The rounds: one chain of models, each link with its record, its receipt and the names of all that worked on it."""

from collections.abc import Iterator

from boundary.canonical import digest
from boundary.names import COORDINATOR
from boundary.receipt import Receipt
from boundary.robustness import RolledBack
from compliance.bundle import RECEIPTS, SignedReceipt, round_file
from compliance.events import ReceiptSigned, RoundClosed, RoundOpened, RoundReceived, StudyEnded
from compliance.records import RoundRecord, to_bytes
from compliance.verification.case import Case, Entry
from compliance.verification.findings import Finding, at, broken, incomplete, names, note
from compliance.verification.signatures import receipt_claim


def chain(case: Case) -> Iterator[Finding]:
    """Rounds 1, 2, 3 of the coordinator's log; each begins with the model that came out of the one before."""
    log = case.logs.get(COORDINATOR)
    if log is None:
        return  # told as a missing log
    opened: dict[int, list[Entry[RoundOpened]]] = {}
    for entry in log.of(RoundOpened, case.study):
        opened.setdefault(entry.event.round, []).append(entry)
    ends = [entry.number for entry in log.of(StudyEnded, case.study)]
    number, model, since = 0, "", 0
    for closed in case.closed:
        said, where, number = closed.event, at(COORDINATOR, closed.number), number + 1
        if said.round != number:
            yield broken(where, f"round {said.round} closed as number {number}", "a round is missing or there twice")
            return
        begun = opened.pop(said.round, [])
        if len(begun) != 1 or not since < begun[0].number < closed.number or begun[0].event.model != said.model_in:
            found = f"round {said.round} closed, and not opened once before it with the model it names"
            yield broken(where, found, "what the hospitals worked on is not what the round is said to be made from")
        if model and said.model_in != model:
            means = "the model was exchanged between two rounds"
            yield broken(where, f"round {said.round} is not made from the model of the one before", means)
        if any(end < closed.number for end in ends):
            yield broken(where, f"round {said.round} closed after the study had ended", "a round nobody waited for")
        model, since = said.model_out, closed.number
    if number > case.bundle.plan.training.rounds:
        means = "more than the hospitals approved"
        yield broken(COORDINATOR, f"{number} rounds, the plan has {case.bundle.plan.training.rounds}", means)
    yield from _left_open(case, opened)


def _left_open(case: Case, opened: dict[int, list[Entry[RoundOpened]]]) -> Iterator[Finding]:
    plan = case.bundle.plan
    for left, entries in sorted(opened.items()):
        if plan.training.rounds < left <= plan.rounds_in_all:
            continue  # in which hospitals personalise: no model comes of it (`sums.cohorts`)
        means = "its work is in no model of this bundle"
        yield note(at(COORDINATOR, entries[0].number), f"round {left} was opened and not closed", means)


def records(case: Case) -> Iterator[Finding]:
    """What is told of a round is what the log has the digest of, and it says the same."""
    known = set()
    for closed in case.closed:
        said, record = closed.event, case.records.get(closed.event.round)
        known.add(said.round)
        path = round_file(said.round)
        if record is None:
            yield incomplete(path, "not readable here", f"nothing is known of round {said.round} but its entry")
            continue
        if digest(case.files.get(path) or to_bytes(record)) != said.record:
            means = "the record was changed after the round was closed"
            yield broken(path, f"not what {at(COORDINATOR, closed.number)} has the digest of", means)
        tried = None if record.tried is None else record.tried.digest
        told = (record.study, record.model_in, record.model_out.digest, tried, record.contributing)
        if (*told, sorted(record.absent)) != (
            said.study, said.model_in, said.model_out, said.tried, said.contributing, sorted(said.absent)
        ):  # fmt: skip
            yield broken(path, f"contradicts {at(COORDINATOR, closed.number)}", "two accounts of one round")
        yield from _rolled_back(case, record)
        if record.train.members != record.contributing or not set(record.contributing) <= set(record.ready):
            yield broken(path, "names others in its sum than as contributing", "two accounts of one round")
    if COORDINATOR in case.logs:
        for number in sorted(set(case.records) - known):
            yield broken(round_file(number), "no entry of the coordinator's log closes this round", "it did not happen")


def _rolled_back(case: Case, record: RoundRecord) -> Iterator[Finding]:
    """A round is rolled back to the model it began with, if plan, length and votes say so, and not otherwise."""
    path, vote, why, robustness = round_file(record.round), record.vote, record.rolled_back, case.bundle.plan.robustness
    if (record.tried is None) != (why is None):
        yield broken(path, "says half that it was rolled back", "two accounts of one round")
    if why is not None:
        if not robustness.knows(why):
            yield broken(path, f"was rolled back ({why})", "the plan that the hospitals approved has nothing of that")
        if record.model_out.digest != record.model_in:
            yield broken(path, "was rolled back to a model it did not begin with", "a model that no sum gave counts")
    if robustness.is_too_long(record.update_norm, record.median) != (why is RolledBack.TOO_LONG):
        yield broken(path, "does not do what the length of its sum says", "a change too long counts, or was made up")
    is_down = vote is not None and robustness.is_down(vote, record.round)
    if is_down != (why is RolledBack.VOTED_DOWN):
        yield broken(path, "does not do what the hospitals' votes say", "their vote was not what counted")
    measured = () if record.evaluate is None else record.evaluate.members
    if vote is not None and (not robustness.vote or vote.voted > len(measured)):
        yield broken(path, f"tells of {vote.voted} votes", "no so many hospitals were asked for one")
    if robustness.vote and vote is None and why is None:
        yield broken(path, "counts without a vote", "the hospitals approved that they vote on every model")


def receipts(case: Case) -> Iterator[Finding]:
    """Signed by the coordinator and by every hospital whose work is in the round, about what the log says of it."""
    for closed in case.closed:
        said, place = closed.event, f"{RECEIPTS}, round {closed.event.round}"
        signed = case.bundle.receipts.get(said.round)
        if signed is None:
            yield incomplete(place, "no receipt", "nobody has put their name under this round")
            continue
        if not _agrees(case, signed.receipt, said):
            means = "two accounts of one round"
            yield broken(place, f"says something else than {at(COORDINATOR, closed.number)}", means)
        yield from _signatures(case, place, signed, said)
    yield from _other_receipts(case)
    if COORDINATOR in case.logs:
        for number in sorted(set(case.bundle.receipts) - {closed.event.round for closed in case.closed}):
            means = "it did not happen, or the log was cut"
            yield broken(f"{RECEIPTS}, round {number}", "a receipt for a round that is not closed", means)


def _agrees(case: Case, receipt: Receipt, said: RoundClosed) -> bool:
    record = case.records.get(said.round)
    transcript = receipt.transcript if record is None else record.transcript
    return receipt == Receipt(
        study=case.study,
        plan_digest=case.plan_digest,
        round=said.round,
        model_in=said.model_in,
        model_out=said.model_out,
        tried=said.tried,
        transcript=transcript,
        contributing=said.contributing,
        absent=said.absent,
    )


def _signatures(case: Case, place: str, signed: SignedReceipt, said: RoundClosed) -> Iterator[Finding]:
    missing = {COORDINATOR, *said.contributing} - set(signed.signatures)
    if missing:
        means = "they have not confirmed that their work is in this model"
        yield incomplete(place, f"not signed by {names(missing)}", means)
    for party in sorted(signed.signatures):
        if receipt_claim(said.round, party) in case.forged:
            yield broken(place, f"the signature of {party} does not verify", "the receipt is forged or was changed")


def _other_receipts(case: Case) -> Iterator[Finding]:
    digests = {number: signed.receipt.digest for number, signed in case.bundle.receipts.items()}
    for party, log in case.logs.items():
        for entry in log.of(ReceiptSigned, case.study):
            if entry.event.receipt != digests.get(entry.event.round, entry.event.receipt):
                means = f"{party} has signed two accounts of round {entry.event.round}"
                yield broken(at(party, entry.number), "signed another receipt than the one here", means)


def received(case: Case) -> Iterator[Finding]:
    """What the hospitals were told of a round is what the coordinator's log says of it."""
    rounds = {closed.event.round: closed for closed in case.closed}
    for party, log in case.logs.items():
        for entry in log.of(RoundReceived, case.study):
            closed, record = rounds.get(entry.event.round), case.records.get(entry.event.round)
            means = f"the coordinator told {party} one thing and wrote another into its log"
            if closed is None:
                if COORDINATOR in case.logs:
                    found = f"was told of round {entry.event.round}, which is not closed"
                    yield broken(at(party, entry.number), found, means)
            elif _contradicts(entry.event, closed.event, record):
                found = f"was told something else of round {entry.event.round} than the log says"
                yield broken(at(party, entry.number), found, means)


def _contradicts(told: RoundReceived, said: RoundClosed, record: RoundRecord | None) -> bool:
    transcript = told.transcript if record is None else record.transcript
    heard = (told.model, told.tried, told.transcript, told.contributing, told.absent)
    return heard != (said.model_out, said.tried, transcript, said.contributing, said.absent)
