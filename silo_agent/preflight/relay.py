"""Checks of what the relay answers: protocol version, and the clocks of the two ends."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from boundary.api import Heartbeat, PollAnswer, PollRequest
from boundary.roster import TrustedRoster
from silo_agent.daemon import ROSTER
from silo_agent.errors import AgentError, RelayRefused, RelayUnreachable, WrongCoordinator
from silo_agent.outbound import Outbound
from silo_agent.preflight.finding import Check, Finding, fail, ok, warn
from silo_agent.preflight.setting import Setting

WARN_SKEW, FAIL_SKEW = timedelta(seconds=30), timedelta(seconds=300)  # the relay refuses from 300 s: boundary.requests
_AFTER_ALL = 2**31 - 1  # behind the last of any inbox: nothing is delivered to a check
_NTP = "Set this machine's clock by NTP (timedatectl set-ntp true) and look at what chronyc tracking says"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One poll: the answer or why there is none, its Date header, and our clock before and after."""

    outcome: PollAnswer | AgentError
    dated: str | None
    before: datetime
    after: datetime


async def relay(setting: Setting) -> Finding:
    """One poll that waits for nothing. It counts as a sign of life: the agent was here."""
    match (await _exchange(setting)).outcome:
        case PollAnswer() as answer:
            return judge_version(answer)
        case RelayRefused() as why:
            return judge_refusal(why)
        case WrongCoordinator() as why:
            return fail(Check.RELAY, str(why), "Ask the network team to exempt the relay's host from TLS inspection")
        case why:
            return fail(Check.RELAY, str(why), "Ask the coordinator whether the relay runs; then check again")


def judge_version(answer: PollAnswer) -> Finding:
    """Pure: who has to upgrade before the two can talk."""
    match answer.upgrade:
        case "agent":
            return fail(Check.RELAY, "blocked: this agent is too old", "Upgrade the agent: state and identity stay")
        case "relay":
            return fail(Check.RELAY, "the relay is older than this agent", "Ask the coordinator to upgrade the relay")
        case "none":
            return ok(Check.RELAY, f"answers in our protocol version; roster version {answer.roster_version}")


def judge_refusal(why: RelayRefused) -> Finding:
    """Pure: its own code, and what it asks of us."""
    fix = {
        "STALE": _NTP,
        "UNKNOWN_MEMBER": "Ask the coordinator whether this hospital is still a member, or enrol with a new invitation",
        "BAD_SIGNATURE": "Ask the coordinator which key they have for us: `silo-agent keys` prints ours",
    }.get(why.relay_code, "Show this code to the coordinator")
    return fail(Check.RELAY, str(why), fix)


async def clock(setting: Setting) -> Finding:
    """Our clock against the relay's Date header (RFC 9110, 6.6.1), which a refusal over our clock carries, too."""
    found = await _exchange(setting)
    return judge_clock(found.dated, found.before, found.after)


def judge_clock(dated: str | None, before: datetime, after: datetime) -> Finding:
    """Pure: a header of whole seconds names the beginning of its second, so half a second is added."""
    try:
        theirs = None if dated is None else parsedate_to_datetime(dated)
    except ValueError:
        theirs = None
    if theirs is None or theirs.utcoffset() is None:
        return warn(Check.CLOCK, "not compared: no dated answer of the relay", "Compare this machine's clock by hand")
    middle = before + (after - before) / 2
    off = middle.astimezone(UTC) - theirs.astimezone(UTC) - timedelta(seconds=0.5)
    seconds = round(off.total_seconds())
    said = "as the relay's" if seconds == 0 else f"{abs(seconds)} s {'fast' if seconds > 0 else 'slow'} by the relay's"
    if abs(off) >= FAIL_SKEW:
        return fail(Check.CLOCK, said, _NTP)
    return warn(Check.CLOCK, said, _NTP) if abs(off) >= WARN_SKEW else ok(Check.CLOCK, said)


async def _exchange(setting: Setting) -> Exchange:
    asked, before = PollRequest(after=_AFTER_ALL, wait_seconds=0.0, heartbeat=_heartbeat(setting)), setting.now()
    async with setting.client() as client:
        try:
            async with asyncio.timeout(2 * setting.network_seconds):
                outcome: PollAnswer | AgentError = await client.poll(asked)
        except TimeoutError:
            outcome = RelayUnreachable("no answer in time")
        except AgentError as why:
            outcome = why
        return Exchange(outcome, client.dated, before, setting.now())


def _heartbeat(setting: Setting) -> Heartbeat:
    """Made by the gate through which everything leaves."""
    config, folder = setting.config, setting.folder
    roster = TrustedRoster.kept(setting.fact(ROSTER)).roster
    low = setting.machine.usage(folder.root)[2] // 2**20 < config.resources.min_free_disk_mb
    with setting.journal() as journal:
        gate = Outbound(config.site, folder.identity, journal, setting.now, setting.entropy, setting.version)
        return gate.heartbeat(None, disk_low=low, roster_version=roster.version)
