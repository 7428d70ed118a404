"""The five words, and how a check comes to one of them: FAIL before NOT-MEASURED before PASS, never the other way."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from compliance.evidence.facts import Facts
from compliance.evidence.reading import Pointer

_MOST_SENTENCES = 3


class Verdict(StrEnum):
    """What is said of a control. An article of law never gets PASS (crosswalk.toml)."""

    PASS = "PASS"  # noqa: S105 - a verdict
    FAIL = "FAIL"
    NEEDS_HUMAN = "NEEDS-HUMAN"
    NOT_MEASURED = "NOT-MEASURED"
    NOT_APPLICABLE = "N/A"


class Severity(StrEnum):
    BLOCKER = "blocker"
    MAJOR = "major"


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, why in one sentence, and the entries it stands on."""

    verdict: Verdict
    reason: str
    evidence: tuple[Pointer, ...] = ()


@dataclass(frozen=True, slots=True)
class Control:
    """One thing to check: what holds if it passes, how bad it is if not, whose job it is."""

    id: str
    title: str
    severity: Severity
    owner: str
    check: Callable[[Facts], Finding]


@dataclass(frozen=True, slots=True)
class Judged:
    """A control and what was found."""

    control: Control
    finding: Finding

    @property
    def is_open(self) -> bool:
        return self.finding.verdict in {Verdict.FAIL, Verdict.NEEDS_HUMAN, Verdict.NOT_MEASURED}


@dataclass(slots=True)
class Tally:
    """What a check collects on its way. Nothing collected at all is NOT-MEASURED."""

    _wrong: list[str] = field(default_factory=list)
    _unknown: list[str] = field(default_factory=list)
    _wrong_at: list[Pointer] = field(default_factory=list)
    _unknown_at: list[Pointer] = field(default_factory=list)
    _good_at: list[Pointer] = field(default_factory=list)

    def wrong(self, sentence: str, at: Iterable[Pointer] = ()) -> None:
        self._wrong.append(sentence)
        self._wrong_at += at

    def unknown(self, sentence: str, at: Iterable[Pointer] = ()) -> None:
        self._unknown.append(sentence)
        self._unknown_at += at

    def good(self, at: Iterable[Pointer]) -> None:
        self._good_at += at

    def finding(self, passed: str, nothing: str) -> Finding:
        """`passed` is the reason if all is well, `nothing` if there was nothing to look at."""
        if self._wrong:
            return Finding(Verdict.FAIL, _joined(self._wrong), tuple(dict.fromkeys(self._wrong_at)))
        if self._unknown:
            return Finding(Verdict.NOT_MEASURED, _joined(self._unknown), tuple(dict.fromkeys(self._unknown_at)))
        if not self._good_at:
            return Finding(Verdict.NOT_MEASURED, _joined([nothing]))
        return Finding(Verdict.PASS, _joined([passed]), tuple(dict.fromkeys(self._good_at)))


def _joined(sentences: list[str]) -> str:
    said = list(dict.fromkeys(sentences))
    more = len(said) - _MOST_SENTENCES
    text = "; ".join(said[:_MOST_SENTENCES]) + (f"; and {more} more" if more > 0 else "")
    return f"{text[:1].upper()}{text[1:]}."
