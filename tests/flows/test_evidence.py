"""Evidence about a study that was really run, with a dropout and a refusal; then somebody lays hands on it."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.checkpoint import Checkpoint, Cosignature
from boundary.errors import BadSignature, MalformedMessage
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.messages import MaskedVector
from boundary.names import COORDINATOR, decode_base64
from boundary.tensors import pack
from compliance.bundle import Trust
from compliance.evidence.files import report_files
from compliance.keys_file import keys_text
from compliance.trail import read_leaf
from compliance.verify_command import run as verify
from flows import retention, watch
from flows.coordinator import Coordinator, load
from flows.driver import StudyDriver
from flows.evidence import issue
from flows.incidents import close, incident_lines
from flows.officer import decide, make_key, signed
from flows.round_work import RoundWork
from flows.store import audit, studies, witnessed
from flows.store.database import reading, writing
from flows.store.findings import latest_decision, latest_evidence
from flows.watch import HIGH_WATER, look
from infra.driving import PARAMETERS, attempts, one_round, run, work_of
from infra.federation import SimulatedFederation, make_federation

ROUNDS = 5
HOSPITALS = ("h1", "h2", "h3", "h4", "h5")


def study_of(folder: Path) -> SimulatedFederation:
    """Round 2 without h2, which falls silent in the middle of the sum; round 4 without h5, which refuses.

    After the last all of them personalise.
    """
    federation = make_federation(
        folder,
        {silo: work_of(number) for number, silo in enumerate(HOSPITALS, 1)},
        parameters=PARAMETERS,
        rounds=ROUNDS,
        changes={"personalisation": {}},
    )

    async def story(driver: StudyDriver) -> None:
        driver.record_consents()
        for number in range(1, ROUNDS + 1):
            if number == 2:
                federation.hospitals["h2"].fall_silent_before(MaskedVector.kind)
            if number == 3:
                federation.hospitals["h2"].speak()
            if number == 4:
                federation.hospitals["h5"].refuse("train", "OUT_OF_MEMORY")
            if number == 5:
                federation.hospitals["h5"].relent()
            await one_round(driver, number)
        assert await driver.witness_end() == ()
        work = driver.open_round(ROUNDS + 1)
        _, found = await attempts(work, "personalise", work.model_in, RoundWork.compare)
        driver.learn_personalised(found)
        assert await driver.witness_end() == ()
        driver.finish("ALL_ROUNDS_DONE")

    run(federation, story)
    return federation


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFederation:
    """Shared: tests that change it take a copy of its store."""
    return study_of(tmp_path_factory.mktemp("study") / "home")


@pytest.fixture(scope="module")
def keys(done: SimulatedFederation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keys_of(done, tmp_path_factory.mktemp("keys") / "keys.toml")


def keys_of(done: SimulatedFederation, path: Path) -> Path:
    trust = Trust(
        done.coordinator.key.public,
        {silo: one.key.public for silo, one in done.hospitals.items()},
        {silo: one.folder.steward.public for silo, one in done.hospitals.items()},
    )
    path.write_text(keys_text(trust))
    return path


def verdict(bundle: Path, keys: Path, **more: Any) -> tuple[int, str]:
    said: list[str] = []
    return verify(bundle, keys, rebuild=report_files, write=said.append, **more), "".join(said)


# --- a bundle ------------------------------------------------------------------------------------------
def test_the_evidence_about_a_real_study_verifies(done: SimulatedFederation, keys: Path, tmp_path: Path) -> None:
    issued = issue(done.coordinator, done.plan.label, tmp_path / "a-bundle")
    code, said = verdict(issued.folder, keys)
    assert (code, said.splitlines()[-1][:8]) == (0, "VERIFIED"), said
    logs = {path.stem for path in (issued.folder / "logs").glob("*.jsonl")}
    assert logs == {COORDINATOR, *HOSPITALS}


def test_so_does_the_evidence_about_a_study_that_trains_nothing(tmp_path: Path) -> None:
    """No round is committed behind which hospitals would show their logs: at the end they are asked."""
    works = {silo: work_of(number) for number, silo in enumerate(HOSPITALS, 1)}
    other = make_federation(tmp_path / "other", works, parameters=PARAMETERS)
    weights = [pack(np.full(PARAMETERS, value, np.float32), other.study.parts.whole) for value in (1.0, 2.0)]
    models = [other.coordinator.blobs.put_bytes(one).digest for one in weights]
    other.close()
    changes = {"training": {"rounds": 0}, "evaluation": {"models": models}}
    made = make_federation(tmp_path / "home", works, parameters=PARAMETERS, changes=changes)
    for one in weights:
        made.coordinator.blobs.put_bytes(one)

    async def story(driver: StudyDriver) -> None:
        driver.record_consents()
        for number in (1, 2):
            model, work = driver.finished_model(number), driver.open_round(number)
            assert model is not None
            await attempts(work, "evaluate", model, partial(RoundWork.measure_apart, model=model.digest))
        assert await driver.witness_end() == ()
        driver.finish("ALL_MODELS_MEASURED")

    run(made, story)
    issued = issue(made.coordinator, made.plan.label, tmp_path / "a-bundle")
    code, said = verdict(issued.folder, keys_of(made, tmp_path / "keys.toml"))
    made.close()
    assert (code, said.splitlines()[-1][:8]) == (0, "VERIFIED"), said
    for silo in HOSPITALS:
        leaves = (json.loads(line) for line in (issued.folder / "logs" / f"{silo}.jsonl").read_text().splitlines())
        released = [one for one in leaves if "contribution-released" in json.dumps(one)]
        assert len(released) == 2, "what each did for both models is shown"


def test_its_numbers_are_those_of_the_logs(done: SimulatedFederation, tmp_path: Path) -> None:
    """Read the lines of the bundle as JSON, without any code of ours, and count."""
    folder = issue(done.coordinator, done.plan.label, tmp_path / "a-bundle").folder
    entries = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in (folder / "logs").iterdir()
    }
    said = {
        party: [(entry["event"], entry["data"]) for entry in log if "event" in entry] for party, log in entries.items()
    }
    closed = [data for event, data in said[COORDINATOR] if event == "round-closed"]
    assert [(data["round"], data["absent"]) for data in closed] == [
        (1, []), (2, ["h2"]), (3, []), (4, ["h5"]), (5, [])
    ]  # fmt: skip
    report = json.loads((folder / "report/report.json").read_text())
    text = json.dumps(report)
    released = {
        silo: sum(data["size"] for event, data in said[silo] if event == "contribution-released") for silo in HOSPITALS
    }
    egress = next(section for section in report["sections"] if section["title"].startswith("What left"))
    shown = re.sub(r"[\s,\u202f]", "", json.dumps(egress))
    assert released["h2"] < released["h1"]
    for silo, size in released.items():
        assert str(size) in shown, f"{size} bytes left {silo}"
    refusals = [data["code"] for event, data in said["h5"] if event == "work-refused"]
    assert refusals
    assert all(code in text for code in refusals)
    assert "How the model compares with what each hospital has alone, and with its own after personalisation" in text
    assert sum(report["verdicts"].values()) == len(report["controls"])
    assert report["verdicts"]["FAIL"] == 0


def test_a_bundle_is_never_written_over(done: SimulatedFederation, tmp_path: Path) -> None:
    first = issue(done.coordinator, done.plan.label)
    second = issue(done.coordinator, done.plan.label)
    assert first.folder != second.folder
    assert "bundle" in first.folder.name
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="never written over"):
        issue(done.coordinator, done.plan.label, tmp_path / "there")


def test_whatever_is_changed_in_a_bundle_is_found(done: SimulatedFederation, keys: Path, tmp_path: Path) -> None:
    """The planted faults that the issue names; every single byte is the verifier's own test."""
    good = issue(done.coordinator, done.plan.label, tmp_path / "good-bundle").folder

    def lines(change: Callable[[list[str]], list[str]], log: str = "h3") -> Callable[[Path], None]:
        def act(folder: Path) -> None:
            path = folder / f"logs/{log}.jsonl"
            path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

        return act

    def text(path: str, old: str, new: str) -> Callable[[Path], None]:
        def act(folder: Path) -> None:
            before = (folder / path).read_text()
            assert old in before
            (folder / path).write_text(before.replace(old, new, 1))

        return act

    faults: dict[str, tuple[Callable[[Path], None], int]] = {
        "an entry edited": (lines(lambda all_: [*all_[:5], all_[5].replace('"round":1', '"round":3'), *all_[6:]]), 1),
        "an entry deleted": (lines(lambda all_: all_[:5] + all_[6:]), 1),
        "an entry inserted": (lines(lambda all_: [*all_[:5], all_[5], *all_[5:]]), 1),
        "two entries swapped": (lines(lambda all_: [*all_[:5], all_[6], all_[5], *all_[7:]]), 1),
        "a log truncated": (lines(lambda all_: all_[:-3]), 1),
        "the coordinator's log truncated": (lines(lambda all_: all_[:-1], COORDINATOR), 1),
        "a field of the report": (text("report/report.json", '"title":"A simulated study"', '"title":"Another"'), 1),
        "a word of the report": (text("report/report.html", "A simulated study", "Another study"), 1),
        "the plan": (text("plan.json", "A simulated study", "Another study"), 1),
        "a record of a round": (text("rounds/0002.json", '"SILENT"', '"LATE"'), 1),
        "no log of one hospital": (lambda folder: (folder / "logs/h4.jsonl").unlink(), 2),
        "no receipts": (lambda folder: (folder / "receipts.json").unlink(), 2),
    }
    for name, (plant, expected) in faults.items():
        bad = tmp_path / "bad-bundle"
        shutil.copytree(good, bad)
        plant(bad)
        code, said = verdict(bad, keys)
        assert code == expected, f"{name}: {said}"
        shutil.rmtree(bad)


