"""The study plan: one file, one value, one digest; what contradicts itself is refused with its place."""

import json
from copy import deepcopy
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from boundary.canonical import canonical_bytes, parse_canonical
from boundary.errors import InvalidPlan, MalformedMessage
from boundary.guarantee import EPSILON_BANDS
from boundary.images import Normalisation
from boundary.plan import (
    MAX_PLAN_BYTES,
    StudyPlan,
    digest_of,
    parse_plan,
    plan_from_json,
    plan_from_toml,
    study_id,
    to_json,
)
from boundary.strategies import NOT_OF_SUMS
from infra import golden


def value_of(fed: ModuleType) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(to_json(fed.plan()))
    return value


def changed(fed: ModuleType, place: str, value: Any) -> dict[str, Any]:
    """The golden plan with the value at `a.b.0` replaced (`...` removes it)."""
    plan = deepcopy(value_of(fed))
    *way, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    at: Any = plan
    for step in way:
        at = at[step]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return plan


REFUSED: dict[str, tuple[str, Any]] = {
    "an unknown key": ("note", "hello"),
    "an unknown key deep inside": ("purpose.note", "hello"),
    "an unknown key in a hospital": ("hospitals.1.address", "x"),
    "no purpose": ("purpose", ...),
    "no legal basis": ("purpose.legal_basis", ...),
    "an empty title": ("purpose.title", ""),
    "a statement of 2001 characters": ("purpose.statement", "x" * 2001),
    "a title with a terminal escape": ("purpose.title", "safe\x1b[2Kstudy"),
    "a title that reads backwards": ("purpose.title", "\u202eydutS"),
    "a title with an invisible character": ("purpose.title", "Study\u200b"),
    "a title with a NUL": ("purpose.title", "Study\0"),
    "a title with a carriage return": ("purpose.title", "harmful\rharmless"),
    "a title with half of a surrogate pair": ("purpose.title", "\ud800"),
    "a date in another form": ("purpose.expires", "20261231"),
    "a week date": ("purpose.expires", "2026-W53-4"),
    "a date with a time": ("purpose.expires", "2026-12-31T00:00:00"),
    "a date as a number": ("purpose.expires", 20261231),
    "a date that never was": ("purpose.expires", "2026-02-30"),
    "kept for 101 years": ("purpose.retain_years", 101),
    "two hospitals": ("hospitals.2", ...),
    "hospitals that are no list": ("hospitals", "all"),
    "a hospital twice": ("hospitals.1.silo", "charite"),
    "a hospital called coordinator": ("hospitals.1.silo", "coordinator"),
    "a name with a line end": ("name", "ct-contrast\n"),
    "a key that is no key": ("hospitals.1.signing_key", "ed25519:abc"),
    "a key of another kind": ("hospitals.1.signing_key", "rsa:" + "A" * 43 + "="),
    "a key of small order, which binds nobody": ("hospitals.1.signing_key", "ed25519:" + "A" * 43 + "="),
    "a key with stray bits, a second name for the first key": ("hospitals.1.signing_key", "ed25519:" + "A" * 42 + "B="),
    "true for version 1": ("version", True),
    "1.0 for version 1": ("version", 1.0),
    "version 2": ("version", 2),
    "revision 0": ("revision", 0),
    "a revision beyond 2^53": ("revision", 2**53),
    "bool where int is due": ("training.rounds", True),
    "float where int is due": ("training.rounds", 12.0),
    "a word where int is due": ("training.rounds", "12"),
    "bool where float is due": ("training.learning_rate", True),
    "NaN": ("training.learning_rate", float("nan")),
    "infinity": ("aggregation.max_model_norm", float("inf")),
    "a norm whose digest could not be read back": ("aggregation.max_model_norm", 1e16),
    "a window whose digest could not be read back": ("preprocessing.high", 2.0**53),
    "steps whose digest could not be computed": ("training.max_steps", 2**60),
    "a window upside down": ("preprocessing.low", 301),
    "a window of no width": ("preprocessing.low", 300.5),
    "an image of 15 pixels": ("preprocessing.size", [15, 64]),
    "an image of 1025 pixels": ("preprocessing.size", [64, 1025]),
    "an image of three sides": ("preprocessing.size", [64, 64, 64]),
    "half a pixel": ("preprocessing.size", [64.0, 64]),
    "percentiles below 0": ("preprocessing.intensity", "percentiles"),
    "an unknown intensity": ("preprocessing.intensity", "eval(x)"),
    "one class": ("labels.classes", ["yes"]),
    "101 classes": ("labels.classes", [str(number) for number in range(101)]),
    "a class twice": ("labels.classes", ["yes", "yes"]),
    "a class of no characters": ("labels.classes", ["yes", ""]),
    "a class with a line break": ("labels.classes", ["yes", "no\n"]),
    "a class that looks like another": ("labels.classes", ["yes", "yes\u200b"]),
    "a class of 65 characters": ("labels.classes", ["yes", "n" * 65]),
    "a class that is a number": ("labels.classes", ["yes", 0]),
    "a column of 65 characters": ("labels.column", "c" * 65),
    "no modality": ("dataset.modalities", []),
    "an unknown modality": ("dataset.modalities", ["CT", "PT"]),
    "a modality twice": ("dataset.modalities", ["CT", "CT"]),
    "no patients": ("dataset.min_patients", 0),
    "all data held out": ("dataset.holdout_share", 1),
    "an unknown strategy": ("training.strategy", "my.module:strategy"),
    "nothing to train": ("model.trained", []),
    "a pattern twice": ("model.home", ["*norm*", "*norm*"]),
    "a pattern of no characters": ("model.trained", [""]),
    "a pattern with a line break": ("model.trained", ["*\n"]),
    "one pattern that is no list": ("model.trained", "features.*"),
    "adapters of nothing": ("model.lora", {"rank": 4, "alpha": 8.0, "targets": []}),
    "adapters of rank 0": ("model.lora", {"rank": 0, "alpha": 8.0, "targets": ["*"]}),
    "adapters by an invisible name": ("model.lora", {"rank": 4, "alpha": 8.0, "targets": ["a\u200b*"]}),
    "pretrained weights by their path": ("model.pretrained", {"file": "/tmp/a.safetensors", "sha256": "0" * 64}),
    "pretrained weights by name alone": ("model.pretrained", {"file": "a.safetensors"}),
    "a downlink of another kind": ("aggregation.downlink", "float16"),
    "a server's rate of nothing": ("server.learning_rate", 0),
    "a server's rate beyond all measure": ("server.learning_rate", 101),
    "all momentum": ("server.momentum", 1),
    "momentum of less than nothing": ("server.second_moment", -0.1),
    "no adaptivity": ("server.adaptivity", 0),
    "an unknown key of the server": ("server.nesterov", True),
    "a pull of less than nothing": ("training.proximal", -0.1),
    "a pull beyond all measure": ("training.proximal", 1000.5),
    "a weighting of the coordinator's choice": ("training.weighting", "importance"),
    "an unknown mechanism": ("privacy.mechanism", "trust-me"),
    "a sum over two": ("aggregation.quorum", 2),
    "a quorum of more than there are": ("aggregation.quorum", 4),
    "a wait of no time": ("aggregation.ready_minutes", 0),
    "a step of no time": ("aggregation.step_minutes", 0),
    "a step of more than a day": ("aggregation.step_minutes", 1440.5),
    "no attempt": ("aggregation.attempts", 0),
    "21 attempts": ("aggregation.attempts", 21),
    "a ring of 24 bits": ("aggregation.ring", 24),
    "a ring of 16.0 bits": ("aggregation.ring", 16.0),
    "true for a ring": ("aggregation.ring", True),
    "a change of nothing": ("aggregation.delta_bound", 0),
    "a change of more than a million": ("aggregation.delta_bound", 1e6 + 1),
    "a weight of nothing": ("aggregation.max_weight", 0),
    "half a weight": ("aggregation.max_weight", 0.5),
    "a weight of more than ten million": ("aggregation.max_weight", 10_000_001),
    "no share of the weights": ("aggregation.random_share", 0),
    "more than all weights": ("aggregation.random_share", 1.01),
    "feedback of what all was sent": ("aggregation.random_share", 1.0),
    "1 for true": ("aggregation.error_feedback", 1),
    "an unknown kind of entries": ("evidence.disclose", ["patients"]),
    "a kind of entries twice": ("evidence.disclose", ["budget", "budget"]),
    "kinds of entries that are no list": ("evidence.disclose", "budget"),
}


