"""SEC and APR: how each round's sum was opened, who had approved it, who signed for it."""

from boundary.groups import groups_of
from boundary.receipt import Receipt
from boundary.secagg.context import survivors_of, transcript_of
from compliance.events import ContributionReleased, SumOpened, SurvivorsAgreed
from compliance.evidence.facts import Facts, HospitalFacts, RoundFacts
from compliance.evidence.privacy_checks import approval_before
from compliance.evidence.reading import Entry, Pointer, in_round
from compliance.evidence.verdicts import Finding, Tally, Verdict

_NO_ROUND = "no round was closed"


def check_masked(facts: Facts) -> Finding:
    """SEC-01. Each opened sum is over the masked vectors that the hospitals logged, and each model out of such a sum.

    The digest of the survivors binds every vector, the transcript binds the model to it (`boundary.secagg.context`).
    """
    tally = Tally()
    for one in facts.rounds:
        for opened in one.sums:
            _sum_is_theirs(facts, opened, tally)
        if one.closed:
            _model_is_of_a_sum(facts, one, tally)
    return tally.finding(
        "every opened sum is over the masked vectors the hospitals logged, and every model is of one", _NO_ROUND
    )


def _sum_is_theirs(facts: Facts, opened: Entry[SumOpened], tally: Tally) -> None:
    said, vectors, sharers, at = opened.event, {}, set(), [opened.at]
    where = f"round {said.round}, {said.phase}"
    for silo in said.surviving:
        hospital = _known(facts, silo)
        sent = [] if hospital is None else _in_sum(hospital, opened)
        if hospital is None:
            tally.wrong(f"{where}: {silo} is in the sum and not in the plan", [opened.at])
            return
        if not sent:
            says = f"{where}: {silo} is in the sum and logged no masked vector for it"
            (tally.unknown if hospital.hides else tally.wrong)(says, [opened.at])
            return
        vectors[silo] = sent[-1].event.vector
        sharers.add(sent[-1].event.sharers)
        at.append(sent[-1].at)
    if len(sharers) != 1 or survivors_of(next(iter(sharers)), vectors) != said.survivors:
        tally.wrong(f"{where}: the opened sum is over other vectors than the hospitals sent", at)
    tally.good(at)


def _in_sum(hospital: HospitalFacts, opened: Entry[SumOpened]) -> list[Entry[ContributionReleased]]:
    """Sent for this very attempt, by a hospital that had agreed to these survivors."""
    said = opened.event
    about = (said.round, said.phase, said.attempt)
    agreed = {
        one.event.survivors
        for one in hospital.log.of(SurvivorsAgreed)
        if (one.event.round, one.event.phase, one.event.attempt) == about
    }
    return [
        one
        for one in hospital.log.of(ContributionReleased)
        if (one.event.round, one.event.phase, one.event.attempt) == about and said.survivors in agreed
    ]


def _model_is_of_a_sum(facts: Facts, one: RoundFacts, tally: Tally) -> None:
    closed = one.closed[0]
    if one.record is None or one.receipt is None:
        tally.unknown(f"round {one.number}: its record or receipt is not in the bundle", [closed.at])
        return
    model = closed.event.tried or closed.event.model_out
    sums = {transcript_of(opened.event.survivors, model) for opened in one.sums if opened.event.phase == "train"}
    said = {one.record.transcript, one.receipt.receipt.receipt.transcript}
    if not sums and facts.coordinator.withheld:
        tally.unknown(f"round {one.number}: the opening of its sum is not shown", [closed.at])
    elif len(said) != 1 or not said <= sums:
        tally.wrong(f"round {one.number}: its model is not of a sum that was opened", [closed.at])
    tally.good([closed.at])


