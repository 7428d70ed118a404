"""Whose fault, and a stable code. Every class is provoked; the two roots only sort them."""

import ast
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest

import boundary.errors
from boundary.approval import check_approval
from boundary.canonical import parse_json
from boundary.envelope import open_envelope
from boundary.errors import (
    BadSignature,
    BadTensors,
    BoundaryError,
    CallerFault,
    CohortTooSmall,
    Expired,
    InvalidPlan,
    MalformedMessage,
    NotApproved,
    OutOfTurn,
    PeerFault,
    Replayed,
    RolledBack,
    Stale,
    TooLarge,
    UnknownMember,
    UnsealFailed,
    WrongRecipient,
)
from boundary.names import COORDINATOR, timestamp
from boundary.plan import plan_from_toml
from boundary.protocol import Heard, Step, next_step
from boundary.requests import read_claim, sign_request
from boundary.roster import TrustedRoster
from boundary.tensors import unpack
from compliance.errors import ComplianceError
from compliance.keys_file import InvalidKeys
from compliance.merkle import BrokenProof
from compliance.witnessing import LogForked, LogInDoubt, LogShrunk
from infra.cohort import Cohort

REPOSITORY = Path(__file__).parents[2]
CLASSES: list[type[BoundaryError]] = [kind for kind in vars(boundary.errors).values() if isinstance(kind, type)]
ROOTS = {BoundaryError, PeerFault}
ELSEWHERE = {Replayed}  # the memory of what was acted on is the relay's and the journal's


def _open(fed: ModuleType, recipient: str) -> None:
    envelope = fed.envelope(fed.messages()["ready"])
    open_envelope(envelope.data, recipient=recipient, sender="st-olavs", signer=fed.key("ucl").public)


def _open_elsewhere(fed: ModuleType) -> None:
    envelope = fed.envelope(fed.messages()["ready"])
    open_envelope(envelope.data, recipient="ucl", sender="st-olavs", signer=fed.key("st-olavs").public)


def _trusted(fed: ModuleType) -> TrustedRoster:
    return TrustedRoster.first(fed.roster(version=5).data, fed.key(COORDINATOR).public, fed.NOW)


def _late_request(fed: ModuleType) -> None:
    headers = sign_request(fed.key("ucl"), "ucl", "GET", "/", b"", fed.NOW, fed.NONCE)
    read_claim(headers).check_fresh(fed.NOW + timedelta(hours=1))


def _not_approved(fed: ModuleType) -> None:
    check_approval(fed.approval(), plan=fed.plan(), silo="ucl", steward=None, dataset_digest=None, now=fed.NOW)


PROVOKED: dict[type[BoundaryError], Callable[[ModuleType], object]] = {
    CallerFault: lambda fed: timestamp(fed.NOW.replace(tzinfo=None)),
    MalformedMessage: lambda _: parse_json(b"{"),
    TooLarge: lambda _: parse_json(b"{}", limit=1),
    BadSignature: lambda fed: _open(fed, COORDINATOR),
    WrongRecipient: _open_elsewhere,
    Stale: _late_request,
    RolledBack: lambda fed: _trusted(fed).update(fed.roster(version=4).data, fed.NOW),
    Expired: lambda fed: _trusted(fed).alive(fed.NOW + timedelta(days=90)),
    UnknownMember: lambda fed: _trusted(fed).roster.member("nobody"),
    UnsealFailed: lambda fed: fed.unsealing("ucl").unseal(b"", b""),
    BadTensors: lambda fed: unpack(b"", fed.weights()[1]),
    OutOfTurn: lambda _: next_step(Step.OVER, Heard.DONE),
    CohortTooSmall: lambda _: Cohort.of(3, least=4).until_shared(),
    NotApproved: _not_approved,
    InvalidPlan: lambda _: plan_from_toml("version = 1"),
}