@pytest.mark.parametrize(("place", "value"), REFUSED.values(), ids=REFUSED)
def test_a_plan_that_contradicts_itself_is_refused(fed: ModuleType, place: str, value: Any) -> None:
    with pytest.raises(InvalidPlan) as why:
        parse_plan(changed(fed, place, value))
    assert place.split(".", maxsplit=1)[0] in str(why.value) or "hospitals" in str(why.value)
    with pytest.raises(MalformedMessage, match="not a plan"):
        plan_from_json(changed(fed, place, value))


def test_a_guarantee_and_sums_that_it_does_not_cover_contradict_each_other(fed: ModuleType) -> None:
    value = json.loads(to_json(fed.private_plan()))
    for section, key, other in (("preprocessing", "normalise", "federated"), ("training", "weighting", "patients")):
        with pytest.raises(InvalidPlan, match=f"{section}.{key}: .* not covered by privacy noise"):
            parse_plan(value | {section: value[section] | {key: other}})


def test_numbers_to_normalise_by_go_with_a_guarantee_and_with_a_plan_that_trains_nothing(fed: ModuleType) -> None:
    given = {"normalise": {"mean": 0.25, "deviation": 0.125}}
    private, plain = (json.loads(to_json(one())) for one in (fed.private_plan, fed.plan))
    assert parse_plan(private | {"preprocessing": private["preprocessing"] | given}).preprocessing.given is not None
    plain["preprocessing"] |= given
    plain |= {"evaluation": {"models": ["sha256:" + "a" * 64]}, "robustness": {}, "selection": {}}
    plain["training"]["rounds"], plain["personalisation"] = 0, None
    plain["model"] |= {"home": [], "trained": ["*"]}
    plan = parse_plan(plain)
    assert (plan.preprocessing.given, plan.training.rounds) == (Normalisation(mean=0.25, deviation=0.125), 0)


