"""What a check found, in one form for people, programs and the exit code.

The ladder is the order of `Check`: what stands first must be put right first.

| exit code | class of failure | checks |
|---|---|---|
| 0 | none; there may be warnings | |
| 2 | agent.toml | `config` |
| 19 | state folder, keys, enrolment, certificate | `state`, `keys`, `enrolment`, `certificate` |
| 21 | the hospital's policy, the age of its exclusion lists | `policy`, `exclusions` |
| 10 | network: the relay's name, its port | `names`, `connection` |
| 11 | proxy: reaching it, TLS to it, login, leave to go on | `proxy` |
| 12 | TLS to the relay, mostly something that opens it | `tls` |
| 13 | this machine's clock | `clock` |
| 20 | the relay's answer, protocol version | `relay` |
| 14 | disk: space, writing | `disk`, `cache` |
| 15 | memory, shared memory | `memory`, `shm` |
| 16 | the training child, its device | `child` |
| 17 | archive | `archive` |
| 18 | label table | `labels` |

The code is that of the first failed check in this order, however many failed.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from boundary.names import Frozen


class Verdict(StrEnum):
    """`warn` does not stop the agent: it will, or nobody could look."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(StrEnum):
    """What is looked at, in the order of the ladder."""

    CONFIG = "config"
    STATE = "state"
    KEYS = "keys"
    ENROLMENT = "enrolment"
    CERTIFICATE = "certificate"
    POLICY = "policy"
    EXCLUSIONS = "exclusions"
    NAMES = "names"
    PROXY = "proxy"
    CONNECTION = "connection"
    TLS = "tls"
    CLOCK = "clock"
    RELAY = "relay"
    DISK = "disk"
    CACHE = "cache"
    MEMORY = "memory"
    SHM = "shm"
    CHILD = "child"
    ARCHIVE = "archive"
    LABELS = "labels"


EXIT_CODES = {
    Check.CONFIG: 2,
    Check.STATE: 19,
    Check.KEYS: 19,
    Check.ENROLMENT: 19,
    Check.CERTIFICATE: 19,
    Check.POLICY: 21,
    Check.EXCLUSIONS: 21,
    Check.NAMES: 10,
    Check.PROXY: 11,
    Check.CONNECTION: 10,
    Check.TLS: 12,
    Check.CLOCK: 13,
    Check.RELAY: 20,
    Check.DISK: 14,
    Check.CACHE: 14,
    Check.MEMORY: 15,
    Check.SHM: 15,
    Check.CHILD: 16,
    Check.ARCHIVE: 17,
    Check.LABELS: 18,
}


class Finding(Frozen):
    """One check's outcome. `said` and `fix` are for the hospital's own people; `fix` is empty when all is well.

    `paste` is a line to copy into a file, which a table would break.
    """

    check: Check
    verdict: Verdict
    said: str
    fix: str = ""
    paste: str = ""
    seconds: Annotated[float, Field(ge=0)] = 0.0


def ok(check: Check, said: str, paste: str = "") -> Finding:
    return Finding(check=check, verdict=Verdict.OK, said=said, paste=paste)


def warn(check: Check, said: str, fix: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, said=said, fix=fix)


def fail(check: Check, said: str, fix: str, paste: str = "") -> Finding:
    return Finding(check=check, verdict=Verdict.FAIL, said=said, fix=fix, paste=paste)


def exit_code(findings: Iterable[Finding]) -> int:
    """0, or the code of the first failure in the ladder's order."""
    failed = {finding.check for finding in findings if finding.verdict is Verdict.FAIL}
    return next((EXIT_CODES[check] for check in Check if check in failed), 0)
