"""Verify a bundle from scratch, offline: every check there is, in the order in which a reviewer would ask.

What a verified bundle does not prove: that a party wrote down the truth at the time; that a hospital's data are what it
says; that no entry which is shown as a hash says something else. It proves that nothing was changed since, that the
parties say the same, and that the numbers follow from what they said.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from compliance.bundle import Trust
from compliance.bundle_reading import Found, read_folder, without_collector
from compliance.verification import budgets, files, gates, logs, members, rounds, selection, sums, witnesses
from compliance.verification.case import Case, Check, open_case
from compliance.verification.files import Rebuild
from compliance.verification.findings import Checked, Finding, Severity, Verification, incomplete

CHECKS: tuple[tuple[str, str, Check], ...] = (
    ("entries", "every log is one row of known entries from number 1", logs.entries),
    ("heads", "the signed heads of every log are over exactly these entries", logs.heads),
    ("cosigned", "most other parties have cosigned what the rounds rest on", witnesses.cosignatures),
    ("witnessed", "what others saw of a log is what is here", witnesses.seen_by_others),
    ("incidents", "no party doubts a log", witnesses.incidents),
    ("members", "plan, roster and keys.toml name the same parties", members.members),
    ("approvals", "every contributing hospital had approved this plan before the round", members.approvals),
    ("rounds", "the rounds are one chain of models", rounds.chain),
    ("records", "the record of every round is the one that was logged", rounds.records),
    ("receipts", "the coordinator and every contributing hospital signed every round", rounds.receipts),
    ("received", "the hospitals were told what the coordinator logged", rounds.received),
    ("cohorts", "no sum is over too few hospitals, or over different ones twice", sums.cohorts),
    ("draws", "every training asked the hospitals that the plan's draw gives", selection.draws),
    ("late", "an update that came late is in one sum", selection.late),
    ("models", "every model comes out of one sum over those it names", sums.models),
    ("hospitals", "the hospitals' logs have their part in every sum", sums.hospitals),
    ("gates", "every work began after all gates of the hospital's policy had passed", gates.gates),
    ("budgets", "every epsilon follows from the releases in the hospital's log", budgets.budgets),
    ("issued", "the coordinator's log names this bundle", files.issued),
)
FILES, MANIFEST = "files", "manifest"


def verify(
    folder: Path, trust: Trust, rebuild: Rebuild, *, copies: Mapping[str, bytes] | None = None, every: bool = False
) -> Verification:
    """Read the folder and make all checks. Never raises for what is in the folder.

    `rebuild` makes the report again; `copies` are what MLflow has of the bundle, by the paths in it. `every` one of
    very many cosignatures is verified if that is asked for, else the newest of each witness.
    """
    return verify_found(read_folder(folder), trust, rebuild, copies=copies, every=every)


def verify_found(
    found: Found, trust: Trust, rebuild: Rebuild, *, copies: Mapping[str, bytes] | None = None, every: bool = False
) -> Verification:
    """As `verify`, of what was read before."""
    with without_collector():
        return _verify(found, trust, rebuild, copies, every=every)


def _verify(
    found: Found, trust: Trust, rebuild: Rebuild, copies: Mapping[str, bytes] | None, *, every: bool
) -> Verification:
    done = [
        _checked(FILES, "every file is there and readable", files.readable(found)),
        _checked(MANIFEST, "every file is the one that was listed, and none was added", files.manifest(found)),
    ]
    bundle = found.bundle
    if bundle is not None:
        case = open_case(bundle, trust, found.manifest, found.files, every=every)
        done.append(_checked("notes", "the checkpoint files say what heads.json says", files.notes(case, found)))
        done += [_checked(name, claim, check(case)) for name, claim, check in CHECKS]
        done.append(_report(case, found, rebuild, done))
    if copies is not None:
        done.append(_checked("copies", "MLflow has the same files", files.copies(found, copies)))
    return Verification(None if bundle is None else bundle.study, tuple(done))


def _report(case: Case, found: Found, rebuild: Rebuild, done: Iterable[Checked]) -> Checked:
    """A report of a damaged bundle could not be made again as it was: its own damage would be told as the report's."""
    claim = "the report says what the logs say"
    if found.manifest is not None and files.is_whole(found) and all(one.worst is not Severity.BROKEN for one in done):
        return _checked("report", claim, files.report(case, found, found.manifest, rebuild))
    means = "whether it says what the logs say is not known while something before it is missing or broken"
    return _checked("report", claim, [incomplete("report/", "was not made again", means)])


def _checked(name: str, claim: str, findings: Iterable[Finding]) -> Checked:
    return Checked(name, claim, tuple(findings))
