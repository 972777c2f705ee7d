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


@dataclass(frozen=True, slots=True)
class Event:
    """What an owner did, or that it died, at a moment at which it may have been."""

    when: float
    life: Life
    #: It has the device from now on; else it has been refused, or has died.
    begins: bool = False


def in_order(lives: Sequence[Life], gpus: int) -> list[Event]:
    """Return one order in which it may have happened: each device goes from hand to hand as late as may be.

    Refusals that only a process may explain of which nobody knows what it held are left out. ValueError if there is no
    such order.
    """
    granted: dict[int, list[Life]] = defaultdict(list)
    for life in sorted(lives, key=lambda life: life.answered):
        if life.outcome is Outcome.GRANTED and life.device is not None:
            granted[life.device].append(life)
    events = [event for owners in granted.values() for event in _hands(owners)]
    refused = [(_full(life, events, gpus), life) for life in lives if life.outcome is Outcome.REFUSED]
    events += [Event(when, life) for when, life in refused if when is not None]
    return sorted(events, key=lambda event: event.when)


def _hands(owners: Sequence[Life]) -> Iterable[Event]:
    taken = owners[0].asked
    for owner, following in zip(owners, [*owners[1:], None], strict=True):
        yield Event(taken, owner, begins=True)
        ended = owner.died if following is None else min(owner.died, following.answered)
        if ended < max(owner.lived, taken):
            raise ValueError(f"{following} was given what {owner} had")
        yield Event(ended, owner)
        taken = ended if following is None else max(ended, following.asked)


def _full(refused: Life, events: Sequence[Event], gpus: int) -> float | None:
    """Return a moment of its question at which all devices are held; None if there is none."""
    steps = sorted((event for event in events if event.when <= refused.answered), key=lambda event: event.when)
    held, since = 0, refused.asked
    for event in steps:
        if held == gpus and max(since, refused.asked) < event.when and event.when > refused.asked:
            return (max(since, refused.asked) + event.when) / 2
        held, since = held + (1 if event.begins else -1), event.when
    return max(since, refused.asked) if held == gpus else None


def unjust_refusals(lives: Sequence[Life], gpus: int) -> list[Life]:
    """Return those that were refused although a device was free all the time that they asked."""
    return [life for life in lives if life.outcome is Outcome.REFUSED and _most_held(life, lives) < gpus]


def _most_held(refused: Life, lives: Iterable[Life]) -> int:
    """Return how many devices others may have held at any moment while it asked."""
    beside = [life for life in lives if life.asked <= refused.answered and refused.asked <= life.died]
    known = {life.device for life in beside if life.outcome is Outcome.GRANTED}
    unknown = sum(life.outcome in (Outcome.KILLED, Outcome.FAILED) for life in beside)
    return len(known) + unknown
