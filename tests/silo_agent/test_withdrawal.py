"""Somebody withdraws consent: who sees them from when on, what is recorded, and that nobody can read who it was."""

import asyncio
import base64
import hashlib
import hmac
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from silo_agent_tests_benches import Relay, codes, table_of
from silo_agent_tests_one_hospital import DATASET_DIGEST, NEXT_MODEL, OTHERS, SILO
from typer.testing import CliRunner

from boundary.canonical import digest
from boundary.messages import StudyClosed
from boundary.plan import study_id
from compliance.events import IntakeCounted, LateUpdateOffered, PatientWithdrawn, TrainingStarted, WithdrawalEffective
from compliance.trail import read_leaf
from infra.hospitals.writing import Identity, LabelRow, write_image, write_labels
from silo_agent import trainer
from silo_agent.cli import app
from silo_agent.errors import ConfigError, ContractNotMet, RelayRefused, WorkCancelled
from silo_agent.exposure import exposures_of
from silo_agent.intake import reading
from silo_agent.intake.archive import LocalFile
from silo_agent.intake.cache import load_cache
from silo_agent.intake.erasing import GONE
from silo_agent.intake.split import coin, patient_ref
from silo_agent.intake.withdrawn import REFERENCE, reference_of
from silo_agent.journal import Journal
from silo_agent.personal import own_rows
from silo_agent.results import MODEL, ROW, carried
from silo_agent.steward import approve
from silo_agent.withdrawal import finish, master_key, withdraw
from silo_agent.withdrawal_view import lines

MRNS = [f"MRN-77-{4200 + number}" for number in range(10)]


def pixels_of(number: int) -> int:
    return 10 + 20 * number  # in HU; the plan's window maps [-200, 300] to [0, 1]


def write_archive(folder: Path, who: list[str] = MRNS) -> None:
    """Two images of each patient, of one intensity that tells whose they are. No path names anybody."""
    rows = []
    for number, patient in enumerate(who):
        for image in (1, 2):
            identity = Identity(SILO, patient, image=image)
            pixels = np.full((12, 10), pixels_of(number) + image, dtype=np.int16)
            write_image(folder / "dicom" / f"{number}-{image}.dcm", pixels, identity=identity, modality="CT")
            rows.append(LabelRow(identity, str(number % 2)))
    write_labels(folder / "labels.csv", "contrast", rows)