@pytest.mark.parametrize(
    "given",
    [
        {"mean": 0.3},
        {"mean": 1.5, "deviation": 0.2},
        {"mean": 0.3, "deviation": 0.0},
        {"mean": 0.3, "deviation": 1e-4},
        {"mean": "0.3"},
        "given",
    ],
)
def test_numbers_to_normalise_by_that_are_none_are_refused(fed: ModuleType, given: object) -> None:
    value = value_of(fed)
    with pytest.raises(InvalidPlan, match="normalise"):
        parse_plan(value | {"preprocessing": value["preprocessing"] | {"normalise": given}})


@pytest.mark.parametrize("value", [None, [], "plan", 1])
def test_what_is_no_plan_at_all_is_refused(value: object) -> None:
    with pytest.raises(InvalidPlan, match="the plan: "):
        parse_plan(value)


def test_error_feedback_is_refused_together_with_privacy_noise(fed: ModuleType) -> None:
    """What is carried from one round to the next is not covered by a round's noise."""
    private: dict[str, Any] = json.loads(to_json(fed.private_plan()))
    feedback = private["aggregation"] | {"error_feedback": True}
    assert feedback == value_of(fed)["aggregation"], "it is no fault of a plan without noise"
    with pytest.raises(InvalidPlan, match=r"aggregation\.error_feedback: what is carried from round to round"):
        parse_plan(private | {"aggregation": feedback})


@pytest.mark.parametrize("weighting", ["images", "patients"])
def test_a_true_count_is_no_weight_together_with_privacy_noise(fed: ModuleType, weighting: str) -> None:
    """A sum's weight is not noisy: with the others' counts known, it would tell ours."""
    private: dict[str, Any] = json.loads(to_json(fed.private_plan()))
    training = private["training"] | {"weighting": weighting}
    with pytest.raises(InvalidPlan, match=r"training\.weighting: a true count is not covered.*take equal or declared"):
        parse_plan(private | {"training": training})
    parse_plan(value_of(fed) | {"training": training})


@pytest.mark.parametrize(
    ("weighting", "largest"), [("images", 2000), ("patients", 2000), ("declared", 2000), ("equal", 1)]
)
def test_the_largest_weight_of_a_hospital_is_the_plans(fed: ModuleType, weighting: str, largest: int) -> None:
    plan: StudyPlan = fed.plan()
    assert plan.aggregation.largest_weight(plan.training.model_copy(update={"weighting": weighting})) == largest