def test_what_mlflow_shows_is_compared(done: SimulatedFederation, keys: Path, tmp_path: Path) -> None:
    folder = issue(done.coordinator, done.plan.label, tmp_path / "a-bundle").folder
    copies = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert verdict(folder, keys, copies=copies)[0] == 0
    assert verdict(folder, keys, copies=copies | {"report/report.html": b"all is well"})[0] == 1
    del copies["report/report.html"]
    assert verdict(folder, keys, copies=copies)[0] == 2


# --- audit-watch -----------------------------------------------------------------------------------------
@dataclass
class Copy:
    """A coordinator's home of its own, to be spoilt."""

    coordinator: Coordinator
    study: studies.Study


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFederation:
    federation = make_federation(
        tmp_path_factory.mktemp("short") / "home", {f"h{n}": work_of(n) for n in (1, 2, 3)}, parameters=PARAMETERS,
        rounds=3,
    )  # fmt: skip

    async def story(driver: StudyDriver) -> None:
        driver.record_consents()
        await one_round(driver, 1)
        await one_round(driver, 2)

    run(federation, story)
    return federation


def copied(federation: SimulatedFederation, to: Path) -> Copy:
    home = federation.coordinator.home
    federation.coordinator.store.dispose()  # the write-ahead log goes into the database
    shutil.copytree(home, to, ignore=shutil.ignore_patterns("hospitals", "evidence"))
    settings = to / "coordinator.toml"
    settings.write_text(settings.read_text().replace(str(home), str(to)))
    return Copy(load(to), federation.study)


