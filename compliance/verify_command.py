"""`wardround verify` and `silo-agent verify`: a bundle and a reviewer's keys in, lines and an exit code out.

0 verified, 1 broken, 2 incomplete. No network, no database, nothing is written.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from compliance.errors import ComplianceError
from compliance.keys_file import MAX_KEYS_BYTES, parse_keys
from compliance.verification.files import Rebuild
from compliance.verification.findings import Checked, Severity, Verdict, Verification
from compliance.verification.rebuilt import rebuilt
from compliance.verification.verify import verify

MOST_LINES = 12  # of one check; the rest is counted, and is in --json
_WIDTH = 10
_SENTENCES = {
    Verdict.VERIFIED: "nothing was changed since it was signed, and all parties' logs say the same",
    Verdict.BROKEN: "do not rely on this study before the findings above are explained",
    Verdict.INCOMPLETE: "nothing contradicts, but what is missing above could",
}


def run(
    folder: Path,
    trust: Path,
    *,
    rebuild: Rebuild = rebuilt,
    copies: Mapping[str, bytes] | None = None,
    every: bool = False,
    as_json: bool = False,
    write: Callable[[str], object] = sys.stdout.write,
) -> int:
    """Verify, write the result, return the exit code.

    `rebuild` makes the report again; `copies` are MLflow's of the bundle, by their path in it, fetched by the caller.
    `every` cosignature is verified, of however many (`compliance.verification.signatures`).
    """
    try:
        believed = parse_keys(_keys(trust))
    except (OSError, ComplianceError) as why:
        reason = why.strerror if isinstance(why, OSError) else str(why)
        if as_json:
            write(json.dumps({"v": 1, "verdict": Verdict.INCOMPLETE, "exit_code": 2, "keys": reason}) + "\n")
        else:
            write(f"{_plain(str(trust))}: {_plain(str(reason))}\nINCOMPLETE: without keys nothing can be verified\n")
        return Verdict.INCOMPLETE.exit_code
    done = verify(folder, believed, rebuild, copies=copies, every=every)
    write(json.dumps(done.to_json(), indent=1) + "\n" if as_json else "\n".join(lines(done)) + "\n")
    return done.verdict.exit_code


def lines(done: Verification) -> Iterator[str]:
    """What a person reads: the worst first, then what holds, the verdict last."""
    for severity in Severity:
        for check in done.checks:
            yield from _findings(check, severity)
    for check in done.checks:
        if check.worst in {None, Severity.NOTE}:
            yield f"{'ok':<{_WIDTH}} {check.name}: {check.claim}"
    counted = ", ".join(f"{done.count(severity)} {severity.value}" for severity in Severity)
    yield f"study {done.study or 'unknown'}: {counted}"
    yield f"{done.verdict.value.upper()}: {_SENTENCES[done.verdict]}"


def _findings(check: Checked, severity: Severity) -> Iterator[str]:
    found = [finding for finding in check.findings if finding.severity is severity]
    for one in found[:MOST_LINES]:
        yield f"{severity.value.upper():<{_WIDTH}} {check.name}: {_plain(one.where)}: {_plain(one.found)}"
        yield f"{'':<{_WIDTH}} {_plain(one.means)}"
    if len(found) > MOST_LINES:
        left = len(found) - MOST_LINES
        yield f"{severity.value.upper():<{_WIDTH}} {check.name}: and {left} more; --json has them all"


def _plain(text: str) -> str:
    """Some of it stood in a stranger's file: no terminal escapes, no second line, nothing the terminal cannot show."""
    shown = text[:300].encode("ascii", "backslashreplace").decode()
    return "".join(char if char.isprintable() else "?" for char in shown)


def _keys(path: Path) -> bytes:
    """As much of the file as could be one."""
    with path.open("rb") as source:
        return source.read(MAX_KEYS_BYTES + 1)