def test_fednova_divides_by_steps_that_differ_and_are_steps_of_sgd(fed: ModuleType) -> None:
    value = fed.plan().model_dump(mode="json")
    value["training"] |= {"strategy": "fednova", "optimizer": "sgd", "proximal": 0}
    assert parse_plan(value).counts_steps
    value["aggregation"]["max_weight"] = 10_000_000
    most = 2**39 // (3 * 10_000_000)
    assert parse_plan(value | {"training": value["training"] | {"max_steps": most}})
    for changed, says in (
        ({"optimizer": "adam"}, "fednova counts on steps of plain sgd"),
        ({"proximal": 0.1}, "without a pull"),
        ({"max_steps": most + 1}, "too large to be summed"),
    ):
        with pytest.raises(InvalidPlan, match=says):
            parse_plan(value | {"training": value["training"] | changed})
    private = fed.private_plan().model_dump(mode="json")
    private["training"] |= {"strategy": "fednova", "proximal": 0}
    with pytest.raises(InvalidPlan, match="all hospitals take the same steps"):
        parse_plan(private)
    assert not fed.plan().counts_steps


def test_scaffold_corrects_plain_steps_and_has_no_noise(fed: ModuleType) -> None:
    value = fed.plan().model_dump(mode="json")
    value["training"] |= {"strategy": "scaffold", "optimizer": "sgd", "proximal": 0, "weighting": "equal"}
    value["aggregation"] |= {"random_share": 1, "error_feedback": False}
    assert parse_plan(value).has_controls
    assert parse_plan(value).counts_steps
    for section, changed, says in (
        ("training", {"optimizer": "adam"}, "scaffold counts on steps of plain sgd"),
        ("training", {"proximal": 0.1}, "without a pull"),
        ("training", {"weighting": "patients"}, "have to average out; take equal"),
        ("aggregation", {"random_share": 0.5}, "made of whole changes"),
        ("aggregation", {"downlink": "bfloat16"}, "aggregation.downlink: scaffold's control variates come down in"),
    ):
        with pytest.raises(InvalidPlan, match=says):
            parse_plan(value | {section: value[section] | changed})
    private = fed.private_plan().model_dump(mode="json")
    private["training"] |= {"strategy": "scaffold", "optimizer": "sgd", "proximal": 0}
    with pytest.raises(InvalidPlan, match="control variates are not covered by privacy noise"):
        parse_plan(private)
    assert not fed.plan().has_controls


def test_rfa_weighs_by_whole_changes_and_its_weights_can_be_summed(fed: ModuleType) -> None:
    value = fed.plan().model_dump(mode="json")
    value["training"]["strategy"] = "rfa"
    value["aggregation"]["error_feedback"] = False
    assert parse_plan(value).server.smoothing == 0.05
    value["aggregation"]["max_weight"] = 10_000_000
    for section, changed, says in (
        ("aggregation", {"error_feedback": True}, r"aggregation\.error_feedback: rfa weighs .* by its whole change"),
        ("server", {"smoothing": 3e7 / 2**39}, r"server\.smoothing: too small"),
    ):
        with pytest.raises(InvalidPlan, match=says):
            parse_plan(value | {section: value[section] | changed})
    assert parse_plan(value | {"server": value["server"] | {"smoothing": 1.001 * 3e7 / 2**39}})


@pytest.mark.parametrize("name", [*NOT_OF_SUMS, "Multi_Krum"])
def test_what_looks_at_single_updates_is_refused_with_what_to_take_instead(fed: ModuleType, name: str) -> None:
    asked = changed(fed, "training.strategy", name)
    says = r"training\.strategy: .* nobody sees one here, only sums\. Take \"rfa\".*robustness\.vote"
    with pytest.raises(InvalidPlan, match=says):
        parse_plan(asked)


def test_a_strategy_that_nobody_knows_is_refused_with_those_there_are(fed: ModuleType) -> None:
    with pytest.raises(InvalidPlan, match=r"training\.strategy: .*'fedavg'.*'rfa'"):
        parse_plan(changed(fed, "training.strategy", "krumm"))


@pytest.mark.parametrize(
    ("strategy", "named", "rate"),
    [("fedavg", None, 1.0), ("fedadam", None, 0.01), ("fedyogi", 0.3, 0.3), ("fedavgm", 2, 2)],
)
def test_a_strategy_has_its_usual_rate_where_the_plan_names_none(
    fed: ModuleType, strategy: str, named: float | None, rate: float
) -> None:
    value = fed.plan().model_dump(mode="json")
    value["training"]["strategy"], value["server"]["learning_rate"] = strategy, named
    assert parse_plan(value).server_learning_rate == rate