@pytest.fixture
def fresh(short: SimulatedFederation, tmp_path: Path) -> Copy:
    return copied(short, tmp_path / "home")


def test_witnesses_of_other_studies_are_not_in_it(fresh: Copy) -> None:
    """Two studies share the coordinator's log; found by reading: the bundle could not be written."""
    with writing(fresh.coordinator.store) as connection:
        head = witnessed.every_head(connection, COORDINATOR)[-1]
        public, other = fresh.coordinator.key.public, SigningIdentity.generate()
        said = Cosignature.sign(head, public, "elsewhere", other, fresh.coordinator.now())
        witnessed.keep_cosignature(connection, COORDINATOR, head.size, said)
    issued = issue(fresh.coordinator, fresh.study.label)
    assert all("elsewhere" not in said for said in issued.bundle.logs[COORDINATOR].cosignatures.values())
    assert any("h1" in said for said in issued.bundle.logs[COORDINATOR].cosignatures.values())


def database(federation: Copy) -> Path:
    return Path(federation.coordinator.settings.store.removeprefix("sqlite:///"))


def spoil(federation: Copy, *statements: str) -> None:
    with sqlite3.connect(database(federation)) as db:
        for statement in statements:
            assert db.execute(statement).rowcount >= 1, statement
    db.close()


def test_sound_logs_are_found_sound_and_the_newest_head_is_kept_beside_them(fresh: Copy) -> None:
    found = look(fresh.coordinator)
    assert {one.party: one.code for one in found} == {COORDINATOR: None, "h1": None, "h2": None, "h3": None}
    assert (fresh.coordinator.home / HIGH_WATER).stat().st_mode & 0o777 == 0o600
    assert incident_lines(fresh.coordinator)[0].startswith("no incident")
    assert {one.code for one in look(fresh.coordinator)} == {None}


