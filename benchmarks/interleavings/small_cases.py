"""The small cases whose orders are tried, and the judge of what their processes are given.

The judge sees what processes say and when they end, and never the coordination files.
"""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from externalresource.coordination import Coordination, Holder, flock, identify, run_variable, unshielded
from externalresource.coordination.inside import ancestors, mark
from externalresource.coordination.life_lock import LifeLock, say_nobody_is_left
from externalresource.coordination.process import Process, lives
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from stepping import Event, Steps

_FOR_EVER = 1e6  # seconds
_CLASS = "gpu"
_MANY = 3  # processes


@dataclass(frozen=True, slots=True)
class Device:
    """What is claimed: no more than coordination asks of a device."""

    token: str
    uuid: str | None = None
    parent_uuid: str | None = None
    parent_token: str | None = None


def devices(count: int) -> list[Device]:
    return [Device(str(number)) for number in range(count)]


def coordination(
    path: str,
    pause: Callable[[float, str], None] = lambda seconds, _reason: time.sleep(seconds),
    *,
    contained: bool = False,
    inside: bool = False,
) -> Coordination:
    """Return the coordination of a process that has one thread."""
    runs = [frozenset({_grant(path)})] if inside else []
    return Coordination(
        path, _CLASS, lock=flock, run=unshielded, in_container=lambda: contained, pause=pause, runs=runs
    )


def _grant(path: str) -> str:
    """Return the grant of the run that there may be: no other case that runs beside this one has its mark."""
    return os.path.basename(os.path.dirname(path))


@functools.cache
def itself(pid: int) -> Process:
    """Return who the calling process is, of that pid."""
    return identify(pid)


class Actor:
    """What one process of a case can do, and says of it."""

    def __init__(self, case: "Case", path: str, steps: Steps, channel: Callable[[str], socket.socket]) -> None:
        self._case, self._path, self._steps, self._channel = case, path, steps, channel
        inside = steps.letter in case.inside
        self._coordination = coordination(path, self._pause, contained=case.contained, inside=inside)
        grant = _grant(path) if case.inside and not inside else None
        self.holder = Holder(itself(os.getpid()), grant)

    def claim(self, *, wait: bool = False) -> bool:
        """Claim one device, say what came of it, and return whether it was given one."""
        self._steps.say("begins")
        try:
            given = self._coordination.claim(devices(self._case.devices), 1, self.holder, wait=_FOR_EVER * wait)
        except NotEnoughDevicesError as error:
            self._steps.say("refused", str(error))
        except CoordinationError as error:
            self._steps.say("failed", str(error))
        else:
            self._steps.say("has", *[device.token for device in given])
            return True
        return False

    def release(self) -> None:
        """Use what was given, so that others may come meanwhile; give it back, and when that fails, try once more."""
        self._steps.stop(Event("use"))
        self._steps.say("gives")
        for _ in range(2):
            try:
                self._coordination.release(None, self.holder)
            except CoordinationError as error:
                self._steps.say("failed", str(error))
            else:
                self._steps.say("gave")
                return

    def remove(self, ending: str) -> None:
        """Remove a file as a cleaner does."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._path}{ending}")

    def remove_life_locks(self) -> None:
        folder, name = os.path.split(self._path)
        for found in [entry for entry in os.listdir(folder) if entry.startswith(f"{name}.witness-")]:
            self.remove(found.removeprefix(name))

    def leave_one_behind(self, watchers: str) -> None:
        """Claim as `externalresource run` does, leave a process that carries the mark, and end."""
        lock = LifeLock(self._path)
        self.holder = Holder(self.holder.process, _grant(self._path), life_lock=lock.name, marked=True)
        passed_on = os.dup(lock.descriptor or 0)
        self.claim()
        for watcher in watchers:
            pid = os.fork()
            if pid == 0:
                self._watch(watcher, passed_on)
            self._steps.say("forks", watcher, str(pid))
        os.close(passed_on)
        environment = os.environ | run_variable([mark(_CLASS, _grant(self._path))])
        left = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
        self._steps.say("left", str(left.pid))
        self._steps.end()

    def _watch(self, letter: str, lock: int) -> None:
        """Do as a watcher does: hold the lock until nobody uses the device any more, and tell who does."""
        try:
            self._steps.become(letter, self._channel(letter))
            above = ancestors(self.holder.process.pid)
            while lives(self.holder.process):
                time.sleep(1)
            theirs = coordination(self._path)
            while theirs.heir(self.holder, above, None):
                time.sleep(1)
            say_nobody_is_left(lock)
            self._steps.say("done")
            self._steps.wait()
        finally:
            os._exit(0)

    def _pause(self, seconds: float, _reason: str) -> None:
        if self._steps.has_place(self._path):
            self._steps.say("waits")
        time.sleep(seconds)


def asks(me: Actor) -> None:
    if me.claim():
        me.release()


def asks_twice(me: Actor) -> None:
    if [me.claim(), me.claim()] != [False, False]:
        me.release()


def waits(me: Actor) -> None:
    if me.claim(wait=True):
        me.release()


def holds(me: Actor) -> None:
    me.claim()


def leaves(me: Actor) -> None:
    me.leave_one_behind("VW")


def removes_lock_file(me: Actor) -> None:
    me.remove(".lock")


def removes_ledger(me: Actor) -> None:
    me.remove("")


def removes_life_locks(me: Actor) -> None:
    me.remove_life_locks()


Scenario = Callable[[Actor], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A few processes, and what each of them does."""

    name: str
    #: By the letter of the process.
    does: Mapping[str, Scenario]
    devices: int = 1
    #: Devices that one of them has at the most.
    most: int = 1
    #: What is there before: "files" that name nobody, "nothing", or the claim of a "dead" owner.
    before: str = "files"
    #: Each claim rests on a life lock, as in a container.
    contained: bool = False
    #: Who is inside of the run of the others.
    inside: str = ""
    #: Two watchers that one of the others starts: the first one may die, and nothing changes.
    later: str = ""
    #: The ledger may be lost: then nothing is granted, and that is right.
    loses: bool = False
    #: The disk fails, once, at each step that makes, renames or removes a file.
    fails: bool = False

    @property
    def letters(self) -> str:
        return "".join(self.does)

    @property
    def deaths(self) -> int:
        """Switches in an order up to which deaths are tried: with three processes they are too many."""
        return int(len(self.does) < _MANY)

    @property
    def starts(self) -> str:
        """Who may be the first: of those that do the same, one."""
        does = [*self.does.values()]
        return "".join(letter for at, letter in enumerate(self.does) if does[at] not in does[:at])


