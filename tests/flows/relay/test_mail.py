"""Enrolment, the roster, envelopes and the long poll over the wire."""

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest

from boundary.api import ENROLMENT_CONTEXT, EnrolmentRequest, EnrolmentState, Heartbeat, SignedEnrolment
from boundary.canonical import canonical_bytes
from boundary.envelope import seal_envelope
from boundary.identity import SigningIdentity
from boundary.messages import Collection, StudyClosed, SurvivorsSeen
from boundary.requests import sign_request
from boundary.roster import make_card
from boundary.sealing import UnsealingKey
from boundary.version import ProtocolRange
from flows.relay.letters import upgrade_for
from flows.store import mail, members
from flows.store.database import reading, writing

STUDY = "ct-contrast-7f3a90c1"
DIGEST = "sha256:" + "ab" * 32


def ready(number: int, order: str = DIGEST) -> SurvivorsSeen:
    return SurvivorsSeen(collection=Collection(study=STUDY, round=number, phase="train"), order=order, survivors=DIGEST)


def say(hospital: Any, message: Any, *, to: str = "coordinator", name: str | None = None) -> bytes:
    sender = name or hospital.silo
    return seal_envelope(message, sender=sender, recipient=to, sent_at=datetime.now(UTC), key=hospital.key).data


def announce(relay: Any, silo: str, number: int) -> None:
    """What a flow process does."""
    closed = StudyClosed(study=f"study-{number:08x}", code="FINISHED")
    now = datetime.now(UTC)
    envelope = seal_envelope(closed, sender="coordinator", recipient=silo, sent_at=now, key=relay.key)
    with writing(relay.engine) as connection:
        mail.post(connection, envelope, now=now)


def test_a_hospital_enrols_over_its_invitation(relay: Any, make_csr: Callable[[str], str]) -> None:
    invitation = relay.authority.invite("ucl", relay.url, relay.key.public)
    with writing(relay.engine) as connection:
        digest = members.token_digest(invitation.token)
        members.invite(connection, "ucl", digest, expires_at=invitation.expires_at, now=datetime.now(UTC))
    key = SigningIdentity.generate()
    card = make_card("ucl", key, UnsealingKey.generate().public)

    def body(csr_pem: str) -> bytes:
        asked = EnrolmentRequest(silo="ucl", token=invitation.token, card=card, csr_pem=csr_pem)
        signature = key.sign(ENROLMENT_CONTEXT, canonical_bytes(asked.model_dump(mode="json")))
        return canonical_bytes(SignedEnrolment(request=asked, signature=signature).model_dump(mode="json"))

    context = relay.tls(invitation.certificate_pem, invitation.private_key_pem)
    with httpx.Client(base_url=relay.url, verify=context, trust_env=False) as client:
        answer = client.post("/v1/enrolment", content=body(make_csr("charite")))
        assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED")
        request = body(make_csr("ucl"))
        for _ in range(2):
            answer = client.post("/v1/enrolment", content=request)
            assert EnrolmentState.model_validate_json(answer.content) == EnrolmentState(state="waiting")
        target = "/v1/enrolment/state"
        headers = sign_request(key, "ucl", "POST", target, b"", datetime.now(UTC), os.urandom(16))
        assert client.post(target, headers=headers).json()["state"] == "waiting"
        forged = sign_request(relay.key, "ucl", "POST", target, b"", datetime.now(UTC), os.urandom(16))
        assert client.post(target, headers=forged).status_code == 401
        other = client.post("/v1/enrolment", content=request.replace(invitation.token.encode(), b"x" * 43))
        assert (other.status_code, other.json()["code"]) == (401, "BAD_SIGNATURE")


def test_the_roster_is_served_in_its_exact_bytes(relay: Any, olavs: Any) -> None:
    with reading(relay.engine) as connection:
        assert olavs.ask("GET", "/v1/roster").content == members.current_roster(connection)


