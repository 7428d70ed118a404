"""policy.toml: the page's own file is read, everything else is refused with its place and the fix."""

from typing import Any

import pytest
from silo_agent_tests_policies import DPIA, GONE, PAGE, PLAN, STEWARD, Changes, a_policy, changed

from boundary.canonical import parse_canonical
from compliance.terms import delta_of as delta_of_terms
from silo_agent.errors import ConfigError
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.model import (
    MAX_POLICY_BYTES,
    PatientCaps,
    dataset_of,
    delta_of,
    digest_of,
    parse_policy,
    policy_from,
    to_json,
)


def test_the_design_pages_policy_is_read() -> None:
    policy = parse_policy(PAGE.encode(), "policy.toml")
    assert policy == a_policy()
    assert policy.dataset["chest-ct"].modalities == ("CT",)
    assert policy.study["CT-CONTRAST-01"].plan_digest == (PLAN,)
    assert policy.network.max_model_mb == 200, "where nothing is said, as much as may leave"


def test_its_digest_is_of_its_meaning() -> None:
    respaced = PAGE.replace(" = ", "=").replace("[hours]", "# nights\n[hours]").replace("6.0", "6")
    assert digest_of(parse_policy(respaced.encode(), "policy.toml")) == digest_of(a_policy())
    assert digest_of(a_policy({"audit.cosigners": 3})) != digest_of(a_policy())


def test_its_canonical_form_is_read_back() -> None:
    policy = a_policy()
    assert policy_from(parse_canonical(to_json(policy)), "pin") == policy


def test_a_data_set_has_the_caps_of_its_own_table_and_of_privacy() -> None:
    assert dataset_of(a_policy(), "chest-ct").caps == PatientCaps(
        most_patients=2000, study_epsilon=6.0, lifetime_epsilon=10.0, population="everybody", required=True
    )
    with pytest.raises(PolicyRefused, match="names no data set head-mr"):
        dataset_of(a_policy(), "head-mr")


def test_delta_is_the_ledgers() -> None:
    rules = a_policy().dataset["chest-ct"]
    assert delta_of(rules) == delta_of_terms(rules.n_max_patients) == 5e-5