CASES = [
    Case("two ask for one device", {"A": asks, "B": asks}),
    Case("two ask for one of two", {"A": asks, "B": asks}, devices=2),
    Case("the first use, by two", {"A": asks, "B": asks}, before="nothing"),
    Case("two sweep a dead owner's claim", {"A": asks, "B": asks}, before="dead", contained=True),
    Case("one waits for a holder", {"A": asks, "B": waits}),
    Case("one waits, the disk fails", {"A": asks, "B": waits}, fails=True),
    Case("two wait for a holder", {"A": asks, "B": waits, "C": waits}),
    Case("one comes while another waits", {"A": asks, "B": waits, "C": asks}),
    Case("two take shares of a run", {"A": asks, "B": asks, "C": asks}, inside="BC"),
    Case("a cleaner takes the lock file", {"A": asks_twice, "B": asks, "C": removes_lock_file}, devices=2, most=2),
    Case("a cleaner takes the ledger", {"A": asks, "B": asks, "C": removes_ledger}, loses=True),
    Case("a cleaner takes life locks", {"A": asks, "B": waits, "C": removes_life_locks}, contained=True),
    Case("a run leaves a marked process", {"A": leaves, "B": holds}, later="VW"),
]


def prepare(case: Case, path: str) -> None:
    """Make what is there before a case begins."""
    if case.before == "nothing":
        return
    child = os.fork()
    if child == 0:
        ours, holder = coordination(path, contained=case.contained), Holder(identify(os.getpid()))
        ours.claim(devices(case.devices), case.devices, holder)
        if case.before == "files":
            ours.release(None, holder)
        os._exit(0)
    os.waitpid(child, 0)