def test_the_same_envelope_again_gets_the_same_receipt(olavs: Any) -> None:
    envelope = say(olavs, ready(1))
    first, second = (olavs.ask("POST", "/v1/envelopes", envelope) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.content == second.content


def test_another_envelope_for_the_slot_is_refused(relay: Any, olavs: Any) -> None:
    first = say(olavs, ready(2))
    assert olavs.ask("POST", "/v1/envelopes", first).status_code == 200
    answer = olavs.ask("POST", "/v1/envelopes", say(olavs, ready(2, "sha256:" + "00" * 32)))
    assert (answer.status_code, answer.json()["code"]) == (409, "SLOT_TAKEN")
    with reading(relay.engine) as connection:
        assert mail.said(connection, "coordinator", "survivors-seen", f"{STUDY}/2/train/1") == {"st-olavs": first}


def test_envelopes_that_are_not_the_senders_to_send_are_refused(olavs: Any, charite: Any) -> None:
    refused = {
        "in another's name": (say(charite, ready(3)), 401, "BAD_SIGNATURE"),
        "with another's key": (say(charite, ready(3), name="st-olavs"), 401, "BAD_SIGNATURE"),
        "to another hospital": (say(olavs, ready(3), to="charite"), 403, "WRONG_RECIPIENT"),
        "not an envelope": (b"{}", 400, "MALFORMED"),
        "not canonical": (say(olavs, ready(3)) + b"\n", 400, "MALFORMED"),
        "no bytes at all": (b"", 400, "MALFORMED"),
    }
    for name, (envelope, status, code) in refused.items():
        answer = olavs.ask("POST", "/v1/envelopes", envelope)
        assert (name, answer.status_code, answer.json()["code"]) == (name, status, code)


def test_a_poll_returns_what_is_behind_after_and_is_a_heartbeat(relay: Any, charite: Any) -> None:
    before = charite.poll().deliveries
    announce(relay, "charite", 1)
    announce(relay, "st-olavs", 2)
    found = charite.poll().deliveries
    assert len(found) == len(before) + 1
    assert charite.poll(after=found[-1].sequence).deliveries == ()
    with reading(relay.engine) as connection:
        (member,) = (known for known in members.members(connection) if known.silo == "charite")
    assert member.is_live(datetime.now(UTC))
    assert member.heartbeat is not None


def test_a_heartbeat_on_its_own(charite: Any) -> None:
    said = Heartbeat(agent_version="0.1.0", protocol=ProtocolRange(), roster_version=1)
    answer = charite.ask("POST", "/v1/heartbeat", canonical_bytes(said.model_dump(mode="json")))
    assert (answer.status_code, answer.content) == (204, b"")
    assert charite.ask("POST", "/v1/heartbeat", b'{"patients": 12}').json()["code"] == "MALFORMED"


def waits(hospital: Any, act: Callable[[], None]) -> tuple[Any, float]:
    """(answer, seconds between the end of `act` and the answer) of a poll that was waiting."""
    after = max((delivery.sequence for delivery in hospital.poll().deliveries), default=0)
    found: list[tuple[Any, float]] = []

    def poll() -> None:
        answer = hospital.poll(after=after, wait=10)
        found.append((answer, time.monotonic()))

    thread = threading.Thread(target=poll)
    thread.start()
    time.sleep(0.4)
    assert not found
    act()
    done = time.monotonic()
    thread.join()
    answer, at = found[0]
    return answer, at - done


def test_a_waiting_poll_wakes_with_the_mail(relay: Any, charite: Any) -> None:
    """How soon is a figure of `make bench ONLY=upload`; here it must only be before its time is over."""
    for number in range(100, 105):
        answer, _ = waits(charite, partial(announce, relay, "charite", number))
        assert len(answer.deliveries) == 1


def test_mail_for_others_does_not_end_a_poll(relay: Any, charite: Any) -> None:
    def act() -> None:
        announce(relay, "st-olavs", 200)
        time.sleep(0.3)
        announce(relay, "charite", 201)

    answer, _ = waits(charite, act)
    assert len(answer.deliveries) == 1


def test_a_poll_gives_up_when_its_time_is_over(charite: Any) -> None:
    after = max((delivery.sequence for delivery in charite.poll().deliveries), default=0)
    started = time.monotonic()
    assert charite.poll(after=after, wait=0.5).deliveries == ()
    assert time.monotonic() - started >= 0.5


def test_a_newer_roster_answers_a_poll_at_once(relay: Any, charite: Any) -> None:
    started = time.monotonic()
    answer = charite.poll(after=10**6, wait=10, roster_version=0)
    assert answer.roster_version >= 1
    assert time.monotonic() - started < 10  # it did not wait for its time to be over


def test_polls_of_one_hospital_beyond_four_send_the_first_home(relay: Any, charite: Any) -> None:
    after = max((delivery.sequence for delivery in charite.poll().deliveries), default=0)
    threads = [threading.Thread(target=charite.poll, args=(after, 10.0)) for _ in range(6)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    threads[0].join()
    assert time.monotonic() - started < 10  # it was sent home before its time was over
    announce(relay, "charite", 300)  # and so are all the others, without waiting for the end of theirs
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("theirs", "who"), [((1, 1), "none"), ((2, 4), "none"), ((4, 5), "relay"), ((0, 0), "agent")])
def test_who_must_upgrade(theirs: tuple[int, int], who: str) -> None:
    ours = ProtocolRange(oldest=1, newest=2)
    assert upgrade_for(ProtocolRange(oldest=theirs[0], newest=theirs[1]), ours) == who
