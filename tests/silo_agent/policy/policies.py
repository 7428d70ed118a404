"""The policy of the design page, ways to change it, and requests that it allows."""

import copy
import tomllib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from boundary.canonical import digest
from boundary.identity import SigningIdentity
from silo_agent.policy.adoption import Pin, Standing
from silo_agent.policy.facts import DataFacts, Leaving, NothingSpent, Request, Spending, Unguarded, Using
from silo_agent.policy.model import Policy, policy_from
from silo_agent.policy.signing import PolicySignatures, add_signature, unsigned
from silo_agent.policy.tightening import is_tightening

STEWARD, IT, STRANGER = (SigningIdentity.generate() for _ in range(3))
PLAN, OTHER_PLAN, DPIA = (str(digest(text)) for text in (b"plan", b"another plan", b"dpia"))
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)  # a Saturday: open all day
KEYS = f'["{STEWARD.public.text}", "{IT.public.text}"]'
PATIENTS = 1731  # a number that must not turn up anywhere

PAGE = f"""
version = 1
site = "st-olavs"
valid = {{ from = 2026-01-01, until = 2026-12-31 }}
approvers = {{ required = 2, roles = ["data_steward", "it_security"], keys = {KEYS} }}

[network]
allow = [{{ host = "relay.study.example", port = 443, spki_sha256 = "{"ab" * 32}" }}]
max_egress_mb_per_round = 200

[hours]
timezone = "Europe/Oslo"
windows = ["Mon-Fri 19:00-06:00", "Sat-Sun 00:00-24:00"]
on_close = "finish-step-then-pause"

[dataset.chest-ct]
source = {{ kind = "folder", path = "/data/ct" }}
labels = {{ kind = "csv", path = "/data/ct/labels.csv" }}
modalities = ["CT"]
exclusions = {{ path = "/etc/silo-agent/withdrawn.hmac", max_age_hours = 24 }}
min_patients = 50
max_images_per_patient = 8
n_max_patients = 2000
lossy = "refuse"
burned_in = "refuse"

[privacy]
max_epsilon_per_study = 6.0
max_epsilon_lifetime = 10.0
max_delta = 1e-4
min_noise_multiplier = 0.6

[release]
min_parties_in_sum = 3
metrics = ["loss", "auroc"]
smallest_cell = 10

[study."CT-CONTRAST-01"]
plan_digest = ["{PLAN}"]
purpose = "scientific research"
legal = {{ irb = "2025/118", dpia = "{DPIA}", expires = 2026-12-31 }}
max_rounds = 60

[resources]
devices = 1
max_hours_per_round = 2

[audit]
retain_years = 6
cosigners = 2
on_fork = "halt"
"""

PARSED = tomllib.loads(PAGE)
Changes = dict[str, Any]
GONE = object()


def changed(changes: Changes) -> dict[str, Any]:
    """The page's policy as parsed TOML, with values at dotted places set, or `GONE`."""
    value = copy.deepcopy(PARSED)
    for place, new in changes.items():
        *tables, last = place.split(".")
        at = value
        for table in tables:
            at = at[table]
        if new is GONE:
            at.pop(last, None)
        else:
            at[last] = new
    return value


def a_policy(changes: Changes | None = None) -> Policy:
    return policy_from(changed(changes or {}), "policy.toml")


def signed(policy: Policy, number: int = 1, *, by: str = "si") -> PolicySignatures:
    file = unsigned(policy, number)
    who = {"s": (STEWARD, "data_steward"), "i": (IT, "it_security"), "x": (STRANGER, "data_steward")}
    for letter in by:
        file = add_signature(file, policy, *who[letter])
    return file


def standing(policy: Policy) -> Standing:
    return Standing(Pin(v=1, number=1, how="signed", policy=policy), signed(policy))


def a_request(policy: Policy, **changes: Any) -> Request:
    """One that the page's policy allows; fields of its parts are set by their names."""
    spending = Spending(epsilon_study=5.0, epsilon_lifetime=9.0, delta=5e-5, noise_multiplier=0.8)
    request = Request(
        standing=standing(policy),
        plan_name="ct-contrast-01",
        plan_digest=PLAN,
        round=7,
        data=DataFacts("chest-ct", frozenset({"CT"}), 8, PATIENTS, NOW - timedelta(hours=3)),
        parties=3,
        model_size=150_000_000,
        spending=spending,
        leaving=Leaving(160_000_000, frozenset({"loss", "auroc"}), 10),
        using=Using(devices=1, hours=0.5),
    )
    for part in ("data", "spending", "leaving", "using"):
        whole = getattr(request, part)
        mine = {name: changes.pop(name) for name in list(changes) if hasattr(whole, name)}
        request = replace(request, **{part: replace(whole, **mine)})
    return replace(request, **changes)


