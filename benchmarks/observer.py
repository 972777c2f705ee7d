"""Who was given what while it was somebody else's: judged from when processes provably lived, not from any ledger.

All times are of one clock. Between `answered` and `lived` an owner lived for certain and knew its devices; outside of
`asked` to `died` it had none for certain. A double grant is counted only for the first, an unjust refusal only outside
of the second, so that neither can be an error of this observer.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain


class Outcome(Enum):
    GRANTED = "granted"
    REFUSED = "refused"
    #: The script, or the owner while it asked, was killed: it may hold a device, and nobody knows which.
    KILLED = "killed"
    #: The script ended in another way than by an answer or a refusal.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Life:
    """One owner, which asked for one device."""

    outcome: Outcome
    asked: float
    #: When it had read the answer.
    answered: float
    #: The last moment at which it lived for certain.
    lived: float
    #: The first moment at which it was dead for certain.
    died: float
    device: int | None = None
    #: Why it was refused, or what failed.
    reason: str = ""


def doubles(lives: Iterable[Life]) -> list[Life]:
    """Return those that were given a device of which another owner knew, and lived."""
    granted: dict[int, list[Life]] = defaultdict(list)
    for life in sorted(lives, key=lambda life: life.answered):
        if life.outcome is Outcome.GRANTED and life.device is not None:
            granted[life.device].append(life)
    return list(chain.from_iterable(map(_doubles_of_one, granted.values())))


def _doubles_of_one(lives: Sequence[Life]) -> list[Life]:
    held_until, found = float("-inf"), []
    for life in lives:
        if life.answered < held_until:
            found.append(life)
        held_until = max(held_until, life.lived)
    return found


def unjust_refusals(lives: Sequence[Life], gpus: int) -> list[Life]:
    """Return those that were refused although a device was free all the time that they asked."""
    return [life for life in lives if life.outcome is Outcome.REFUSED and _most_held(life, lives) < gpus]


def _most_held(refused: Life, lives: Iterable[Life]) -> int:
    """Return how many devices others may have held at any moment while it asked."""
    beside = [life for life in lives if life.asked <= refused.answered and refused.asked <= life.died]
    known = {life.device for life in beside if life.outcome is Outcome.GRANTED}
    unknown = sum(life.outcome in (Outcome.KILLED, Outcome.FAILED) for life in beside)
    return len(known) + unknown