class Judge:
    """Sees who has what, by what processes say and when they end."""

    def __init__(self, case: Case) -> None:
        self.case = case
        #: What must never be; empty as long as it has not been.
        self.fault = ""
        #: Who has each device.
        self.held: dict[str, set[str]] = {device.token: set() for device in devices(case.devices)}
        #: Those that may have devices: from when they ask until they have given all back.
        self._active: set[str] = set()
        #: For each that asks, those that may have had devices meanwhile.
        self._rivals: dict[str, set[str]] = {}
        #: In their order. For each that asks, those that waited before it did.
        self._waiting: list[str] = []
        self._waited_before: dict[str, list[str]] = {}
        #: The processes that those which have ended left behind.
        self.left: dict[str, int] = {}
        #: So errors are right.
        self.disk_failed = False
        self._does: Mapping[str, Callable[..., None]] = {
            "begins": self._begins,
            "has": self._has,
            "gives": self._gives,
            "gave": self._active.discard,
            "waits": self._waits,
            "refused": self._refused,
            "failed": self._failed,
            "crashed": self._crashed,
            "left": self._left,
        }

    @property
    def all_is_given_back(self) -> bool:
        """Whether those that live are as if they had never asked."""
        return not (self.fault or any(self.held.values()))

    def hear(self, letter: str, news: Sequence[str]) -> None:
        """Take note of what a process says."""
        what, *words = news
        if what in self._does:
            self._does[what](letter, *words)

    def dies(self, letter: str) -> None:
        """Take note of the end of a process, which frees what it has unless it has left that to another one."""
        self._stops_asking(letter)
        if letter not in self.left:
            self._active.discard(letter)
            self._gives(letter)

    def _find(self, fault: str) -> None:
        self.fault = self.fault or fault

    def _begins(self, letter: str) -> None:
        self._active.add(letter)
        for other, rivals in self._rivals.items():
            rivals.update({letter} - {other})
        self._rivals[letter] = self._active - {letter}
        self._waited_before[letter] = list(self._waiting)

    def _has(self, letter: str, *tokens: str) -> None:
        for token in tokens:
            others = {each for each in self.held[token] if not self._may_share(each, letter)}
            if others:
                self._find(f"{letter} is given device {token}, which {' and '.join(sorted(others))} has")
            self.held[token].add(letter)
        overtaken = [each for each in self._waited_before[letter] if each in self._waiting]
        if overtaken and self.case.devices == 1:
            self._find(f"{letter} is given the device before {overtaken[0]}, which waited when {letter} came")
        self._stops_asking(letter)

    def _may_share(self, one: str, other: str) -> bool:
        return bool(self.case.inside) and (one in self.case.inside) != (other in self.case.inside)

    def _gives(self, letter: str) -> None:
        for holders in self.held.values():
            holders.discard(letter)

    def _waits(self, letter: str) -> None:
        if letter not in self._waiting:
            self._waiting.append(letter)

    def _refused(self, letter: str, why: str) -> None:
        own = sum(letter in holders for holders in self.held.values())
        if own + self.case.most * len(self._rivals[letter]) < self.case.devices:
            self._find(f"{letter} is refused a device, and one was free all the time: {why}")
        self._stops_asking(letter)

    def _failed(self, letter: str, why: str) -> None:
        if not (self.case.loses or self.disk_failed):
            self._find(f"{letter} fails: {why}")
        self._stops_asking(letter)

    def _crashed(self, letter: str, why: str) -> None:
        self._find(f"{letter} crashes: {why}")

    def _left(self, letter: str, pid: str) -> None:
        self.left[letter] = int(pid)

    def _stops_asking(self, letter: str) -> None:
        self._rivals.pop(letter, None)
        if letter in self._waiting:
            self._waiting.remove(letter)

    def look_at_the_end(self, path: str, end_all: Callable[[], None]) -> None:
        """See that a process that comes now gets what nobody has, and all when all have ended, and nothing else."""
        free = [device for device in devices(self.case.devices) if not self.held[device.token]]
        taken = [device for device in devices(self.case.devices) if self.held[device.token]]
        for device in taken:
            if self._gets(path, [device]):
                self._find(f"device {device.token} is given to who comes, and {self.held[device.token]} has it")
        self._must_get(path, free)
        if taken:
            end_all()
            self.end_left()
            self._must_get(path, [*taken, *free])

    def end_left(self) -> None:
        """End what was left behind by processes that have ended; their parent is this one by now."""
        for pid in self.left.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.left.clear()

    def _must_get(self, path: str, wanted: Sequence[Device]) -> None:
        if wanted and not self._gets(path, wanted) and not self.case.loses:
            self._find(f"lost: nobody has {[device.token for device in wanted]}, and who comes does not get that")

    def _gets(self, path: str, wanted: Sequence[Device]) -> bool:
        ours, holder = coordination(path), Holder(itself(os.getpid()))
        try:
            ours.claim(wanted, len(wanted), holder, deadline=time.monotonic())  # nobody has the lock any more
            ours.release(None, holder)
        except NotEnoughDevicesError:
            return False
        except CoordinationError as error:
            if not self.case.loses:
                self._find(f"whoever comes at the end fails: {error}")
            return False
        return True