def test_a_model_moves_whole_unless_the_plan_says_otherwise(fed: ModuleType) -> None:
    choice = fed.plan().model
    assert not choice.moves_whole
    assert not choice.model_copy(update={"home": ()}).moves_whole
    assert choice.model_copy(update={"home": (), "trained": ("x", "*")}).moves_whole


def test_bands_are_told_only_with_a_guarantee(fed: ModuleType) -> None:
    assert (fed.plan().bands, fed.private_plan().bands) == (0, len(EPSILON_BANDS))


@pytest.mark.parametrize(("share", "parameters", "count"), [(1.0, 7, 7), (0.5, 7, 4), (0.01, 7, 1), (0.25, 1000, 250)])
def test_at_least_one_weight_is_summed(fed: ModuleType, share: float, parameters: int, count: int) -> None:
    aggregation = fed.plan().aggregation.model_copy(update={"random_share": share})
    assert aggregation.summed_weights(parameters) == count


def test_201_hospitals_are_too_many(fed: ModuleType) -> None:
    hospitals = [{"silo": f"h{at}", "signing_key": fed.key(f"h{at}").public.text} for at in range(201)]
    parse_plan(value_of(fed) | {"hospitals": hospitals[:200]})
    with pytest.raises(InvalidPlan, match="3 to 200"):
        parse_plan(value_of(fed) | {"hospitals": hospitals})


def test_one_key_under_two_names_is_refused(fed: ModuleType) -> None:
    key = value_of(fed)["hospitals"][0]["signing_key"]
    with pytest.raises(InvalidPlan, match="a name or a key appears twice"):
        parse_plan(changed(fed, "hospitals.1.signing_key", key))


def test_percentiles_lie_between_0_and_100(fed: ModuleType) -> None:
    plan = value_of(fed)
    for low, high in ((-1, 50), (1, 101)):
        with pytest.raises(InvalidPlan, match="percentiles"):
            parse_plan(
                plan | {"preprocessing": {"size": [64, 64], "intensity": "percentiles", "low": low, "high": high}}
            )
    parse_plan(plan | {"preprocessing": {"size": [64, 64], "intensity": "percentiles", "low": 0, "high": 100}})


def test_every_fault_is_told_with_its_place(fed: ModuleType) -> None:
    plan = changed(fed, "training.rounds", -1) | {"note": 1}
    plan["hospitals"][1]["silo"] = "Ucl"
    with pytest.raises(InvalidPlan) as why:
        parse_plan(plan)
    lines = str(why.value).splitlines()
    assert len(lines) == 3
    assert "note: unknown key" in lines
    assert any(line.startswith("training.rounds: ") for line in lines)
    assert any(line.startswith("hospitals.1.silo: ") for line in lines)


NOT_TOML = {
    "no TOML": "version: 1",
    "a key twice": "version = 1\nversion = 1",
    "an integer of 5000 digits": "version = " + "1" * 5000,
    "nested until the parser gives up": "a = " + "[" * 100_000,
    "half of a surrogate pair": "a = '\ud800'",
}


@pytest.mark.parametrize("text", NOT_TOML.values(), ids=NOT_TOML)
def test_what_is_not_toml_is_refused(text: str) -> None:
    with pytest.raises(InvalidPlan, match="not TOML"):
        plan_from_toml(text)


