"""Checks of the policy: that one is in force, that it names the relay, and that the exclusion lists are young."""

from datetime import timedelta
from pathlib import Path

from silo_agent.destination import entry_of
from silo_agent.errors import AgentError
from silo_agent.exclusions import read_exclusions, written_at
from silo_agent.policy.adoption import check_valid
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.files import load_policy
from silo_agent.policy.gates import check_destination
from silo_agent.policy.model import Policy
from silo_agent.preflight.finding import Check, Finding, fail, ok, warn
from silo_agent.preflight.setting import Setting

_SIGN = "Look through policy.toml, have both people run `silo-agent policy sign`, then `silo-agent policy begin`"
_SOON = timedelta(days=30)


async def policy(setting: Setting) -> Finding:
    """A signed policy is in force, and today is one of its days."""
    try:
        force = load_policy(setting.folder.root)
        check_valid(force.policy.valid, setting.now())
    except PolicyRefused as why:
        return fail(Check.POLICY, str(why), "Have a policy signed for today: `silo-agent policy --help`")
    except AgentError as why:
        return fail(Check.POLICY, str(why), _SIGN)
    rules = force.policy
    said = (
        f"number {force.standing.pin.number}, until {rules.valid.last}: data sets {_named(rules.dataset)}; studies "
        f"{_named(rules.study)}"
    )
    if setting.now().date() > rules.valid.last - _SOON:
        return warn(Check.POLICY, said, "Propose one for the time after and have it signed: it takes two people")
    return ok(Check.POLICY, said)


def _named(names: object) -> str:
    return ", ".join(sorted(names)) or "none"  # type: ignore[call-overload]


async def exclusions(name: str, setting: Setting) -> Finding:
    """The list of those who opted out can be read and is young enough for a round to begin now."""
    allowed = load_policy(setting.folder.root).policy.dataset[name].exclusions
    path = Path(allowed.path)
    fix = "Bring the list with `silo-agent exclusions`, daily and by cron; an empty one if nobody opted out"
    try:
        listed = read_exclusions(path)
    except PolicyRefused as why:
        return fail(Check.EXCLUSIONS, f"{name}: {why}", fix)
    written = written_at(path)
    age = None if written is None else setting.now() - written
    if age is None or age > timedelta(hours=allowed.max_age_hours):
        return fail(Check.EXCLUSIONS, f"{name}: {path} is older than {allowed.max_age_hours:g} hours", fix)
    told = "nobody is on it" if not listed else "somebody is on it"
    return ok(Check.EXCLUSIONS, f"{name}: {path} was written {written:%Y-%m-%d %H:%M} UTC, {told}")


def judge_relay(said: str, host: str, port: int, spki: str, rules: Policy | None) -> Finding:
    """Pure: whether the policy lets the agent dial a relay that was seen with this key."""
    line = entry_of(host, port, spki)
    if rules is None:
        return ok(
            Check.TLS, f"{said}. Once IT has confirmed the key, it goes into [network] allow of policy.toml", line
        )
    try:
        check_destination(host, port, spki, rules)
    except PolicyRefused as why:
        return fail(Check.TLS, f"{said}; {why}", "Once IT has confirmed the key, add it to [network] allow", line)
    return ok(Check.TLS, f"{said}; named by the policy")