def check_signed(facts: Facts) -> Finding:
    """SEC-02. The coordinator and every hospital whose work is in a round signed its receipt, under the plan's keys."""
    tally = Tally()
    for one in facts.trained:
        at = [entry.at for entry in one.closed]
        if one.receipt is None:
            tally.unknown(f"round {one.number} has no receipt", at)
            continue
        for party in one.receipt.invalid:
            tally.wrong(f"the signature of {party} under round {one.number} does not verify", at)
        for party in one.receipt.absent:
            tally.unknown(f"the signature of {party} under round {one.number} is missing", at)
        if one.closed and not _says_the_same(facts, one, one.receipt.receipt.receipt):
            tally.wrong(f"the receipt of round {one.number} is about another round than the one that was logged", at)
        tally.good(at)
    return tally.finding("the coordinator and every contributing hospital signed every round's receipt", _NO_ROUND)


def _says_the_same(facts: Facts, one: RoundFacts, said: Receipt) -> bool:
    closed = one.closed[0].event
    return (said.study, said.plan_digest, said.round) == (facts.study, facts.plan_digest, one.number) and (
        (said.model_in, said.model_out, said.tried, said.contributing, said.absent)
        == (closed.model_in, closed.model_out, closed.tried, closed.contributing, closed.absent)
    )


def check_transport(_facts: Facts) -> Finding:
    """SEC-04. A connection leaves no entry."""
    return Finding(
        Verdict.NOT_MEASURED,
        "No entry shows how connections were made; look at the relay's TLS settings and certificates.",
    )


def check_cohorts(facts: Facts) -> Finding:
    """SEC-03. No sum was opened over fewer hospitals than the plan's quorum, which is at least three.

    In a plan with groups the sum of each group is one.
    """
    least, tally = facts.plan.aggregation.quorum, Tally()
    for one in facts.rounds:
        for opened in one.sums:
            groups = groups_of(facts.plan, opened.event.phase, opened.event.surviving)
            size = min(map(len, groups), default=0)
            if size < least:
                tally.wrong(f"round {one.number}: a sum over {size} hospitals, the plan asks for {least}", [opened.at])
            tally.good([opened.at])
        if one.closed and not one.sums:
            tally.unknown(f"round {one.number} was closed and no opened sum is shown", [one.closed[0].at])
    if facts.coordinator.withheld or facts.coordinator.broken:
        tally.unknown("entries of the coordinator are not shown")
    return tally.finding(f"every sum was over at least {least} hospitals", "no sum was opened")


def check_approvals(facts: Facts) -> Finding:
    """APR-01. By its own log each hospital had approved this plan before it sent anything; its steward signed so."""
    tally = Tally()
    for one in facts.rounds:
        for silo in one.contributing:
            _was_approved(facts, one, silo, tally)
    return tally.finding("every contributing hospital had approved this plan before each of its rounds", _NO_ROUND)


def _was_approved(facts: Facts, one: RoundFacts, silo: str, tally: Tally) -> None:
    hospital = _known(facts, silo)
    at = [entry.at for entry in one.closed]
    if hospital is None:
        tally.wrong(f"hospital {silo} contributed to round {one.number} and is not in the plan", at)
    elif not hospital.log.is_there or hospital.log.broken:
        tally.unknown(f"the log of {silo} cannot be read in full", at)
    elif hospital.approval is None:
        tally.unknown(f"the signed approval of {silo} is not in the bundle", at)
    elif hospital.approval_problem:
        tally.wrong(f"the approval of {silo} does not hold: {hospital.approval_problem}", _where(hospital))
    else:
        found = in_round(hospital.log.of(ContributionReleased), one.number)
        if not found:
            tally.unknown(f"hospital {silo} does not show what it sent in round {one.number}", at)
        for sent in found:
            approved = approval_before(hospital, sent, facts.plan_digest)
            if approved is None:
                tally.wrong(f"hospital {silo} sent in round {one.number} without an approval of this plan", [sent.at])
            else:
                tally.good([approved.at])
        if one.opened and one.opened[0].time[:10] > facts.plan.purpose.expires.isoformat():
            tally.wrong(f"round {one.number} was opened after the plan had expired", [one.opened[0].at])


def _where(hospital: HospitalFacts) -> list[Pointer]:
    return [entry.at for entry in hospital.given]


def _known(facts: Facts, silo: str) -> HospitalFacts | None:
    return next((one for one in facts.hospitals if one.silo == silo), None)
