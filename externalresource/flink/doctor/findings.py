"""What `doctor` says: what is wrong, what it has looked at, and what it could not look at."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong (an error), or may be (a warning)."""

    #: The name of the check, for programs.
    check: str
    severity: str
    problem: str
    #: Where it was seen, and as what: a file with its line, a key with its value, an answer.
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Looked:
    at: str


@dataclass(frozen=True, slots=True)
class NotLooked:
    at: str
    because: str


Note = Finding | Looked | NotLooked


@dataclass(frozen=True, slots=True)
class Report:
    """All that was noted; errors first."""

    findings: Sequence[Finding]
    looked: Sequence[str]
    not_looked: Sequence[NotLooked]

    @property
    def errors(self) -> int:
        return sum(finding.severity == ERROR for finding in self.findings)

    @property
    def summary(self) -> str:
        """Return how much was found, and in what."""
        counts = [_count(self.errors, "problem")] if self.errors else []
        if warnings := len(self.findings) - self.errors:
            counts.append(_count(warnings, "warning"))
        return f"{', '.join(counts) or 'no problem found'}; looked at: {', '.join(self.looked)}"

    def record(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "looked_at": list(self.looked),
            "not_looked_at": [asdict(note) for note in self.not_looked],
        }


def report(notes: Iterable[Note]) -> Report:
    """Sort what was noted."""
    noted = list(notes)
    findings = [note for note in noted if isinstance(note, Finding)]
    return Report(
        findings=sorted(dict.fromkeys(findings), key=lambda finding: finding.severity != ERROR),
        looked=list(dict.fromkeys(note.at for note in noted if isinstance(note, Looked))),
        not_looked=list(dict.fromkeys(note for note in noted if isinstance(note, NotLooked))),
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