# --- what Hypothesis draws from ----------------------------------------------------------------------
_MR = {
    "source": {"kind": "dicomweb", "url": "http://127.0.0.1:8042/dicom-web"},
    "labels": {"kind": "nifti", "path": "/data/mr"},
    "modalities": ["MR", "CT"],
    "exclusions": {"path": "/etc/silo-agent/withdrawn.hmac", "max_age_hours": 24},
    "min_patients": 50,
    "max_images_per_patient": 8,
    "n_max_patients": 2000,
    "lossy": "allow",
    "burned_in": "allow",
}
_STUDY = {
    "plan_digest": [OTHER_PLAN],
    "purpose": "quality control",
    "legal": {"irb": "2026/1", "dpia": DPIA, "expires": date(2026, 12, 31)},
    "max_rounds": 5,
}
_HERE = {"host": "relay.study.example", "port": 443, "spki_sha256": "ab" * 32}
_THERE = {"host": "relay2.study.example", "port": 443, "spki_sha256": "cd" * 32}
_KEYS = {"data_steward": STEWARD.public.text, "it_security": IT.public.text}

# for every place, values around the page's own: below, equal, above, or differently
VALUES: dict[str, list[Any]] = {
    "valid.from": [date(2025, 1, 1), date(2026, 1, 1), date(2026, 11, 22)],
    "valid.until": [date(2026, 11, 20), date(2026, 12, 31), date(2027, 12, 31)],
    "approvers.roles": [["data_steward", "it_security"], ["it_security", "data_steward"]],
    "network.allow": [[], [_HERE], [_THERE, _HERE], [_HERE, _THERE], [_THERE]],
    "network.max_egress_mb_per_round": [100, 200, 300],
    "network.max_model_mb": [100, 200, 300],
    "weights": [{"folder": "/srv/weights"}, {"folder": "/srv/other"}, GONE],
    "hours.timezone": ["Europe/Oslo", "Europe/Berlin"],
    "hours.windows": [
        [],
        ["Mon-Fri 19:00-06:00", "Sat-Sun 00:00-24:00"],
        ["Sat 09:00-15:00"],
        ["Mon-Fri 19:00-06:00"],
        ["Mon-Sun 00:00-24:00"],
        ["Sat 00:00-10:00", "Sat 10:00-24:00"],
    ],
    "dataset.chest-ct": [GONE],
    "dataset.head-mr": [_MR],
    "dataset.chest-ct.source": [{"kind": "folder", "path": "/data/other"}],
    "dataset.chest-ct.labels": [{"kind": "parquet", "path": "/data/ct/labels.parquet"}],
    "dataset.chest-ct.modalities": [["CT"], ["CT", "MR"], ["MR"]],
    "dataset.chest-ct.exclusions.path": ["/etc/silo-agent/others.hmac"],
    "dataset.chest-ct.exclusions.max_age_hours": [1, 24, 48],
    "dataset.chest-ct.min_patients": [10, 50, 1900],
    "dataset.chest-ct.max_images_per_patient": [4, 8, 16],
    "dataset.chest-ct.n_max_patients": [1900, 2000, 4000],
    "dataset.chest-ct.population": ["everybody", "children"],
    "dataset.chest-ct.lossy": ["refuse", "allow"],
    "dataset.chest-ct.burned_in": ["refuse", "allow"],
    "privacy.max_epsilon_per_study": [4.0, 6.0, 8.0],
    "privacy.max_epsilon_lifetime": [8.0, 10.0, 12.0],
    "privacy.max_delta": [1e-5, 1e-4, 1e-3],
    "privacy.min_noise_multiplier": [0.5, 0.6, 1.0],
    "privacy.required": [True, False],
    "release.min_parties_in_sum": [3, 4, 5],
    "release.metrics": [["loss"], ["auroc", "loss"], ["loss", "auroc", "dice"], []],
    "release.smallest_cell": [10, 20],
    "study.CT-CONTRAST-01": [GONE],
    "study.QC": [_STUDY],
    "study.CT-CONTRAST-01.plan_digest": [[], [PLAN], [PLAN, str(digest(b"third"))]],
    "study.CT-CONTRAST-01.purpose": ["something else"],
    "study.CT-CONTRAST-01.legal.irb": ["2026/2"],
    "study.CT-CONTRAST-01.legal.dpia": [str(digest(b"new dpia"))],
    "study.CT-CONTRAST-01.legal.expires": [date(2026, 11, 20), date(2026, 12, 31), date(2027, 1, 31)],
    "study.CT-CONTRAST-01.max_rounds": [5, 60, 100],
    "resources.devices": [0, 1, 2],
    "resources.max_hours_per_round": [0.25, 2, 4],
    "audit.retain_years": [6, 10],
    "audit.cosigners": [0, 2, 3],
}


@st.composite
def some_changes(draw: st.DrawFn, most: int = 4) -> Changes:
    places = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=most, unique=True))
    return {place: draw(st.sampled_from(VALUES[place])) for place in places}