def test_the_size_is_looked_at_before_the_text() -> None:
    with pytest.raises(InvalidPlan, match="larger than"):
        plan_from_toml("é" * (MAX_PLAN_BYTES // 2 + 1))


def test_toml_dates_are_plain_dates(fed: ModuleType) -> None:
    for wrong in ("2026-12-31T12:00:00Z", "2026-12-31 12:00:00", "12:00:00"):
        with pytest.raises(InvalidPlan, match=r"purpose\.expires: a plain date"):
            plan_from_toml(fed.plan_toml().replace("expires = 2026-12-31", f"expires = {wrong}"))


SAME_PLAN = {
    "a comment": lambda toml: "# approved by nobody yet\n" + toml,
    "other spaces": lambda toml: toml.replace(" = ", "   =  "),
    "a float written as an integer": lambda toml: toml.replace(
        "lost_after_seconds = 45.5", "lost_after_seconds = 455e-1"
    ),
    "the date as text": lambda toml: toml.replace("expires = 2026-12-31", 'expires = "2026-12-31"'),
    "a default spelled out or not": lambda toml: toml.replace('[privacy]\nmechanism = "none"\n', ""),
    "an integer with underscores": lambda toml: toml.replace("max_model_norm = 2500", "max_model_norm = 2_500"),
}


@pytest.mark.parametrize("write", SAME_PLAN.values(), ids=SAME_PLAN)
def test_layout_does_not_matter_to_the_digest(fed: ModuleType, write: Any) -> None:
    text = write(fed.plan_toml())
    assert text != fed.plan_toml()
    assert digest_of(plan_from_toml(text)) == digest_of(fed.plan())


def test_a_plan_has_a_label_and_a_study(fed: ModuleType) -> None:
    plan: StudyPlan = fed.plan()
    assert plan.label == "ct-contrast@3"
    assert study_id(plan) == "ct-contrast-" + digest_of(plan)[7:15]
    assert plan.silos == ("charite", "st-olavs", "ucl")


def toml_of(plan: StudyPlan) -> str:
    """A plan as a person would write it. JSON's strings, numbers and lists of them are TOML's as well."""
    plain, tables = [], []
    for key, value in plan.model_dump(mode="json").items():
        if isinstance(value, dict):
            inner = {name: value.pop(name) for name in list(value) if isinstance(value[name], dict)}
            tables += [f"[{key}]", *pairs_of(value)]
            tables += [line for name, table in inner.items() for line in (f"[{key}.{name}]", *pairs_of(table))]
        elif isinstance(value, list):
            tables += [line for entry in value for line in (f"[[{key}]]", *pairs_of(entry))]
        else:
            plain += pairs_of({key: value})
    return "\n".join(plain + tables)


def pairs_of(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items() if value is not None]


@given(st.data())
def test_toml_to_plan_to_json_to_plan_keeps_the_digest(strategies: SimpleNamespace, data: st.DataObject) -> None:
    plan = data.draw(strategies.plans)
    assert plan_from_toml(toml_of(plan)) == plan
    from_wire = plan_from_json(parse_canonical(to_json(plan)))
    assert from_wire == plan
    assert digest_of(from_wire) == digest_of(plan)
    assert to_json(from_wire) == to_json(plan)


def leaf_places(model: BaseModel, way: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    places: list[tuple[str, ...]] = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        places += leaf_places(value, (*way, name)) if isinstance(value, BaseModel) else [(*way, name)]
    return places


OTHER_VALUES: dict[type, Any] = {
    type(None): lambda _: 1.5,
    int: lambda old: old + 1,
    float: lambda old: old * 1.0000001 + 1e-9,
    str: lambda old: old + "x",
    tuple: lambda old: old[::-1] if len(old) > 1 else (*old, *old, "x"),
    bool: lambda old: not old,
}


def test_adapters_want_to_be_told_what_is_trained(fed: ModuleType) -> None:
    value: dict[str, Any] = json.loads(to_json(golden.adapted_plan()))
    assert parse_plan(value).model.lora is not None
    with pytest.raises(InvalidPlan, match=r"model: trained: with lora say what is trained, \[\"\*.lora_\*\"\]"):
        parse_plan(value | {"model": value["model"] | {"trained": ["*"]}})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values that no plan could have
@pytest.mark.parametrize(
    ("which", "leaves"), [("plan", 80), ("private_plan", 86), ("segmentation_plan", 88), ("adapted_plan", 85)]
)
def test_every_leaf_is_in_the_digest(fed: ModuleType, which: str, leaves: int) -> None:
    plan: StudyPlan = getattr(golden, which)()
    places = leaf_places(plan)
    assert len(places) == leaves
    digests = {digest_of(plan)}
    for way in places:
        at: Any = plan
        parents = [at := getattr(at, step) for step in way[:-1]]
        holder = parents[-1] if parents else plan
        old = getattr(holder, way[-1])
        new: Any = OTHER_VALUES[type(old)](old) if type(old) in OTHER_VALUES else old.replace(year=old.year + 1)
        for level, step in zip([plan, *parents][::-1], way[::-1], strict=True):
            new = level.model_copy(update={step: new})
        digests.add(digest_of(new))
    for at in (0, 1, 2):
        for change in (
            {"silo": "other"}, {"signing_key": fed.key("other").public.text}, {"role": "validate"},
        ):  # fmt: skip
            hospitals = list(plan.hospitals)
            hospitals[at] = hospitals[at].model_copy(update=change)
            digests.add(digest_of(plan.model_copy(update={"hospitals": tuple(hospitals)})))
    assert len(digests) == 1 + len(places) + 9


@settings(max_examples=8)
@given(st.data())
def test_two_plans_share_a_digest_only_if_they_are_equal(strategies: SimpleNamespace, data: st.DataObject) -> None:
    one, other = data.draw(strategies.plans), data.draw(strategies.plans)
    assert (digest_of(one) == digest_of(other)) == (one == other)


SEGMENTATION_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no rule for the series": ({"dataset.series": None}, "dataset.series: say which series"),
    "a column of masks": ({"labels.column": "organ"}, "labels.column: masks have no column"),
    "another modality than the rule's": ({"dataset.modalities": ["MR"]}, "the one modality"),
    "two modalities": ({"dataset.modalities": ["CT", "MR"]}, "the one modality"),
    "volumes without spacing": ({"preprocessing.spacing": None}, "say to which distances in mm"),
    "a spacing of two for three sides": ({"preprocessing.spacing": [1, 1]}, "one distance for each side"),
    "a spacing of nothing": ({"preprocessing.spacing": [0, 1, 1]}, "preprocessing.spacing.0"),
    "four sides": ({"preprocessing.size": [16, 16, 16, 16]}, r"size: \(height, width\)"),
    "more voxels than a model can take": ({"preprocessing.size": [1024, 1024, 32]}, "all of it at most 16777216"),
    "an answer larger than a machine": (
        {"preprocessing.size": [64, 512, 512], "labels.classes": [str(number) for number in range(12)]},
        "labels.classes: too many",
    ),
    "a batch larger than a machine": (
        {"preprocessing.size": [64, 512, 512], "training.batch_size": 9},
        "training.batch_size: at most 8 inputs",
    ),
    "slices upside down": ({"dataset.series.smallest_slices": 900}, "the smallest is above the largest"),
    "gaps upside down": ({"dataset.series.smallest_gap_mm": 6}, "the smallest is above the largest"),
    "a type that is in and out": ({"dataset.series.image_type_excludes": ["AXIAL"]}, "both included and excluded"),
    "another task": ({"task": "detection"}, "task: "),
    "masks' fields in a classification": ({"task": "classification"}, "volumes are for the task segmentation"),
}


@pytest.mark.parametrize(("changes", "sentence"), SEGMENTATION_REFUSED.values(), ids=SEGMENTATION_REFUSED)
def test_a_plan_of_masks_that_contradicts_itself_is_refused(
    fed: ModuleType, changes: dict[str, Any], sentence: str
) -> None:
    value: dict[str, Any] = json.loads(to_json(golden.segmentation_plan()))
    assert parse_plan(value) == golden.segmentation_plan()
    for place, wanted in changes.items():
        *way, last = place.split(".")
        at = value
        for step in way:
            at = at[step]
        at[last] = wanted
    with pytest.raises(InvalidPlan, match=sentence):
        parse_plan(value)


def test_the_aim_of_a_plan_is_said_in_words(fed: ModuleType) -> None:
    volumes: StudyPlan = golden.segmentation_plan()
    resampled = {"size": (64, 96), "spacing": (1.5, 1.25)}
    slices, fitted = (
        volumes.model_copy(update={"preprocessing": volumes.preprocessing.model_copy(update=update)})
        for update in (resampled, resampled | {"spacing": None})
    )
    assert fed.plan().aim == "to tell no from yes"
    found = "to outline liver and tumour in"
    assert volumes.aim == f"{found} volumes of 32 x 64 x 96 voxels of 5 x 1.5 x 1.25 mm"
    assert slices.aim == f"{found} slices of 64 x 96 pixels of 1.5 x 1.25 mm"
    assert fitted.aim == f"{found} slices of 64 x 96 pixels"


def test_the_canonical_form_is_the_plan(fed: ModuleType) -> None:
    assert canonical_bytes(value_of(fed)) == to_json(fed.plan())
