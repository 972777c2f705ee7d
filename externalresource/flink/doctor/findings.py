"""What `doctor` says: what is wrong, what it has looked at, and what it could not look at."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong (an error), or may be (a warning)."""

    #: The name of the check, for programs.
    check: str
    problem: str
    #: Where it was seen, and as what: a file with its line, a key with its value, an answer.
    evidence: str
    remedy: str
    severity: str = ERROR


@dataclass(frozen=True, slots=True)
class Looked:
    at: str


@dataclass(frozen=True, slots=True)
class NotLooked:
    at: str
    because: str


Note = Finding | Looked | NotLooked


class Report:
    """All that was noted, once each; errors first."""

    def __init__(self, notes: Iterable[Note]) -> None:
        noted = list(dict.fromkeys(notes))
        findings = [note for note in noted if isinstance(note, Finding)]
        self.findings = sorted(findings, key=lambda finding: finding.severity != ERROR)
        self.looked = [note.at for note in noted if isinstance(note, Looked)]
        self.not_looked = [note for note in noted if isinstance(note, NotLooked)]
        self.errors = sum(finding.severity == ERROR for finding in findings)

    @property
    def summary(self) -> str:
        """Return how much was found, and in what."""
        numbers = {"problem": self.errors, "warning": len(self.findings) - self.errors}
        counts = [f"{number} {what}{'s' * (number != 1)}" for what, number in numbers.items() if number]
        return f"{', '.join(counts) or 'no problem found'}; looked at: {', '.join(self.looked)}"

    def record(self) -> dict[str, object]:
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "looked_at": self.looked,
            "not_looked_at": [asdict(note) for note in self.not_looked],
        }