class Child:
    """In the place of the worker: scans as the child does, and remembers whose images each training was given."""

    pid = None

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.before: Callable[[str], object] = lambda _do: None
        self.after: Callable[[str], object] = lambda _do: None
        self.given: list[set[str]] = []
        self.numbers = 4  # in a training's vector

    def progress(self, _step: int, _steps: int) -> None:
        pass

    def rest(self, _seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")

    async def run(self, command: dict[str, Any], _on_progress: object) -> Any:
        command = json.loads(json.dumps(command))
        self.asked.append(command)
        self.before(command["do"])
        said: dict[str, Any] = {}
        match command["do"]:
            case "scan":
                said = trainer._scan(command, self)  # type: ignore[arg-type]
            case "train" | "evaluate":
                self.given.append(in_cache(Path(command["cache"]), holdout=command["do"] == "evaluate"))
                out = Path(command["out"])
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_bytes(bytes(8 * self.numbers + 4 * 7))
                said = {"parameters": 7, "metrics": 3 * (command["do"] == "evaluate")}
            case "personalise":
                out = Path(command["out"])
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_bytes(bytes(8 * 12))
                out.with_suffix(MODEL).write_bytes(b"our own")
                out.with_suffix(ROW).write_text("{}")
                said = {"parameters": 7, "metrics": 0}
        self.after(command["do"])
        return said


def in_cache(cache: Path, *, holdout: bool) -> set[str]:
    """Whose images a round gets, by their pixels."""
    arrays, _ = load_cache(cache)
    rows = np.flatnonzero((arrays.holdout == holdout) & ~arrays.withdrawn)
    values = np.rint(arrays.images[rows].max(axis=(1, 2, 3)) * 500 - 200).astype(int)
    return {MRNS[(value - pixels_of(0)) // 20] for value in values}


class Ward:
    """A hospital with an archive of its own, whose plan was scanned for real."""

    def __init__(self, site: Any, folder: Path) -> None:
        self.site, self.child, self.archive = site, Child(), folder
        site.allow(dicom=folder / "dicom", labels=folder / "labels.csv")
        site.propose()

    @property
    def cache(self) -> Path:
        cache: Path = self.site.folder.cache / self.site.study
        return cache

    @property
    def journal(self) -> Journal:
        journal: Journal = self.site.journal
        return journal

    def work(self) -> None:
        """The next thing there is to do."""
        asyncio.run(table_of(self.site, self.child, Relay()).do_next())  # type: ignore[arg-type]

    def approve(self) -> None:
        self.work()
        approve(self.journal, self.site.folder, self.site.outbound, self.site.study, "data_steward", "a test")

    def draw_key_until_the_coins_are_on_both_sides(self) -> None:
        """With a guarantee nobody is moved for others' sake, and of ten coins some keys hold nobody out."""
        share = self.site.plan.dataset.holdout_share
        for number in range(256):
            master = bytes([number]) * 32
            key = trainer.study_key(master, self.site.study)
            if len({coin(key, patient_ref(key, patient)) < share for patient in MRNS}) == 2:
                self.site.folder.dataset_key_file.write_bytes(master)
                return

    def train(self, number: int = 1, phase: str = "train", attempt: int = 1) -> set[str]:
        self.site.ordered(number, phase, attempt)
        before = len(self.child.given)
        self.work()
        assert len(self.child.given) == before + 1, codes(self.site)
        return self.child.given[-1]

    def commit(self, number: int = 1, contributing: tuple[str, ...] = (SILO, *OTHERS)) -> None:
        self.site.hear(self.site.committed(number, contributing=contributing))

    def withdraw(self, patient: str, decision: str = "keep") -> Any:
        return withdraw(self.journal, self.site.folder, patient, decision, self.site.now)  # type: ignore[arg-type]

    def told(self, patient: str) -> list[Any]:
        found, _ = self.withdraw(patient)
        return exposures_of(self.journal, master_key(self.site.folder), SILO, found)

    def events(self, *kinds: type) -> list[Any]:
        found = [read_leaf(leaf).event for leaf in self.journal.trail()]
        return [event for event in found if isinstance(event, kinds)]

    def one(self, *, holdout: bool) -> str:
        return min(in_cache(self.cache, holdout=holdout))


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder)
    return folder


@pytest.fixture
def proposed(site: Any, archive: Path) -> Ward:
    return Ward(site, archive)


@pytest.fixture
def ward(proposed: Ward) -> Ward:
    """With an approved study that has patients on both sides: the split hangs on a random key."""
    proposed.approve()
    return proposed


@pytest.fixture
def remembered(proposed: Ward, monkeypatch: pytest.MonkeyPatch) -> Ward:
    """As `ward`, of an archive that has not changed for long, so that its scan remembers every file."""
    monkeypatch.setattr(reading, "SETTLED_SECONDS", -3600.0)
    proposed.approve()
    return proposed


def in_index(ward: Ward) -> set[str]:
    """Whose files the agent's scans remember, by reference."""
    with closing(sqlite3.connect(ward.site.folder.index)) as db:
        return {patient for (patient,) in db.execute("SELECT patient FROM files")}


def references(ward: Ward, who: list[str] = MRNS) -> set[str]:
    return {reference_of(master_key(ward.site.folder), patient) for patient in who}


def rows_of(cache: Path, patient: str) -> tuple[list[int], list[int]]:
    """(rows of this patient, all others)."""
    arrays, _ = load_cache(cache)
    values = np.rint(arrays.images.max(axis=(1, 2, 3)) * 500 - 200).astype(int)
    hers = (values - pixels_of(0)) // 20 == MRNS.index(patient)
    return [*np.flatnonzero(hers)], [*np.flatnonzero(~hers)]


def kill() -> None:
    raise KeyboardInterrupt


# --- the hospital's own model -------------------------------------------------------------------------
@pytest.mark.parametrize("decision", ["keep", "retire"])
def test_what_is_decided_of_the_models_holds_for_the_hospitals_own_after_a_kill_too(
    make_site: Any, archive: Path, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward = Ward(make_site(changes={"training__rounds": 1, "personalisation": {}}), archive)
    ward.draw_key_until_the_coins_are_on_both_sides()
    ward.approve()
    ward.train()
    ward.commit()
    ward.site.ordered(2, "personalise", model=NEXT_MODEL)
    ward.work()
    assert [one.study for one in own_rows(ward.site.folder)] == [ward.site.study]
    who = ward.one(holdout=False)
    with monkeypatch.context() as patched:
        patched.setattr("silo_agent.withdrawal.forget_after_withdrawals", lambda *_: kill())
        with pytest.raises(KeyboardInterrupt):
            ward.withdraw(who, decision)
    assert own_rows(ward.site.folder)
    finish(ward.journal, ward.site.folder, ward.site.now)
    found, _ = ward.withdraw(who, decision)
    assert len(own_rows(ward.site.folder)) == (decision == "keep")
    fate = "stays" if decision == "keep" else "was removed, with its figures"
    said = lines(exposures_of(ward.journal, master_key(ward.site.folder), SILO, found))
    assert f"  this hospital's own model was trained with them, and {fate}" in said


# --- what is recorded --------------------------------------------------------------------------------
def test_the_shared_log_names_the_private_entry_which_names_a_hash(ward: Ward) -> None:
    who = ward.one(holdout=False)
    found, new = ward.withdraw(who, "retrain")
    ((leaf,),) = ward.journal._db.execute("SELECT leaf FROM private_trail").fetchall()
    master = (ward.site.root / "dataset.key").read_bytes()
    reference = hmac.new(master, b"wardround withdrawn v1\x00" + who.encode(), hashlib.sha256).hexdigest()
    assert REFERENCE == b"wardround withdrawn v1\x00"
    assert new
    assert json.loads(leaf)["reference"] == reference
    assert len(base64.b64decode(json.loads(leaf)["salt"])) == 16
    assert [event.model_dump() for event in ward.events(PatientWithdrawn, WithdrawalEffective)] == [
        {"private": digest(leaf)},
        {"study": ward.site.study, "round": 1, "private": digest(leaf), "decision": "retrain"},
    ]
    assert found.private == digest(leaf)


def test_the_private_entry_can_be_erased_and_the_shared_log_still_verifies(ward: Ward) -> None:
    ward.withdraw(ward.one(holdout=False))
    root = ward.journal.trail_root(ward.journal.trail_size)
    ward.journal._db.execute("UPDATE private_trail SET leaf = NULL")
    assert ward.journal.trail_root(ward.journal.trail_size) == root
    assert ward.withdraw(MRNS[0])[0].sequence in {1, 2}


def test_withdrawing_again_changes_nothing_and_the_first_decision_stands(ward: Ward) -> None:
    who = ward.one(holdout=False)
    first, new = ward.withdraw(who, "retire")
    size = ward.journal.trail_size
    again, newer = ward.withdraw(f" {who} ", "keep")  # blanks are no part of a Patient ID
    assert (new, newer, again.private, ward.journal.trail_size) == (True, False, first.private, size)
    assert ward.told(who)[0].effect.decision == "retire"


@pytest.mark.parametrize("what", ["", "  ", "\0", "caf\udce9"])
def test_what_is_no_patient_id_is_refused_and_not_repeated(ward: Ward, what: str) -> None:
    with pytest.raises(ConfigError) as why:
        ward.withdraw(what)
    assert "caf" not in str(why.value)
    assert ward.journal.private.last == 0


def test_a_patient_nobody_knows_is_recorded_and_refused_when_their_files_come(make_site: Any, tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", MRNS[:8])
    ward = Ward(make_site(), tmp_path / "archive")
    ward.work()
    ward.withdraw(MRNS[9])
    assert (ward.told(MRNS[9]), ward.events(WithdrawalEffective)) == ([], [])
    assert "compare the ID with Patient ID" in lines([])[0]
    write_archive(tmp_path / "archive")
    ward.journal.set_plan(ward.site.study, "received")
    ward.work()
    report = json.loads((ward.cache / "report.json").read_text())
    assert (report["refused"], report["used"]) == ({"WITHDRAWN": 2}, 18)


# --- who sees them -----------------------------------------------------------------------------------
@pytest.mark.parametrize("holdout", [False, True], ids=["trained on", "held back"])
def test_the_images_are_zeros_on_disk_and_nobody_computes_from_them(ward: Ward, *, holdout: bool) -> None:
    who = ward.one(holdout=holdout)
    hers, others = rows_of(ward.cache, who)
    approved, before = ward.journal.plan(ward.site.study), np.load(ward.cache / "images.npy")
    sides = {side: in_cache(ward.cache, holdout=side) for side in (False, True)}
    ward.withdraw(who)
    after = np.load(ward.cache / "images.npy")
    assert len(hers) == 2
    assert before[hers].any()
    assert not after[hers].any()
    assert not np.load(ward.cache / "labels.npy")[hers].any()
    assert (after[others] == before[others]).all()
    assert (ward.cache / "images.npy").stat().st_mode & 0o077 == (ward.cache / GONE).stat().st_mode & 0o077 == 0
    assert ward.journal.plan(ward.site.study) == approved, "the approval stays valid"
    for side, people in sides.items():
        assert in_cache(ward.cache, holdout=side) == people - {who}
    assert ward.train() == sides[False] - {who}
    assert ward.train(phase="evaluate") == sides[True] - {who}


def test_the_child_takes_no_row_of_theirs(ward: Ward) -> None:
    from silo_agent.local_round import LocalRound

    work = LocalRound(ward.site.plan, None, ward.cache, Path(), Path(), "cpu")  # type: ignore[arg-type]
    before = {side: len(work.data(holdout=side)) for side in (False, True)}
    ward.withdraw(ward.one(holdout=False))
    data = work.data(holdout=False)
    assert (len(data), len(work.data(holdout=True))) == (before[False] - 2, before[True])
    assert data.images.any(axis=(1, 2, 3)).all()


def test_a_training_under_way_may_finish_and_the_next_round_is_without(ward: Ward) -> None:
    who = ward.one(holdout=False)
    ward.child.after = lambda do: ward.withdraw(who) if do == "train" else None
    assert who in ward.train(1)
    assert codes(ward.site) == ["ready"], "the round goes on"
    assert ward.events(WithdrawalEffective)[0].round == 2
    ward.commit(1)
    assert who not in ward.train(2)


LATE = {"selection": {"late": "next-round"}, "training__weighting": "equal"}


@pytest.fixture
def late_ward(make_site: Any, archive: Path) -> Ward:
    """Whose training of round 1 was ready too late, and may go into round 2."""
    ward = Ward(make_site(changes=LATE), archive)
    ward.child.numbers = 5
    ward.approve()
    ward.train(1)
    ward.site.hear(ward.site.closing(ward.site.kept(1), members=OTHERS, absent=(SILO,)))
    ward.commit(1, OTHERS)
    return ward


def test_what_came_too_late_is_thrown_away_when_somebody_withdraws_before_it_is_offered(late_ward: Ward) -> None:
    who = late_ward.one(holdout=False)
    waiting = late_ward.site.folder.work / late_ward.site.study
    assert [*waiting.glob("0001-train-*")]
    late_ward.withdraw(who)
    assert not [*waiting.glob("0001-train-*")], "at once, not when the next order comes"
    assert who not in late_ward.train(2), "it is trained anew, without them"
    assert late_ward.events(LateUpdateOffered) == []
    assert [one.round for one in late_ward.events(WithdrawalEffective)] == [2]


def test_what_came_too_late_is_among_the_models_that_a_patient_is_in(late_ward: Ward) -> None:
    who = late_ward.one(holdout=False)
    late_ward.site.ordered(2)
    late_ward.work()
    assert [(one.made_in, one.round) for one in late_ward.events(LateUpdateOffered)] == [(1, 2)]
    (told,) = late_ward.told(who)
    assert (told.effect.round, told.rounds, told.under_way) == (3, (1, 2), (2,)), "round 2 had begun with them"
    late_ward.commit(2)
    (told,) = late_ward.told(who)
    assert [number for number, _ in told.models] == [2], "of round 1 nothing of ours is in the model"
    assert who not in late_ward.train(3)


def test_what_was_ordered_and_not_begun_is_without_them_already(ward: Ward) -> None:
    who = ward.one(holdout=False)
    ward.site.ordered(1)
    ward.child.before = lambda do: ward.withdraw(who) if do == "check" else None
    ward.withdraw(who)
    ward.work()
    assert who not in ward.child.given[-1]
    assert ward.events(WithdrawalEffective)[0].round == 1


def test_counting_images_is_no_round_that_saw_them(ward: Ward) -> None:
    who, about = ward.one(holdout=False), {"study": ward.site.study, "round": 1, "order": DATASET_DIGEST, "start": 1}
    with ward.journal.transaction():
        ward.journal.record(TrainingStarted(phase="statistics", **about), ward.site.now)  # type: ignore[arg-type]
    (told,) = ward.told(who)
    assert (told.effect.round, told.counted, told.rounds) == (1, True, ())
    assert "in the study's intensity statistics" in "\n".join(lines([told]))
    assert not ward.told(ward.one(holdout=True))[0].counted


def test_a_round_that_was_over_is_followed_by_the_next(ward: Ward) -> None:
    ward.train(1)
    ward.commit(1)
    ward.commit(2, contributing=OTHERS)
    ward.withdraw(ward.one(holdout=False))
    assert ward.events(WithdrawalEffective)[0].round == 3


# --- scans -------------------------------------------------------------------------------------------
def test_a_lost_scan_made_anew_is_the_same_data_without_their_images(ward: Ward) -> None:
    who = ward.one(holdout=False)
    before = (ward.cache / "report.json").read_bytes()
    everybody = in_cache(ward.cache, holdout=False)
    ward.withdraw(who)
    masked = {file.name: file.read_bytes() for file in ward.cache.iterdir()}
    shutil.rmtree(ward.cache)
    assert ward.train() == everybody - {who}
    assert (ward.cache / "report.json").read_bytes() == before
    assert {file.name: file.read_bytes() for file in ward.cache.iterdir()} == masked
    assert ward.child.asked[-2]["withdrawn"]["before"] == []
    assert len(ward.child.asked[-2]["withdrawn"]["after"]) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_somebody_who_withdraws_while_approved_data_are_scanned_anew_is_not_trained_on(ward: Ward, when: str) -> None:
    who = ward.one(holdout=False)
    shutil.rmtree(ward.cache)
    setattr(ward.child, when, lambda do: ward.withdraw(who) if do == "scan" else None)
    assert who not in ward.train()
    assert ward.told(who)[0].effect.round == 1
    assert not np.load(ward.cache / "images.npy")[load_cache(ward.cache)[0].withdrawn].any()
    assert load_cache(ward.cache)[0].withdrawn.sum() == 2


def test_what_such_a_scan_left_is_erased_though_no_training_follows(ward: Ward) -> None:
    who = ward.one(holdout=False)
    shutil.rmtree(ward.cache)
    ward.child.before = lambda do: ward.withdraw(who) if do == "scan" else None
    ward.site.ordered(1)
    no_model = Relay(RelayRefused(404, "UNKNOWN_BLOB", "gone"))
    asyncio.run(table_of(ward.site, ward.child, no_model).do_next())  # type: ignore[arg-type]
    assert codes(ward.site) == ["MODEL_UNAVAILABLE"]
    assert who not in in_cache(ward.cache, holdout=False)


@pytest.mark.parametrize("when", ["before", "after"])
def test_somebody_who_withdraws_during_the_first_scan_is_not_in_the_data(proposed: Ward, when: str) -> None:
    setattr(proposed.child, when, lambda do: proposed.withdraw(MRNS[3]) if do == "scan" else None)
    proposed.work()
    assert proposed.journal.plan(proposed.site.study).state == "received"  # type: ignore[union-attr]
    proposed.work()
    assert proposed.journal.plan(proposed.site.study).state == "scanned"  # type: ignore[union-attr]
    assert MRNS[3] not in in_cache(proposed.cache, holdout=False) | in_cache(proposed.cache, holdout=True)
    assert json.loads((proposed.cache / "report.json").read_text())["refused"] == {"WITHDRAWN": 2}
    assert (proposed.told(MRNS[3]), proposed.events(WithdrawalEffective)) == ([], [])
    (counted,) = proposed.events(IntakeCounted)
    assert (counted.used, counted.excluded) == (20, {}), "the code would tell that somebody withdrew"


def test_a_plan_that_was_only_scanned_is_scanned_again_before_it_can_be_approved(proposed: Ward) -> None:
    proposed.work()
    who = proposed.one(holdout=False)
    proposed.withdraw(who)
    with pytest.raises(ContractNotMet, match="still checking"):
        approve(proposed.journal, proposed.site.folder, proposed.site.outbound, proposed.site.study, "r", "a test")
    proposed.approve()
    assert who not in proposed.train()
    assert proposed.journal.plan(proposed.site.study).dataset_digest != DATASET_DIGEST  # type: ignore[union-attr]


def test_a_scan_that_says_not_whom_it_is_of_is_not_believed(proposed: Ward) -> None:
    proposed.child.after = lambda do: (proposed.cache / "known.bin").unlink() if do == "scan" else None
    proposed.work()
    assert proposed.journal.plan(proposed.site.study).state == "unsuitable"  # type: ignore[union-attr]


@pytest.mark.parametrize("file", ["known.bin", "withdrawn.bin", "patients.npy", "images.npy"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_scan_is_removed_and_made_anew_without_them(ward: Ward, file: str, how: str) -> None:
    who = ward.one(holdout=False)
    data = (ward.cache / file).read_bytes()
    (ward.cache / file).unlink()
    if how == "cut":
        (ward.cache / file).write_bytes(data[: len(data) // 3])
    ward.withdraw(who)
    assert not ward.cache.exists()
    assert who not in ward.train()


def test_a_command_that_was_killed_is_completed_by_the_running_agent(ward: Ward) -> None:
    who = ward.one(holdout=False)
    images = (ward.cache / "images.npy").read_bytes()
    ward.withdraw(who)
    (ward.cache / "images.npy").write_bytes(images)
    (ward.cache / GONE).write_bytes(bytes(20))
    ward.journal._db.execute("UPDATE withdrawn SET erased_at = NULL")
    ward.work()
    assert who not in in_cache(ward.cache, holdout=False)


def test_a_scan_of_a_killed_agent_that_takes_its_place_late_is_not_trained_on(ward: Ward) -> None:
    """Found by reading: the child outlives its agent for some seconds, and knows nothing of who withdrew since."""
    who = ward.one(holdout=False)
    images = (ward.cache / "images.npy").read_bytes()
    ward.withdraw(who)

    def late(do: str) -> None:
        if do != "train":
            (ward.cache / "images.npy").write_bytes(images)
            (ward.cache / GONE).write_bytes(bytes(20))

    late("scan")
    ward.child.after = late
    assert who not in ward.train()


# --- what is answered --------------------------------------------------------------------------------
def test_rounds_and_models_that_saw_the_patient_are_named(ward: Ward) -> None:
    who, other = ward.one(holdout=False), ward.one(holdout=True)
    ward.train(1)
    ward.train(1, "evaluate")
    ward.commit(1)
    ward.train(2)
    ward.commit(2, contributing=OTHERS)
    ward.train(3)
    (told,) = ward.told(who)
    model = ward.site.committed(1).model.digest
    assert (told.holdout, told.rounds, told.models, told.under_way) == (False, (1, 2, 3), ((1, model),), (3,))
    assert told.effect.round == 4
    (held,) = ward.told(other)
    assert (held.holdout, held.rounds, held.models, held.under_way) == (True, (1,), (), ())
    ward.commit(3)
    assert ward.told(who)[0].models == ((1, model), (3, model)), "what was under way went into a model"
    ward.site.hear(StudyClosed(study=ward.site.study, code="COMPLETED"))
    assert not ward.cache.exists()
    assert ward.told(who)[0].models == ((1, model), (3, model))
    assert ward.told(who)[0].state == "closed"


def test_a_study_that_is_over_is_answered_for_too_and_the_decision_recorded(ward: Ward) -> None:
    who = ward.one(holdout=False)
    ward.train(1)
    ward.commit(1)
    ward.site.hear(StudyClosed(study=ward.site.study, code="COMPLETED"))
    ward.withdraw(who, "retrain")
    text = "\n".join(lines(ward.told(who)))
    assert "model of round 1: sha256:" in text
    assert "train again from the last model before round 1" in text
    assert ward.events(WithdrawalEffective)[0].decision == "retrain"


def test_a_guarantee_is_said_to_bound_what_models_tell_and_nothing_is_refunded(
    make_site: Any, archive: Path, private: Any
) -> None:
    site = make_site(most_patients=100, changes=private())
    ward = Ward(site, archive)
    ward.draw_key_until_the_coins_are_on_both_sides()
    ward.approve()
    who = ward.one(holdout=False)
    ward.train(1)
    ward.commit(1)
    spent = ward.journal._db.execute("SELECT * FROM budget").fetchall()
    asked = ward.child.asked[-1]["private"]
    ward.withdraw(who)
    assert ward.journal._db.execute("SELECT * FROM budget").fetchall() == spent != []
    assert "bounds what these models can tell" in "\n".join(lines(ward.told(who)))
    assert who not in ward.train(2)
    assert {name: asked[name] for name in ("rate", "denominator", "steps")} == {
        name: ward.child.asked[-1]["private"][name] for name in ("rate", "denominator", "steps")
    }


# --- what could still tell of them -------------------------------------------------------------------
def test_an_attack_that_has_one_model_measured_before_and_after_gets_no_second_sum(ward: Ward) -> None:
    """Found by thinking: the sums would differ by exactly the withdrawn patient's answers."""
    who = ward.one(holdout=True)
    ward.train(1, "evaluate")
    kept = ward.site.kept(1, "evaluate")
    identity = json.loads((Path(kept.result or "") / "result.json").read_text())["identity"]
    with ward.journal.transaction():
        ward.journal.spend(identity, kept.collection, frozenset(OTHERS))
    ward.withdraw(who)
    ward.commit(1)
    assert who not in ward.train(2, "evaluate")
    again = json.loads((Path(ward.site.kept(2, "evaluate").result or "") / "result.json").read_text())["identity"]
    assert again != identity
    assert ward.journal.spent_on(identity) == frozenset(OTHERS)
    assert ward.journal.spent_on(again) == frozenset(), "not even among the same hospitals"


def test_a_measurement_that_a_withdrawal_came_into_is_done_again(ward: Ward) -> None:
    who = ward.one(holdout=True)
    ward.child.after = lambda do: ward.withdraw(who) if do == "evaluate" else None
    assert who in ward.train(1, "evaluate")
    assert codes(ward.site) == []
    ward.work()
    assert who not in ward.child.given[-1]
    assert codes(ward.site) == ["ready"]


@pytest.mark.parametrize("what", ["residual", "home", "control"])
def test_what_was_not_sent_yet_or_is_ours_is_thrown_away_with_them(ward: Ward, what: str) -> None:
    residual = carried(ward.site.folder, ward.site.study, ".residual").with_name(what)
    ward.train(1)
    left_over = Path(ward.site.kept(1).result or "") / f"vector.{what}"
    left_over.write_bytes(b"of round 1")
    ward.commit(1)
    assert residual.read_bytes() == b"of round 1"
    ward.train(2)
    ward.withdraw(ward.one(holdout=False))
    assert not residual.exists()
    (Path(ward.site.kept(2).result or "") / f"vector.{what}").write_bytes(b"of round 2, with them")
    ward.commit(2)
    assert not residual.exists()
    ward.train(3)
    (Path(ward.site.kept(3).result or "") / f"vector.{what}").write_bytes(b"of round 3")
    ward.commit(3)
    assert residual.read_bytes() == b"of round 3"


def encodings(who: str) -> list[bytes]:
    plain = who.encode()
    alike = [plain, plain.lower(), plain[::-1], who.encode("utf-16-le"), who.encode("utf-16-be"), plain.hex().encode()]
    hashes = [hashlib.new(name, plain) for name in ("sha256", "sha1", "md5")]
    in_base64 = [base64.b64encode(bytes(shift) + plain)[4:-4] for shift in range(3)]
    return [*alike, plain.hex().upper().encode(), *in_base64, *(h.digest() for h in hashes),
            *(h.hexdigest().encode() for h in hashes)]  # fmt: skip


def found_in(root: Path, who: str) -> list[Path]:
    wanted = encodings(who)
    files = [file for file in root.rglob("*") if file.is_file()]
    return [file for file in files if any(one in file.read_bytes() for one in wanted)]


def test_the_identity_is_nowhere(ward: Ward, capfd: Any, caplog: Any) -> None:
    who = ward.one(holdout=False)
    caplog.set_level("DEBUG")
    run = CliRunner().invoke(
        app, ["withdraw", "--decision", "keep", "--state", str(ward.site.root)], input=f"{who}\n" * 2
    )
    assert run.exit_code == 0, run.output
    shutil.rmtree(ward.cache)
    ward.train(1)
    ward.commit(1)
    assert found_in(ward.site.root, who) == []
    leaving = b"".join(row[0] for row in ward.journal._db.execute("SELECT envelope FROM outbox"))
    said = (run.output + caplog.text + "".join(capfd.readouterr())).encode() + leaving
    said += json.dumps(ward.child.asked).encode()
    assert not any(one in said for one in encodings(who))
    reference = ward.journal.private.withdrawals()[0].reference
    assert reference.encode() not in leaving
    (ward.site.root / "planted").write_bytes(b"x" + base64.b64encode(b"?" + who.encode()))
    assert [file.name for file in found_in(ward.site.root, who)] == ["planted"]


def test_where_the_plan_does_not_say_so_nobody_learns_that_somebody_withdrew(ward: Ward) -> None:
    ward.withdraw(ward.one(holdout=False))
    ward.train(1)
    ward.commit(1)
    leaving = b"".join(row[0] for row in ward.journal._db.execute("SELECT envelope FROM outbox"))
    for word in (b"withdraw", base64.b64encode(b"withdraw")[:8]):
        assert word not in leaving


# --- the commands ------------------------------------------------------------------------------------
def invoke(ward: Ward, *arguments: str, typed: str = "") -> str:
    said = CliRunner().invoke(app, [*arguments, "--state", str(ward.site.root)], input=typed)
    assert said.exit_code == 0, said.output
    return said.output


def test_the_patient_is_asked_for_unseen_and_twice(ward: Ward) -> None:
    who = ward.one(holdout=False)
    said = invoke(ward, "withdraw", "--decision", "retire", typed=f"{who}\n{who}\n")
    assert who not in said
    assert "withdrawal 1: recorded" in said
    assert f"study {ward.site.study} (ct-contrast@1, approved here): trained on" in said
    assert "without them from round 1 on" in said
    assert "retire: ask the coordinator to take the study's models out of use" in said
    again = invoke(ward, "withdraw", who, "--decision", "keep")
    assert "recorded before" in again
    assert "nothing was changed now" in again


def test_a_typing_mistake_withdraws_nobody(ward: Ward) -> None:
    said = CliRunner().invoke(app, ["withdraw", "--decision", "keep", "--state", str(ward.site.root)], input="A\nB\n")
    assert said.exit_code != 0
    assert ward.journal.private.last == 0


def test_help_says_where_an_argument_ends_up() -> None:
    said = CliRunner().invoke(app, ["withdraw", "--help"], env={"COLUMNS": "200"}).output
    assert "shell's history" in said
    assert "cannot be undone" in said


def test_withdrawals_are_listed_without_saying_who(ward: Ward) -> None:
    assert "nobody has withdrawn consent" in invoke(ward, "withdrawals")
    who = ward.one(holdout=False)
    found, _ = ward.withdraw(who, "retire")
    ward.withdraw("somebody else")
    said = invoke(ward, "withdrawals")
    assert found.private in said
    assert f"{ward.site.study}" in said
    assert "retire" in said
    assert "no study here had data of them" in said
    assert who not in said
    assert found.reference not in said
    ward.journal._db.execute("UPDATE withdrawn SET erased_at = NULL")
    assert "NOT YET" in invoke(ward, "withdrawals")
    finish(ward.journal, ward.site.folder, ward.site.now)
    assert "NOT YET" not in invoke(ward, "withdrawals")


def test_two_studies_know_a_patient_by_tags_that_do_not_match(ward: Ward, make_plan_for: Any) -> None:
    ward.site.plan = make_plan_for(ward.site.cards, name="another-study")
    first, ward.site.study = ward.site.study, study_id(ward.site.plan)
    ward.site.propose()
    table = table_of(ward.site, ward.child, Relay())  # type: ignore[arg-type]
    for _ in range(2):  # the first study is warmed up before
        asyncio.run(table.do_next())
    known = [ward.journal.private.cohort(study)[1] for study in (first, ward.site.study)]
    tags = [{data[at : at + 32] for at in range(0, len(data), 33)} for data in known]
    assert len(tags[0]) == len(tags[1]) == len(MRNS)
    assert not tags[0] & tags[1]


# --- what scans remember -----------------------------------------------------------------------------
def test_what_scans_remember_of_somebody_is_gone_with_them(remembered: Ward) -> None:
    who = remembered.one(holdout=False)
    assert in_index(remembered) == references(remembered)
    remembered.withdraw(who)
    assert in_index(remembered) == references(remembered) - references(remembered, [who])
    mark = bytes.fromhex(next(iter(references(remembered, [who]))))
    data = remembered.site.folder.index.read_bytes()
    assert mark not in data
    assert mark.hex().encode() not in data


def test_a_scan_that_began_before_somebody_withdrew_leaves_nothing_of_them_in_the_index(
    proposed: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child was told whom to leave out when it began."""
    monkeypatch.setattr(reading, "SETTLED_SECONDS", -3600.0)
    proposed.child.before = lambda do: proposed.withdraw(MRNS[3]) if do == "scan" else None
    proposed.work()
    assert in_index(proposed) == references(proposed) - references(proposed, [MRNS[3]])


def test_whoever_withdraws_when_there_is_no_study_any_more_is_not_remembered_either(remembered: Ward) -> None:
    remembered.journal._db.execute("DELETE FROM plans")
    remembered.withdraw(MRNS[3])
    assert in_index(remembered) == references(remembered) - references(remembered, [MRNS[3]])


def test_a_scan_that_had_to_be_killed_leaves_nothing_with_names_in_it(proposed: Ward) -> None:
    def killed(do: str) -> None:
        if do == "scan":
            for end in ("partial", "fetched"):
                left = proposed.cache.with_name(f".{proposed.site.study}.{end}")
                left.mkdir()
                (left / "instance-x.dcm").write_bytes(MRNS[3].encode())
            raise WorkCancelled("the child was ended")

    proposed.child.before = killed
    proposed.work()
    assert [path.name for path in proposed.site.folder.cache.iterdir() if path.name != ".lock"] == []


def test_a_second_scan_opens_no_file(remembered: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that is lost is made again from what the index knows and the inputs that are there."""
    monkeypatch.setattr(LocalFile, "opened", lambda self: pytest.fail(f"{self.name} is opened"))
    before = {path.name: path.read_bytes() for path in remembered.cache.iterdir()}
    remembered.site.ordered(1)
    (remembered.cache / "report.json").unlink()
    remembered.work()
    assert codes(remembered.site) == ["ready"]
    after = {path.name: path.read_bytes() for path in remembered.cache.iterdir()}
    assert after == before