CT = "dataset.chest-ct"
STUDY = "study.CT-CONTRAST-01"
WRONG: dict[str, tuple[Changes, str]] = {
    "another format": ({"version": 2}, "version"),
    "a version that is true": ({"version": True}, "version"),
    "the coordinator as a site": ({"site": "coordinator"}, "site"),
    "no approvers": ({"approvers": GONE}, "approvers: is missing, and what is not said is not allowed"),
    "one signature is enough": ({"approvers.required": 1}, "approvers.required"),
    "more signatures than roles": ({"approvers.required": 3}, "required: more than there are different roles"),
    "one person in both roles": ({"approvers.keys": [STEWARD.public.text] * 2}, "names a key twice"),
    "two people in one role": ({"approvers.roles": ["it_security"] * 2}, "more than there are different roles"),
    "a role without a key": ({"approvers.roles": ["a_role", "b_role", "c_role"]}, "roles and keys go in pairs"),
    "a key that binds nobody": ({"approvers.keys": ["ed25519:" + "A" * 43 + "=", STEWARD.public.text]}, "keys"),
    "an end before the beginning": ({"valid.from": "2027-01-01"}, "until lies before from"),
    "a moment instead of a day": ({"valid.until": "2026-12-31T10:00:00"}, "valid.until"),
    "an end without a name": ({"valid.to": "2026-12-31"}, "valid.to: unknown key"),
    "a port of nothing": ({"network.allow": [{"host": "a", "port": 0, "spki_sha256": "ab" * 32}]}, "allow.0.port"),
    "a host with a path": ({"network.allow": [{"host": "a/b", "port": 1, "spki_sha256": "ab" * 32}]}, "allow.0.host"),
    "a host of any name": ({"network.allow": [{"host": "*", "port": 1, "spki_sha256": "ab" * 32}]}, "allow.0.host"),
    "a host of any key": ({"network.allow": [{"host": "a", "port": 1}]}, "allow.0.spki_sha256: is missing"),
    "a network that listens": ({"network.listen": 80}, "network.listen: unknown key"),
    "egress without end": ({"network.max_egress_mb_per_round": float("inf")}, "max_egress_mb_per_round"),
    "hours without a zone": ({"hours.timezone": GONE}, "hours.timezone: is missing"),
    "hours in a place that is none": ({"hours.timezone": "Europe/Atlantis"}, "write one like Europe/Oslo"),
    "going on after hours": ({"hours.on_close": "go-on"}, "hours.on_close"),
    "a data set with a dot": ({"dataset": {"chest.ct": {}}}, "dataset.chest"),
    "a source of no kind": ({f"{CT}.source": {"path": "/x"}}, "source: say kind"),
    "a source of an unknown kind": ({f"{CT}.source": {"kind": "ftp", "path": "/x"}}, "an unknown kind, one of"),
    "an address with a port too many": (
        {f"{CT}.source": {"kind": "dicomweb", "url": "http://pacs:99999/dicom-web"}},
        "source.dicomweb.url",
    ),
    "a folder at an address": ({f"{CT}.source": {"kind": "folder", "url": "http://a"}}, "unknown key"),
    "an address with a password": (
        {f"{CT}.source": {"kind": "dicomweb", "url": "http://me:secret@pacs/dicom-web"}},
        "source.dicomweb.url",
    ),
    "a relative path": ({f"{CT}.labels": {"kind": "csv", "path": "labels.csv"}}, "an absolute path"),
    "a path that climbs": ({f"{CT}.labels": {"kind": "csv", "path": "/data/../etc"}}, "an absolute path"),
    "a path that hides": ({f"{CT}.exclusions.path": "/data/\u202etxt.exe"}, "without invisible characters"),
    "no modality": ({f"{CT}.modalities": []}, "some of CR, CT, DX, MR, US"),
    "any modality": ({f"{CT}.modalities": ["CT", "*"]}, "some of CR, CT"),
    "nobody is excluded": ({f"{CT}.exclusions": GONE}, "exclusions: is missing"),
    "a list of any age": ({f"{CT}.exclusions.max_age_hours": 0}, "max_age_hours"),
    "nobody needed": ({f"{CT}.min_patients": 0}, "min_patients"),
    "more needed than there can be": ({f"{CT}.min_patients": 2001}, "so no number of patients would do"),
    "half a patient": ({f"{CT}.n_max_patients": 2000.5}, "n_max_patients"),
    "loss, perhaps": ({f"{CT}.lossy": "warn"}, "lossy"),
    "no epsilon": ({"privacy.max_epsilon_per_study": 0}, "max_epsilon_per_study"),
    "an epsilon that is none": ({"privacy.max_epsilon_lifetime": float("nan")}, "max_epsilon_lifetime"),
    "a study over the lifetime": ({"privacy.max_epsilon_per_study": 11.0}, "more than max_epsilon_lifetime"),
    "a delta of one": ({"privacy.max_delta": 1.0}, "max_delta"),
    "no noise": ({"privacy.min_noise_multiplier": 0.0}, "min_noise_multiplier"),
    "a sum over two": ({"release.min_parties_in_sum": 2}, "min_parties_in_sum"),
    "a cell below the floor": ({"release.smallest_cell": 9}, "smallest_cell"),
    "any plan": ({f"{STUDY}.plan_digest": ["*"]}, "plan_digest.0"),
    "a plan twice": ({f"{STUDY}.plan_digest": [PLAN, PLAN]}, "plan_digest stands twice"),
    "a study under two names": (
        {"study.ct-contrast-01": {**changed({})["study"]["CT-CONTRAST-01"], "plan_digest": []}},
        "one name but for capitals",
    ),
    "a study for all plans": ({"study.*": {"plan_digest": []}}, "study.*"),
    "papers without end": ({f"{STUDY}.legal": {"irb": "1", "dpia": DPIA}}, "legal.expires: is missing"),
    "a purpose that hides": ({f"{STUDY}.purpose": "research\u202e"}, "invisible character"),
    "no hours for a round": ({"resources.max_hours_per_round": 0}, "max_hours_per_round"),
    "a fork that is ignored": ({"audit.on_fork": "warn"}, "audit.on_fork"),
    "a table that is not known": ({"exceptions": {}}, "exceptions: unknown key"),
}


@pytest.mark.parametrize(("changes", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_policy_is_said_with_its_place(changes: Changes, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        policy_from(changed(changes), "policy.toml")
    assert says in str(refused.value)
    assert str(refused.value).startswith("policy.toml: ")


def places(value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every table of the page's policy, also those in lists."""
    found = [at]
    for key, inner in value.items():
        if isinstance(inner, dict):
            found += places(inner, (*at, key))
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            found.append((*at, key, "0"))
    return found


@pytest.mark.parametrize("place", places(changed({})), ids=".".join)
def test_an_unknown_key_is_refused_at_every_level(place: tuple[str, ...]) -> None:
    value = table = changed({})
    for key in place:
        table = table[int(key)] if isinstance(table, list) else table[key]
    if place in {("dataset",), ("study",)}:
        table["un known"] = {}
    else:
        table["sneaked_in"] = 1
    with pytest.raises(ConfigError):
        policy_from(value, "policy.toml")


UNREADABLE = {
    "not UTF-8": b"\xff\xfe",
    "not TOML": b"version = ",
    "a key twice": b"a = 1\na = 2",
    "too large": b"x" * (MAX_POLICY_BYTES + 1),
    "nested deeply": b"a = " + b"[" * 5000,
    "a number of 5000 digits": b"a = " + b"9" * 5000,
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        parse_policy(data, "policy.toml")
