"""The list of checks, from the ground up, and what must have been well before each."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from silo_agent.errors import AgentError
from silo_agent.policy.files import load_policy
from silo_agent.preflight import child, machine, network, own, relay, rules, tls
from silo_agent.preflight.finding import Check, Finding, fail, warn
from silo_agent.preflight.setting import Setting

Look = Callable[[Setting], Awaitable[Finding]]
_OWN = frozenset({Check.CONFIG, Check.STATE})  # and then the agent may touch its folder
_ENROLLED = _OWN | {Check.KEYS, Check.ENROLMENT, Check.CERTIFICATE}
_MEMBERS = frozenset({Check.CERTIFICATE, Check.CLOCK, Check.RELAY})
_REACHED = _ENROLLED | {Check.PROXY, Check.CONNECTION}


@dataclass(frozen=True, slots=True)
class Step:
    """One check. It is not tried, and this is said, when one of `needs` failed or was not tried."""

    check: Check
    look: Look
    needs: frozenset[Check] = frozenset()


def ladder(datasets: Iterable[str], *, enrolled: bool = True) -> list[Step]:
    """All checks in the order of `Check`; exclusions, archive and labels once for each data set of the policy.

    Before enrolment the relay would not answer us, and there is no certificate of ours.
    """
    datasets = tuple(datasets)
    steps = [
        Step(Check.CONFIG, own.config),
        Step(Check.STATE, own.state),
        Step(Check.KEYS, own.keys, _OWN),
        Step(Check.ENROLMENT, own.enrolment, _OWN),
        Step(Check.CERTIFICATE, own.certificate, _OWN | {Check.ENROLMENT}),
        Step(Check.POLICY, rules.policy, _OWN),
        *(Step(Check.EXCLUSIONS, partial(rules.exclusions, name), _OWN | {Check.POLICY}) for name in datasets),
        Step(Check.NAMES, network.names, _OWN | {Check.ENROLMENT}),
        Step(Check.PROXY, network.proxy, _OWN | {Check.ENROLMENT}),
        Step(Check.CONNECTION, network.connection, _OWN | {Check.ENROLMENT, Check.NAMES}),
        Step(Check.TLS, tls.tls, _REACHED),
        Step(Check.CLOCK, relay.clock, _REACHED | {Check.TLS}),
        Step(Check.RELAY, relay.relay, _REACHED | {Check.TLS}),
        Step(Check.DISK, machine.disk, _OWN),
        Step(Check.CACHE, machine.cache, _OWN),
        Step(Check.MEMORY, machine.memory),
        Step(Check.SHM, machine.shm),
        Step(Check.CHILD, child.child, _OWN),
        *(Step(Check.ARCHIVE, partial(child.archive, name), _OWN) for name in datasets),
        *(Step(Check.LABELS, partial(child.labels, name), _OWN) for name in datasets),
    ]
    if enrolled:
        return steps
    return [replace(step, look=partial(_later, step.check)) if step.check in _MEMBERS else step for step in steps]


async def _later(check: Check, _setting: Setting) -> Finding:
    return warn(check, "not tried: only a member can", "Run `silo-agent enrol INVITATION`, then check again")


async def run_checks(setting: Setting, on_finding: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Try them one after the other and tell each as it ends. Raises nothing that the hospital's machine can cause."""
    found: list[Finding] = []
    missing: set[Check] = set()
    for step in ladder(_datasets(setting), enrolled=setting.invitation is None):
        first = next((check for check in Check if check in step.needs & missing), None)
        finding = await _timed(step, setting) if first is None else _not_tried(step.check, first)
        if first is not None or finding.verdict == "fail":
            missing.add(step.check)
        found.append(finding)
        on_finding(finding)
    return found


def _datasets(setting: Setting) -> tuple[str, ...]:
    try:
        return tuple(load_policy(setting.folder.root).policy.dataset)
    except AgentError:
        return ()  # the step that looks at the policy says why


def _not_tried(check: Check, first: Check) -> Finding:
    return warn(check, f"not tried: it needs `{first}`", f"Put `{first}` right first, then check again")


async def _timed(step: Step, setting: Setting) -> Finding:
    loop = asyncio.get_running_loop()
    began = loop.time()
    finding = await _looked(step, setting)
    return finding.model_copy(update={"seconds": round(loop.time() - began, 3)})


async def _looked(step: Step, setting: Setting) -> Finding:
    """A check that breaks is a failed check, and those after it go on: the report is what people are waiting for."""
    try:
        return await step.look(setting)
    except AgentError as why:
        return fail(step.check, str(why), "Put right what it names, then check again")
    except Exception as why:  # noqa: BLE001 - a defect or a machine nobody foresaw must not hide the other findings
        said = f"the check itself broke ({type(why).__name__})"
        return fail(step.check, said, "Tell who installed the agent which check broke and by what")