def test_every_class_is_provoked_somewhere() -> None:
    assert set(PROVOKED) | ROOTS | ELSEWHERE == set(CLASSES)


@pytest.mark.parametrize("error", PROVOKED, ids=lambda error: error.__name__)
def test_each_error_is_of_its_own_class_and_says_something(error: type[BoundaryError], fed: ModuleType) -> None:
    with pytest.raises(error) as refusal:
        PROVOKED[error](fed)
    assert type(refusal.value) is error
    assert str(refusal.value)


def raised_in(folder: str) -> set[str]:
    return {
        node.exc.func.id
        for path in (REPOSITORY / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }


def test_only_the_leaves_are_raised() -> None:
    of_sums = {kind.__name__ for kind in PeerFault.__subclasses__() if kind.__module__ == "boundary.secagg.errors"}
    assert raised_in("boundary") - {"ValueError"} - of_sums == {kind.__name__ for kind in PROVOKED}


def test_the_accounting_raises_all_of_its_own_leaves_and_else_what_is_somebodys_mistake() -> None:
    mistakes = {"ValueError", "KeyError", "RuntimeError", "FileExistsError"}  # of the calling code
    leaves = {kind.__name__ for kind in (InvalidKeys, *ComplianceError.__subclasses__())}
    of_what_came = {kind.__name__ for kind in (MalformedMessage, TooLarge, BadSignature)}
    raised = raised_in("compliance") - mistakes
    assert raised == leaves | of_what_came | {kind.__name__ for kind in OF_LOGS}
    codes = [kind.code for kind in (ComplianceError, *ComplianceError.__subclasses__())]
    assert len(set(codes)) == len(codes)
    assert set(codes).isdisjoint(kind.code for kind in CLASSES)


OF_LOGS = {BrokenProof: "LOG_INCONSISTENT", LogForked: "LOG_FORKED", LogShrunk: "LOG_SHRUNK"}


def test_what_is_said_of_logs_is_the_fault_of_whose_log_it_is_and_has_codes_of_its_own() -> None:
    codes = {kind: kind.code for kind in (*OF_LOGS, LogInDoubt)}
    assert codes == OF_LOGS | {LogInDoubt: "LOG_IN_DOUBT"}
    assert all(issubclass(kind, PeerFault) for kind in codes)
    assert set(codes.values()).isdisjoint(kind.code for kind in (*CLASSES, *ComplianceError.__subclasses__()))


def test_codes_are_stable_words_and_no_two_are_alike() -> None:
    codes = {kind.__name__: kind.code for kind in CLASSES}
    assert len(set(codes.values())) == len(codes)
    assert codes == {
        "BoundaryError": "BOUNDARY",
        "PeerFault": "PEER_FAULT",
        "CallerFault": "CALLER_FAULT",
        "MalformedMessage": "MALFORMED",
        "TooLarge": "TOO_LARGE",
        "BadSignature": "BAD_SIGNATURE",
        "WrongRecipient": "WRONG_RECIPIENT",
        "Stale": "STALE",
        "Replayed": "REPLAYED",
        "RolledBack": "ROLLED_BACK",
        "Expired": "EXPIRED",
        "UnknownMember": "UNKNOWN_MEMBER",
        "UnsealFailed": "UNSEAL_FAILED",
        "BadTensors": "BAD_TENSORS",
        "OutOfTurn": "OUT_OF_TURN",
        "CohortTooSmall": "COHORT_TOO_SMALL",
        "NotApproved": "NOT_APPROVED",
        "InvalidPlan": "INVALID_PLAN",
    }


def test_every_error_is_somebodys_fault() -> None:
    for kind in set(CLASSES) - {BoundaryError}:
        assert issubclass(kind, PeerFault) != issubclass(kind, CallerFault)


def test_too_large_carries_its_numbers() -> None:
    error = TooLarge("blob", 12, 10)
    assert (error.size, error.limit, str(error)) == (12, 10, "blob has 12 bytes, the limit is 10")
