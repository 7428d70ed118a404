"""A proposal that adds one plan to the policy in force: its text, with nothing else of it changed."""

from datetime import date
from pathlib import Path

from pydantic import ValidationError

from boundary.parties import last_round
from boundary.plan import StudyPlan, digest_of
from silo_agent.config import quoted
from silo_agent.errors import ConfigError
from silo_agent.forms import reason_of
from silo_agent.policy.files import PolicyFiles, load_policy
from silo_agent.policy.model import Policy, parse_policy
from silo_agent.policy.sections import Legal
from silo_agent.state import write_private


def papers_of(irb: str, dpia: str, expires: date) -> Legal:
    """The papers as a person gave them. Raises `ConfigError` with the option that is wrong."""
    try:
        return Legal(irb=irb, dpia=dpia, expires=expires)
    except ValidationError as why:
        wrong = [f"--{error['loc'][0]}: {reason_of(error)}" for error in why.errors(include_url=False)]
        raise ConfigError("; ".join(wrong)) from why


def propose_plan(root: Path, plan: StudyPlan, legal: Legal, max_rounds: int) -> Path:
    """Write policy.proposed.toml with a table for the plan's study. Raises `ConfigError`, or `PolicyRefused`.

    A study that the policy names already is changed by its people in the file itself: nobody can tell which of its
    papers are to be replaced.
    """
    files, policy = PolicyFiles(root), load_policy(root).policy
    _check_is_new(files, policy, plan)
    text = files.policy.read_text("utf-8").rstrip() + "\n\n" + _table(plan, legal, max_rounds)
    parse_policy(text.encode(), f"{files.proposed}, as it would be")
    write_private(files.proposed, text.encode())
    return files.proposed


def _check_is_new(files: PolicyFiles, policy: Policy, plan: StudyPlan) -> None:
    rules = policy.study_of(plan.name)
    if rules is not None and digest_of(plan) in rules.plan_digest:
        raise ConfigError(f"the policy names exactly this plan already: `silo-agent plan approve {plan.label}`")
    if rules is not None:
        raise ConfigError(
            f"the policy names the study {plan.name}: copy policy.toml to {files.proposed.name} and add "
            f'"{digest_of(plan)}" to its plan_digest, with the papers that belong to it'
            + _raised(rules.max_rounds, plan)
        )
    if files.proposed.exists():
        raise ConfigError(f"{files.proposed} waits for signatures: `policy adopt` it, or remove it, first")


def _raised(most: int, plan: StudyPlan) -> str:
    return f"; its max_rounds is {most}, the plan has {last_round(plan)}" if last_round(plan) > most else ""


def _table(plan: StudyPlan, legal: Legal, max_rounds: int) -> str:
    papers = f"irb = {quoted(legal.irb)}, dpia = {quoted(legal.dpia)}, expires = {legal.expires.isoformat()}"
    return f"""\
[study.{plan.name}]   # {plan.label}
plan_digest = [{quoted(digest_of(plan))}]
purpose = {quoted(plan.purpose.title)}
legal = {{ {papers} }}
max_rounds = {max_rounds}
"""