def apply(changes: Changes) -> Policy:
    """Tables that go take their own changes with them; keys follow their roles; no policy ends before it begins."""
    gone = [place for place, value in changes.items() if value is GONE]
    kept = {p: v for p, v in changes.items() if not any(p.startswith(f"{table}.") for table in gone)}
    if "approvers.roles" in kept:
        kept["approvers.keys"] = [_KEYS[role] for role in kept["approvers.roles"]]
    if kept.get("valid.from", date.min) > kept.get("valid.until", date.max):
        del kept["valid.from"]
    return a_policy(kept)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    return apply(draw(some_changes()))


@st.composite
def tighter_and_tighter(draw: st.DrawFn, count: int) -> list[Policy]:
    """Policies in a row, each said to be a tightening of the one before: of the changes drawn, those that are."""
    changes = draw(some_changes())
    found = [apply(changes)]
    while len(found) < count:
        for place, value in draw(some_changes(8)).items():
            candidate = changes | {place: value}
            if is_tightening(found[-1], apply(candidate)):
                changes = candidate
        found.append(apply(changes))
    return found


@st.composite
def requests(draw: st.DrawFn, policy: Policy) -> Request:
    def pick(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    spending = Spending(
        pick(3.0, 4.0, 5.0, 6.0, 7.0), pick(7.0, 9.0, 11.0), pick(5e-6, 5e-5, 5e-4), pick(0.55, 0.8, 1.2)
    )
    return Request(
        standing=standing(policy),
        plan_name=pick("ct-contrast-01", "ct-contrast-01", "qc"),
        plan_digest=pick(PLAN, PLAN, OTHER_PLAN),
        round=pick(3, 7, 70),
        data=DataFacts(
            name=pick("chest-ct", "chest-ct", "head-mr"),
            modalities=frozenset(pick(["CT"], ["CT"], ["MR"], ["CT", "MR"])),
            images_per_patient=pick(2, 6, 12),
            patients=pick(20, PATIENTS, 1950, 3000),
            exclusions_at=pick(None, NOW - timedelta(minutes=5), NOW - timedelta(hours=3), NOW - timedelta(hours=30)),
            admits_lossy=pick(False, False, True),
            admits_burned_in=pick(False, False, True),
        ),
        parties=pick(3, 4, 6),
        model_size=pick(50, 150, 250) * 1_000_000,
        spending=pick(spending, spending, Unguarded(), NothingSpent()),
        leaving=Leaving(
            pick(50, 150, 250) * 1_000_000, frozenset(pick(["loss"], ["loss", "auroc"], ["dice"], [])), pick(10, 20)
        ),
        using=Using(pick(0, 1, 2), pick(0.1, 1.0, 3.0)),
        pretrained=pick(None, None, "chest.safetensors"),
    )


TIMES = [
    NOW,
    datetime(2026, 11, 20, 20, 0, tzinfo=UTC),
    datetime(2026, 11, 23, 10, 0, tzinfo=UTC),
    datetime(2025, 6, 7, 12, 0, tzinfo=UTC),
    datetime(2027, 1, 2, 12, 0, tzinfo=UTC),
]
MOMENTS = st.sampled_from(TIMES)
_ASKED: dict[str, list[Any]] = {
    "round": [3, 70, 200],
    "plan_digest": [OTHER_PLAN, str(digest(b"third"))],
    "plan_name": ["qc"],
    "modalities": [frozenset({"MR"}), frozenset({"CT", "MR"})],
    "images_per_patient": [3, 6, 12],
    "patients": [20, 1950, 3000],
    "exclusions_at": [None, NOW - timedelta(minutes=5), NOW - timedelta(hours=30)],
    "admits_lossy": [True],
    "admits_burned_in": [True],
    "parties": [4, 6],
    "model_size": [50_000_000, 250_000_000],
    "epsilon_study": [3.0, 7.0],
    "epsilon_lifetime": [7.0, 11.0],
    "delta": [5e-6, 5e-4],
    "noise_multiplier": [0.55, 1.2],
    "spending": [Unguarded(), NothingSpent()],
    "size": [50_000_000, 250_000_000],
    "metrics": [frozenset({"dice"}), frozenset({"loss"}), frozenset()],
    "cell": [20],
    "devices": [0, 2],
    "hours": [0.1, 3.0],
    "pretrained": ["chest.safetensors"],
}


def probes(policy: Policy) -> list[Request]:
    """Requests that differ from an allowed one in one fact, on either data set."""
    usual = a_request(policy)
    varied = [_with(usual, fact, value) for fact, values in _ASKED.items() for value in values]
    return [usual, *varied, *(_with(request, "name", "head-mr") for request in (usual, *varied))]


def _with(request: Request, fact: str, value: Any) -> Request:
    for part in ("data", "spending", "leaving", "using"):
        if fact != "spending" and hasattr(getattr(request, part), fact):
            return replace(request, **{part: replace(getattr(request, part), **{fact: value})})
    return replace(request, **{fact: value})
