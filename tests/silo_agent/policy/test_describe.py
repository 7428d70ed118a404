"""The policy in words, and what init starts a hospital with."""

from datetime import date
from pathlib import Path

import pytest
from silo_agent_tests_policies import (
    DPIA,
    GONE,
    IT,
    NOW,
    PLAN,
    STEWARD,
    STRANGER,
    a_policy,
    a_request,
    signed,
    standing,
)

from silo_agent.errors import ConfigError
from silo_agent.policy.adoption import Pin, PolicyInForce, Standing
from silo_agent.policy.describe import difference, lines, standing_lines
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.gates import judge
from silo_agent.policy.model import digest_of, parse_policy
from silo_agent.policy.sections import Destination
from silo_agent.policy.starting import Start, starting_policy

POLICY = a_policy()


def test_everything_a_steward_asks_is_said() -> None:
    said = dict(lines(POLICY))
    whole = "\n".join(f"{heading}: {text}" for heading, text in said.items())
    for word in (
        "st-olavs", digest_of(POLICY), "2026-12-31", "data_steward (fingerprint ", STEWARD.public.fingerprint,
        IT.public.fingerprint, "relay.study.example:443", "200 MB", "at least 3 hospitals", "loss, auroc",
        "Mon-Fri 19:00-06:00", "Europe/Oslo", "/data/ct", "/data/ct/labels.csv", "withdrawn.hmac", "24 hours",
        "at least 50 patients", "8 images", "2000 patients", "delta 5e-05", "epsilon 6", "10, at a delta", "0.6 times",
        "turned down", PLAN, DPIA, "2025/118", "scientific research", "60 rounds", "1 GPU", "2 hours per round",
        "6 years", "by 2 others",
    ):  # fmt: skip
        assert word in whole, word


def test_a_policy_without_studies_or_hours_says_so() -> None:
    said = dict(lines(a_policy({"study.CT-CONTRAST-01": GONE, "hours.windows": [], "network.allow": []})))
    assert said["Studies"] == "none: no plan can run here"
    assert said["When"].startswith("never")
    assert said["Where the agent dials"] == "nowhere"


def test_a_delta_that_no_plan_can_meet_is_pointed_out() -> None:
    said = dict(lines(a_policy({"privacy.max_delta": 1e-5})))
    assert "every plan with a guarantee will be refused" in said["Note on chest-ct"]
    assert "Note on chest-ct" not in dict(lines(POLICY))


def test_a_relaxed_policy_is_not_dressed_up() -> None:
    assert (
        "WITHOUT a guarantee per patient are allowed" in dict(lines(a_policy({"privacy.required": False})))["Privacy"]
    )


def test_text_cannot_move_on_the_screen() -> None:
    said = dict(lines(a_policy({"study.CT-CONTRAST-01.purpose": "research\nStudies: none"})))
    assert "research\\nStudies: none" in said["Study CT-CONTRAST-01"]


def test_by_whom_it_is_in_force() -> None:
    force = PolicyInForce(POLICY, digest_of(POLICY), standing(POLICY))
    assert standing_lines(force) == [
        ("In force", "as number 1"),
        ("Signed", "by all that had to: data_steward, it_security"),
    ]
    tight = Standing(Pin(v=1, number=3, how="tightened", policy=POLICY), signed(POLICY, 3, by="i"))
    assert standing_lines(PolicyInForce(POLICY, digest_of(POLICY), tight))[1] == (
        "Signed",
        "as a tightening, for which one is enough: it_security",
    )


def test_each_change_is_marked() -> None:
    new = a_policy(
        {
            "resources.devices": 0,
            "privacy.max_epsilon_lifetime": 12.5,
            "privacy.required": False,
            "release.metrics": ["auroc", "loss"],
            "study.CT-CONTRAST-01": GONE,
            "valid.until": date(2027, 12, 31),
        }
    )
    marked = dict(difference(POLICY, new))
    assert marked.pop("study.CT-CONTRAST-01").startswith("removed, was {")
    assert marked == {
        "valid.until": "2026-12-31 -> 2027-12-31 (LOOSER: all signatures are needed)",
        "privacy.max_epsilon_lifetime": "10 -> 12.5 (LOOSER: all signatures are needed)",
        "privacy.required": "true -> false (LOOSER: all signatures are needed)",
        "release.metrics": "[loss, auroc] -> [auroc, loss] (the same in other words)",
        "resources.devices": "1 -> 0 (TIGHTER)",
    }
    assert dict(difference(new, POLICY))["study.CT-CONTRAST-01"].startswith("added: {")
    assert difference(POLICY, POLICY) == []


# --- what init writes --------------------------------------------------------------------------------
def start(**changes: object) -> Start:
    said = {
        "site": "st-olavs",
        "approvers": [("data_steward", STEWARD.public.text), ("it_security", IT.public.text)],
        "dataset": "chest-ct",
        "dicom": Path("/data/ct"),
        "labels": Path("/data/ct/labels.csv"),
        "exclusions": Path("/etc/silo-agent/withdrawn.hmac"),
        "first": date(2026, 11, 1),
        "last": date(2027, 10, 31),
    }
    return Start(**(said | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("patients", [7, 30, 2000, 123_457])
def test_what_init_writes_is_complete_and_allows_nothing(patients: int) -> None:
    text = starting_policy(start(n_max_patients=max(50, patients), timezone="Europe/Oslo"))
    policy = parse_policy(text.encode(), "policy.toml")
    assert (list(policy.dataset), policy.study, policy.network.allow) == (["chest-ct"], {}, ())
    assert policy.approvers.required == 2
    assert "Note on chest-ct" not in dict(lines(policy)), "its own delta fits"
    with pytest.raises(PolicyRefused) as refused:
        judge(a_request(policy), policy, NOW)
    assert refused.value.code == "STUDY_NOT_ALLOWED"


def test_the_commented_study_is_one_that_works() -> None:
    text = starting_policy(start())
    at = text.index("# [study.")
    block = text[at : text.index("\n\n", at)]
    uncommented = block.replace("# ", "", 1).replace("\n# ", "\n")
    text = text.replace(block, uncommented).replace('plan_digest = ["sha256:..."]', f'plan_digest = ["{PLAN}"]')
    policy = parse_policy(text.replace("sha256:...", DPIA).encode(), "policy.toml")
    assert policy.study["ct-contrast"].plan_digest == (PLAN,)


def test_the_relay_is_pinned_where_it_is_known() -> None:
    relay = Destination(host="relay.study.example", port=443, spki_sha256="ab" * 32)
    assert parse_policy(starting_policy(start(relay=relay)).encode(), "policy.toml").network.allow == (relay,)


def test_three_roles_all_sign() -> None:
    keys = (STEWARD, IT, STRANGER)
    three = [(role, key.public.text) for role, key in zip(("data_steward", "it_security", "dpo"), keys, strict=True)]
    policy = parse_policy(starting_policy(start(approvers=three)).encode(), "policy.toml")
    assert (policy.approvers.members, policy.approvers.required) == (set(three), 3)


@pytest.mark.parametrize("path", ['/data/"ct"', "/data\\ct", "/data\nsite = 'x'"])
def test_paths_that_would_need_escapes_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="choose another"):
        starting_policy(start(dicom=Path(path)))


@pytest.mark.parametrize("roles", [[], ["data_steward"], ["data_steward", "data_steward"]])
def test_one_role_alone_signs_nothing(roles: list[str]) -> None:
    keys = [STEWARD.public.text, IT.public.text]
    with pytest.raises(ConfigError, match="name the key of a second person"):
        starting_policy(start(approvers=list(zip(roles, keys, strict=False))))