SPOILT: dict[str, tuple[str, tuple[str, ...]]] = {
    "an entry of ours edited": (
        COORDINATOR, ("UPDATE audit SET leaf = CAST(replace(leaf, 'coordin', 'c0ordin') AS BLOB) WHERE sequence = 2",)
    ),
    "an entry of ours deleted": (COORDINATOR, ("DELETE FROM audit WHERE sequence = 3",)),
    "the end of our log deleted": (
        COORDINATOR,
        (
            "DELETE FROM audit WHERE sequence > 6",
            "DELETE FROM tree WHERE log = 'coordinator' AND (position + 1) << level > 6",
        ),
    ),
    "a node of our tree": (
        COORDINATOR, ("UPDATE tree SET hash = zeroblob(32) WHERE log = 'coordinator' AND level = 1 AND position = 0",)
    ),
    "an entry of a hospital edited": (
        "h2", ("UPDATE entries SET leaf = CAST(replace(leaf, 'plan', 'palm') AS BLOB) "
               "WHERE log LIKE '%/h2/%' AND sequence = 1",)
    ),
    "a hash of a hospital's entry lost": (
        "h2", ("DELETE FROM entries WHERE log LIKE '%/h2/%' AND sequence = 4",
               "DELETE FROM tree WHERE log LIKE '%/h2/%' AND level = 0 AND position = 3")
    ),
    "a head of a hospital in another's name": (
        "h2", ("UPDATE heads SET checkpoint = replace(checkpoint, 'h2', 'h3') WHERE log LIKE '%/h2/%'",)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("party", "statements"), SPOILT.values(), ids=SPOILT)
def test_what_somebody_changes_in_the_database_is_found_and_stops_rounds(
    fresh: Copy, party: str, statements: tuple[str, ...]
) -> None:
    look(fresh.coordinator)
    spoil(fresh, *statements)
    assert {one.party for one in look(fresh.coordinator) if one.code} == {party}
    with reading(fresh.coordinator.store) as connection:
        assert {one.log for one in witnessed.open_ones(connection)} == {party}
    assert "OPEN: no round starts" in "\n".join(incident_lines(fresh.coordinator))
    again = len(incident_lines(fresh.coordinator))
    look(fresh.coordinator)
    assert len(incident_lines(fresh.coordinator)) == again, "the same finding is one incident"


def test_yesterdays_database_is_found_by_the_head_that_was_kept_beside_it(fresh: Copy) -> None:
    path = database(fresh)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    yesterday = path.read_bytes()
    issue(fresh.coordinator, fresh.study.label)
    look(fresh.coordinator)
    fresh.coordinator.store.dispose()
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(yesterday)
    found = {one.party: one.code for one in look(fresh.coordinator)}
    assert found[COORDINATOR] == "LOG_SHRUNK"


def test_of_two_looks_at_once_the_later_head_stays(fresh: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by review: the look that began first ended last and lowered the mark, and a restored copy passed."""
    mark, seen = fresh.coordinator.home / HIGH_WATER, list[int]()
    real = watch._look_at

    def look_at(*arguments: Any) -> Any:
        found = real(*arguments)
        if not seen:
            seen.append(1)
            issue(fresh.coordinator, fresh.study.label)  # the log goes on, and another look sees that
            look(fresh.coordinator)
            seen.append(Checkpoint.model_validate_json(mark.read_bytes()).size)
        return found

    monkeypatch.setattr(watch, "_look_at", look_at)
    look(fresh.coordinator)
    assert Checkpoint.model_validate_json(mark.read_bytes()).size == seen[1]


def test_a_mark_that_was_edited_is_an_incident_and_the_others_are_judged(fresh: Copy) -> None:
    (fresh.coordinator.home / HIGH_WATER).write_text("{}")
    found = {one.party: one.code for one in look(fresh.coordinator)}
    assert found == {COORDINATOR: "LOG_INCONSISTENT", "h1": None, "h2": None, "h3": None}


def test_a_node_that_is_gone_from_a_tree_is_found(fresh: Copy) -> None:
    with sqlite3.connect(database(fresh)) as db:
        assert db.execute("DELETE FROM tree WHERE log = 'coordinator' AND level = 1 AND position = 0").rowcount == 1
    db.close()
    assert {one.party: one.code for one in look(fresh.coordinator)}[COORDINATOR] == "LOG_INCONSISTENT"


def test_an_incident_is_closed_by_a_person_and_both_are_entries(fresh: Copy) -> None:
    look(fresh.coordinator)
    spoil(fresh, *SPOILT["an entry of a hospital edited"][1])
    look(fresh.coordinator)
    with pytest.raises(witnessed.NoSuchIncident, match="no incident 7"):
        close(fresh.coordinator, 7, "ACCEPTED")
    close(fresh.coordinator, 1, "RESTORED_BACKUP")
    with reading(fresh.coordinator.store) as connection:
        said = [read_leaf(leaf).event.event for leaf in audit.leaves(connection)][-2:]
        assert not list(witnessed.open_ones(connection))
    assert said == ["incident-opened", "incident-closed"]
    assert "closed" in "\n".join(incident_lines(fresh.coordinator))


# --- retention -------------------------------------------------------------------------------------------
def test_what_a_finished_study_no_longer_needs_is_removed_with_a_receipt(
    done: SimulatedFederation, tmp_path: Path
) -> None:
    coordinator, study = copied(done, tmp_path / "home").coordinator, done.study
    files = [path for path in (coordinator.home / "blobs").rglob("*") if path.is_file()]
    (purge,) = retention.purge(coordinator)
    left = [path for path in (coordinator.home / "blobs").rglob("*") if path.is_file()]
    assert len(files) - len(left) == purge.files > 20, "every vector, and the models in between"
    with reading(coordinator.store) as connection:
        last = read_leaf(audit.leaves(connection)[-1]).event
    assert (last.event, last.files, last.bytes) == ("data-purged", purge.files, purge.bytes)  # type: ignore[union-attr]
    assert retention.purge(coordinator) == [], "again is harmless"
    last_model = issue(coordinator, study.label).bundle.rounds[-1].model_out
    for digest in (study.model.initial.digest, last_model.digest):
        assert coordinator.blobs.size(digest), "the first and the last model stay"
    assert retention.due(coordinator) == []
    end = retention.last_day(study)
    later = coordinator.now() + (end - coordinator.now().date()) + timedelta(days=1)
    assert retention.due(replace(coordinator, now=lambda: later)) == [(study.label, end)]


def test_a_study_that_is_under_way_keeps_everything(fresh: Copy) -> None:
    assert retention.purge(fresh.coordinator) == []


# --- officers --------------------------------------------------------------------------------------------
def test_an_officer_signs_one_exact_bundle(done: SimulatedFederation, tmp_path: Path) -> None:
    bundle = issue(done.coordinator, done.plan.label, tmp_path / "a-bundle")
    public = make_key(tmp_path / "anna.key")
    assert (tmp_path / "anna.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        make_key(tmp_path / "anna.key")
    decision = decide(bundle.folder, "release")
    assert (decision.round, decision.model) == (ROUNDS, bundle.bundle.rounds[-1].model_out.digest)
    with reading(done.coordinator.store) as connection:
        evidence = latest_evidence(connection, done.study.study)
        assert latest_decision(connection, done.study.study) is None
    assert evidence is not None
    assert evidence.manifest == decision.manifest
    signature = decode_base64(signed(decision, tmp_path / "anna.key"))
    decision.check(signature, PublicIdentity(public))
    with pytest.raises(BadSignature):
        decision.model_copy(update={"choice": "reject"}).check(signature, PublicIdentity(public))
    with pytest.raises(MalformedMessage, match="not a bundle"):
        decide(tmp_path, "release")
    (bundle.folder / "manifest.json").write_text('{"study":"another-00000000"}')
    with pytest.raises(MalformedMessage, match="holds rounds of"):
        decide(bundle.folder, "release")


def test_the_log_is_where_a_decision_is_found(fresh: Copy) -> None:
    from compliance.events import ReleaseDecided

    digest = fresh.study.plan_digest
    event = ReleaseDecided(
        study=fresh.study.study, round=2, model=digest, manifest=digest, decision="reject",
        officer=fresh.coordinator.key.public.fingerprint,
    )  # fmt: skip
    with writing(fresh.coordinator.store) as connection:
        audit.append(connection, event, actor=COORDINATOR, now=fresh.coordinator.now())
        assert latest_decision(connection, fresh.study.study) == event
        assert latest_decision(connection, "other-00000000") is None
