"""Enrolment, admission, renewal, removal: who may talk to us, and the audit entry of each step."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from boundary.api import Activity, EnrolmentState, Heartbeat
from boundary.errors import BadSignature, RolledBack, UnknownMember
from boundary.roster import TrustedRoster, make_card
from boundary.version import ProtocolRange
from compliance.events import EnrolmentAsked, HospitalAdmitted, HospitalInvited, RosterIssued
from compliance.trail import read_leaf
from flows.store import audit, members
from flows.store.database import reading, writing
from flows.store.members import InvitationRefused, OtherKey

WAITING = EnrolmentState(state="waiting")


def events(federation: Any) -> list[Any]:
    with reading(federation.store) as connection:
        return [read_leaf(leaf).event for leaf in audit.leaves(connection)]


def test_a_hospital_is_invited_asks_and_is_admitted(federation: Any, now: datetime) -> None:
    olavs = federation.party("st-olavs")
    request = olavs.asks(federation.invite("st-olavs"))
    with writing(federation.store) as connection:
        assert members.enrol(connection, request, now) == WAITING
        assert members.enrol(connection, request, now) == WAITING
        assert [member.fingerprint for member in members.waiting(connection)] == [olavs.key.public.fingerprint]
        with pytest.raises(UnknownMember, match="finish the enrolment"):
            members.key_of(connection, "st-olavs")
        assert members.asking_key_of(connection, "st-olavs") == olavs.key.public
    roster = federation.roster(olavs.card)
    with writing(federation.store) as connection:
        members.admit(connection, "st-olavs", "PEM", now + timedelta(days=90), roster=roster, now=now)
    with writing(federation.store) as connection:
        assert members.waiting(connection) == ()
        assert members.key_of(connection, "st-olavs") == olavs.key.public
        admitted = EnrolmentState(state="admitted", certificate_pem="PEM", roster=roster.data)
        assert members.enrolment_state(connection, "st-olavs") == admitted
        assert members.enrol(connection, request, now) == admitted
        assert TrustedRoster.first(members.current_roster(connection), federation.coordinator.key.public, now)
    fingerprint = olavs.key.public.fingerprint
    assert events(federation) == [
        HospitalInvited(silo="st-olavs"),
        EnrolmentAsked(silo="st-olavs", fingerprint=fingerprint),
        RosterIssued(roster_version=1, roster_digest=roster.digest),
        HospitalAdmitted(silo="st-olavs", fingerprint=fingerprint, roster_version=1),
    ]


REFUSED_TOKENS = {
    "a token nobody made": ("x" * 43, timedelta(0)),
    "a token that has expired": ("t" * 43, timedelta(days=7)),
}


@pytest.mark.parametrize(("token", "later"), REFUSED_TOKENS.values(), ids=REFUSED_TOKENS)
def test_an_invitation_must_be_ours_and_alive(federation: Any, now: datetime, token: str, later: timedelta) -> None:
    federation.invite("st-olavs")
    with pytest.raises(InvitationRefused), writing(federation.store) as connection:
        members.enrol(connection, federation.party("st-olavs").asks(token), now + later)
    assert events(federation) == [HospitalInvited(silo="st-olavs")]


def test_another_hospitals_invitation_is_refused(federation: Any, now: datetime) -> None:
    token = federation.invite("st-olavs")
    with pytest.raises(InvitationRefused, match="no invitation for charite"), writing(federation.store) as connection:
        members.enrol(connection, federation.party("charite").asks(token), now)


def test_an_invitation_counts_once(federation: Any, now: datetime) -> None:
    token = federation.invite("st-olavs")
    with writing(federation.store) as connection:
        members.enrol(connection, federation.party("st-olavs").asks(token), now)
    with pytest.raises(InvitationRefused, match="used already"), writing(federation.store) as connection:
        members.enrol(connection, federation.party("st-olavs").asks(token), now)


def test_another_key_for_an_admitted_hospital_is_refused(federation: Any, now: datetime) -> None:
    olavs = federation.party("st-olavs")
    federation.admit(olavs)
    token = federation.invite("st-olavs")
    with pytest.raises(OtherKey, match="admitted under another key"), writing(federation.store) as connection:
        members.enrol(connection, federation.party("st-olavs").asks(token), now)
    with reading(federation.store) as connection:
        assert members.key_of(connection, "st-olavs") == olavs.key.public


def test_a_hospital_that_lost_its_keys_while_waiting_may_ask_again(federation: Any, now: datetime) -> None:
    first, second = federation.party("st-olavs"), federation.party("st-olavs")
    tokens = [federation.invite("st-olavs", letter * 43) for letter in "ab"]
    with writing(federation.store) as connection:
        members.enrol(connection, first.asks(tokens[0]), now)
        members.enrol(connection, second.asks(tokens[1]), now)
        assert [member.card for member in members.waiting(connection)] == [second.card]


def test_forged_requests_are_refused(federation: Any, now: datetime) -> None:
    olavs, other = federation.party("st-olavs"), federation.party("st-olavs")
    signed = olavs.asks(federation.invite("st-olavs"))
    swapped = olavs.card.model_copy(update={"sealing_key": other.card.sealing_key})
    forgeries = [
        signed.model_copy(update={"signature": other.asks("t" * 43).signature}),
        signed.model_copy(update={"request": signed.request.model_copy(update={"card": other.card})}),
        signed.model_copy(update={"request": signed.request.model_copy(update={"card": swapped})}),
    ]
    charite = federation.party("charite").card
    forgeries.append(signed.model_copy(update={"request": signed.request.model_copy(update={"card": charite})}))
    with writing(federation.store) as connection:
        for forged in forgeries:
            with pytest.raises(BadSignature):
                members.enrol(connection, forged, now)
        assert members.members(connection) == ()


def test_an_admitted_hospital_renews_its_certificate_and_keeps_working(
    federation: Any, now: datetime, new_csr: Callable[[str], str]
) -> None:
    olavs = federation.party("st-olavs")
    federation.admit(olavs)
    again = olavs.asks(federation.invite("st-olavs"), csr_pem=new_csr("st-olavs"))
    with writing(federation.store) as connection:
        assert members.enrol(connection, again, now) == WAITING
        assert members.key_of(connection, "st-olavs") == olavs.key.public
        assert [member.silo for member in members.waiting(connection)] == ["st-olavs"]
        members.admit(connection, "st-olavs", "NEW", now + timedelta(days=180), roster=None, now=now)
        assert members.enrolment_state(connection, "st-olavs").certificate_pem == "NEW"


def test_nobody_is_admitted_who_does_not_wait_or_is_not_on_the_roster(federation: Any, now: datetime) -> None:
    olavs = federation.party("st-olavs")
    with pytest.raises(UnknownMember, match="not waiting"), writing(federation.store) as connection:
        members.admit(connection, "st-olavs", "PEM", now, roster=federation.roster(olavs.card), now=now)
    request = olavs.asks(federation.invite("st-olavs"))
    impostor = make_card("st-olavs", federation.party("x").key, olavs.card.sealing)
    for roster in (None, federation.roster(), federation.roster(impostor)):
        with federation.store.connect() as connection:  # each try is rolled back
            members.enrol(connection, request, now)
            with pytest.raises(UnknownMember, match="does not hold the card"):
                members.admit(connection, "st-olavs", "PEM", now, roster=roster, now=now)


def test_a_roster_without_a_hospital_removes_it_and_rosters_never_go_back(federation: Any, now: datetime) -> None:
    olavs, charite = federation.party("st-olavs"), federation.party("charite")
    federation.admit(olavs, charite)
    with writing(federation.store) as connection:
        members.issue(connection, federation.roster(charite.card, version=3), now=now)
        assert members.roster_version(connection) == 3
        with pytest.raises(UnknownMember):
            members.key_of(connection, "st-olavs")
        assert members.enrolment_state(connection, "st-olavs").state == "refused"
        assert members.key_of(connection, "charite") == charite.key.public
    with pytest.raises(RolledBack), writing(federation.store) as connection:
        members.issue(connection, federation.roster(olavs.card, charite.card, version=2), now=now)
    token = federation.invite("st-olavs")
    with writing(federation.store) as connection:
        assert members.enrol(connection, federation.party("st-olavs").asks(token), now) == WAITING


def test_a_heartbeat_is_a_lease(federation: Any, now: datetime) -> None:
    federation.admit(federation.party("st-olavs"))
    activity = Activity(study="ct-contrast-7f3a90c1", round=3, phase="train", step=10, steps=200)
    said = Heartbeat(agent_version="0.1.0", protocol=ProtocolRange(), activity=activity, roster_version=1)
    with writing(federation.store) as connection:
        (member,) = members.members(connection)
        assert member.last_seen_at is None
        assert not member.is_live(now)
        members.beat(connection, "st-olavs", said, now, timedelta(seconds=60))
    with reading(federation.store) as connection:
        (member,) = members.members(connection)
    assert (member.last_seen_at, member.heartbeat) == (now, said)
    assert member.is_live(now + timedelta(seconds=59))
    assert not member.is_live(now + timedelta(seconds=60))
