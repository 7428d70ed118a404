"""Kill -9 at every statement of a withdrawal leaves nothing, or what the agent's next start completes."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from silo_agent_tests_benches import Mortal, kill_myself

from boundary.canonical import digest
from compliance.events import PatientWithdrawn, WithdrawalEffective
from compliance.merkle import leaf_hash, root_at
from compliance.trail import read_leaf
from silo_agent.intake.erasing import GONE, KNOWN
from silo_agent.intake.withdrawn import known_patients, reference_of, tag_of
from silo_agent.journal import Journal
from silo_agent.trainer import study_key
from silo_agent.withdrawal import finish, withdraw

WHO, OTHER = "MRN-77-4200", "MRN-77-4201"
ROWS = np.arange(1, 1 + 4 * 2 * 3, dtype="<f4").reshape(4, 1, 2, 3)


def in_a_process(act: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        act()
    except BaseException:  # noqa: BLE001 - the status tells
        os._exit(1)
    os._exit(0)


def scanned(site: Any) -> None:
    """A finished scan of two patients with two images each, whom the approved study knows."""
    cache, key = site.folder.cache / site.study, study_key(site.folder.dataset_key_file.read_bytes(), site.study)
    cache.mkdir()
    np.save(cache / "images.npy", ROWS)
    np.save(cache / "labels.npy", np.array([1, 1, 1, 1]))
    np.save(cache / "patients.npy", np.array([0, 1, 0, 1]))
    (cache / GONE).write_bytes(bytes(4))
    master = site.folder.dataset_key_file.read_bytes()
    known = known_patients([(tag_of(key, reference_of(master, who)), False) for who in (WHO, OTHER)])
    (cache / KNOWN).write_bytes(known)
    site.journal.private.keep_cohort(site.study, 0, known)


def state_of(path: Path) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Private log, who withdrew, from what, and the shared log, as another process finds them."""
    with closing(sqlite3.connect(path)) as db:
        private = [leaf for (leaf,) in db.execute("SELECT leaf FROM private_trail ORDER BY sequence")]
        withdrawn = db.execute("SELECT reference, private, erased_at IS NULL FROM withdrawn").fetchall()
        effects = db.execute("SELECT study, round, decision FROM withdrawn_from").fetchall()
        trail = [leaf for (leaf,) in db.execute("SELECT leaf FROM trail ORDER BY sequence")]
    return private, withdrawn, effects, trail


@pytest.fixture
def killed(site: Any, tmp_path: Path) -> Callable[[int], tuple[int, Path]]:
    """Withdraw in a process that dies before its n-th statement, in a copy of the hospital; status and state folder."""
    site.approve()
    scanned(site)
    site.journal.close()

    def kill(at: int) -> tuple[int, Path]:
        root = tmp_path / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(site.root, root)
        folder = type(site.folder)(root)

        def act() -> None:
            journal = Journal(folder.journal, "st-olavs")
            journal._db = Mortal(journal._db, at, kill_myself)  # type: ignore[assignment]
            withdraw(journal, folder, WHO, "keep", site.now)

        return in_a_process(act), root

    return kill


def test_kill_9_before_any_statement_leaves_nothing_or_a_withdrawal_that_is_completed(
    site: Any, killed: Callable[[int], tuple[int, Path]]
) -> None:
    before, recorded, half_done = state_of(site.folder.journal), 0, 0
    cache = Path("cache") / site.study
    for at in range(200):
        status, root = killed(at)
        folder = type(site.folder)(root)
        private, withdrawn, effects, trail = state_of(folder.journal)
        images, mask = np.load(root / cache / "images.npy"), (root / cache / GONE).read_bytes()
        if not withdrawn:
            assert (private, withdrawn, effects, trail) == before
            assert (images == ROWS).all()
            assert mask == bytes(4)
            continue
        recorded += 1
        half_done += int(images.all())
        events = [read_leaf(leaf).event for leaf in trail[len(before[3]) :]]
        assert events == [
            PatientWithdrawn(private=digest(private[0])),
            WithdrawalEffective(study=site.study, round=1, private=digest(private[0]), decision="keep"),
        ]
        assert effects == [(site.study, 1, "keep")]
        journal = Journal(folder.journal, "st-olavs")
        assert journal.trail_root(len(trail)) == root_at(len(trail), journal.node)
        assert journal.node(0, len(trail) - 1) == leaf_hash(trail[-1])
        finish(journal, folder, site.now, again=True)  # as the start of the agent does
        assert not journal.private.unfinished
        journal.close()
        images = np.load(root / cache / "images.npy")
        assert not images[[0, 2]].any()
        assert (images[[1, 3]] == ROWS[[1, 3]]).all()
        assert (root / cache / GONE).read_bytes() == b"\x01\x00\x01\x00"
        if status == 0:
            break
    assert status == 0
    assert at > 20
    assert recorded >= 5, "between its COMMIT and its end"
    assert half_done >= 2, "recorded, and the images not yet gone"


def test_a_withdrawal_is_completed_by_the_running_agent_and_a_scan_swapped_in_later_is_too(site: Any) -> None:
    site.approve()
    scanned(site)
    images = (site.folder.cache / site.study / "images.npy").read_bytes()
    withdraw(site.journal, site.folder, WHO, "keep", site.now)
    (site.folder.cache / site.study / "images.npy").write_bytes(images)  # a scan that began before, and a kill
    (site.folder.cache / site.study / GONE).write_bytes(bytes(4))
    finish(site.journal, site.folder, site.now)
    assert (site.folder.cache / site.study / GONE).read_bytes() == bytes(4), "that it is done is believed"
    finish(site.journal, site.folder, site.now, again=True)
    assert (site.folder.cache / site.study / GONE).read_bytes() == b"\x01\x00\x01\x00"


def test_two_commands_at_once_record_one_withdrawal(site: Any) -> None:
    site.approve()
    scanned(site)
    site.journal.close()

    def act() -> None:
        journal = Journal(site.folder.journal, "st-olavs")
        withdraw(journal, site.folder, WHO, "keep", site.now)

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                act()
            except BaseException:  # noqa: BLE001 - the status tells
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [len(part) for part in state_of(site.folder.journal)[:3]] == [1, 1, 1]
    site.open()
