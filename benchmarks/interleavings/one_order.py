"""One run of a small case in one order: processes that stop (stepping.py) go on as they are told.

Which of them begins a step, who goes on by itself when one ends or sleeps, and what is killed is decided here.
"""

import ctypes
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NoReturn

import click

from small_cases import Actor, Case, Judge, prepare
from stepping import LARGEST, MOST, SLEEP, Event, Steps

_PATIENCE = 60  # seconds until a process that neither stops nor ends is an error of this benchmark
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """Make this process be killed once the one that started it ends."""
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Make what this one's children leave behind its own children, so that none is forgotten."""
    _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(slots=True)
class Child:
    """A process that stops, as its controller has it."""

    letter: str
    ours: socket.socket
    its: socket.socket
    pid: int = 0
    #: What it is about to do; None if it is not there yet, is done, or has ended.
    at: Event | None = None
    #: It sleeps, and nobody has made a step since.
    asleep: bool = False
    ended: bool = False

    @classmethod
    def of(cls, letter: str) -> "Child":
        return cls(letter, *socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    def hears(self) -> Iterator[Event | list[str]]:
        """Yield the steps that it makes and what it says, until it waits; `at` is then the step before which it does.

        That is None if it makes no further one.
        """
        while True:
            for line in self._received():
                if line == "wait":
                    self.asleep = self.at is not None and self.at.name == SLEEP
                    return
                if self.at is not None:
                    yield self.at
                    self.at = None
                kind, *words = line.split("\t")
                if kind == "at":
                    name, changes, fails, *paths = words
                    self.at = Event(name, paths, changes == "1", fails == "1")
                else:
                    yield words

    def _received(self) -> Sequence[str]:
        if not select.select([self.ours], [], [], _PATIENCE)[0]:
            raise TimeoutError(f"process {self.letter} does not stop")
        return self.ours.recv(LARGEST).decode().split("\n") or ["say\tcrashed\tit ended without a word", "wait"]

    def go(self, steps: int) -> Event | None:
        """Let it make so many steps, or fail to make one for none; return the first of these."""
        first, self.at = self.at, None
        self.ours.send(str(steps).encode())
        return first

    def kill(self) -> None:
        if self.pid and not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            self.reap()
        self.at = None

    def reap(self) -> None:
        """Take its end, unless it is the child of another one that lives."""
        self.ended = True
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            with open(os.pidfd_open(self.pid), "rb") as end:
                select.select([end], [], [], _PATIENCE)

    def end(self) -> None:
        self.kill()
        self.ended = True
        self.ours.close()
        self.its.close()


class Children:
    """All of them, in the order in which they take turns."""

    def __init__(self, letters: str, folder: str, does: Callable[[Steps], object]) -> None:
        self._letters, self._folder, self._does = letters, folder, does
        self.all: dict[str, Child] = {}

    def start(self, later: str) -> None:
        """Have all of them before their first step; `later` are started by one of them."""
        for letter in self._letters + later:
            child = self.all.get(letter)
            if child is None or child.ended:
                self.all[letter] = Child.of(letter)
        for letter in self._letters:
            self._start(self.all[letter])

    def _start(self, child: Child) -> None:
        if child.pid:
            child.go(1)
            return
        child.pid = os.fork()
        if child.pid == 0:
            self._be(child)

    def _be(self, child: Child) -> NoReturn:
        steps = Steps(child.letter, child.its, self._folder)
        try:
            for each in self.all.values():
                each.ours.close()
            steps.install()
            steps.run(lambda: self._does(steps))
        except BaseException:  # noqa: BLE001 - the controller shows it
            steps.say("crashed", traceback.format_exc())
            steps.wait()
        finally:
            os._exit(0)

    def channel(self, letter: str) -> socket.socket:
        """Return by what a process with that letter is to speak, which one of the others starts."""
        return self.all[letter].its

    def enabled(self) -> str:
        """Return who can go on; those that sleep only if nobody else can."""
        ready = [child for child in self.all.values() if child.at is not None]
        awake = [child.letter for child in ready if not child.asleep]
        return "".join(awake or [child.letter for child in ready])

    def busy(self, letters: str) -> bool:
        """Return whether any with these letters is not done, or one of the others neither done nor asleep."""
        going = [(child.letter, child.at.name) for child in self.all.values() if child.at is not None]
        return any(letter in letters or name != SLEEP for letter, name in going)

    def wake(self, but: str) -> None:
        """Wake those that sleep: another one has made a step."""
        for child in self.all.values():
            child.asleep = child.asleep and child.letter == but

    def after(self, letter: str, among: str) -> str:
        """Return the next one in turn."""
        letters = "".join(self.all)
        at = letters.index(letter) + 1
        return next(each for each in letters[at:] + letters[:at] if each in among)

    def end(self, letters: str = "") -> None:
        """End these processes, or all."""
        for letter in letters or self.all:
            self.all[letter].end()
        while True:  # what they have left behind, which this process has adopted
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    return
            except ChildProcessError:
                return


@dataclass(frozen=True, slots=True)
class Step:
    """What was done in a run: `A` by A, `A!` if the disk failed, `a` is the death of A."""

    token: str
    event: Event

    @property
    def letter(self) -> str:
        return self.token[0].upper()


@dataclass(slots=True)
class Run:
    """One order, as it went."""

    steps: list[Step] = field(default_factory=list)
    #: Who could have made each of them.
    enabled: list[str] = field(default_factory=list)
    #: What was said, each with the number of steps before it.
    news: list[tuple[int, str]] = field(default_factory=list)
    fault: str = ""

    def take(self, token: str, event: Event, enabled: str) -> None:
        self.steps.append(Step(token, event))
        self.enabled.append(enabled)

    @property
    def word(self) -> str:
        return "".join(
            f"{token}{len(list(group))}" if len(token) == 1 and token.isupper() else token
            for token, group in groupby(step.token for step in self.steps)
        )


#: Returns who makes the next steps, and how many, from the number of those made and who goes on by itself.
Decide = Callable[[int, str], tuple[str, int]]


class Host:
    """A folder in which the processes of a case run, again and again."""

    def __init__(self, case: Case, folder: str) -> None:
        self.case, self._folder, self._path = case, folder, f"{folder}/devices"
        self._before = _content_before(case, folder, self._path)

        def does(steps: Steps) -> None:
            case.does[steps.letter](Actor(case, self._path, steps, self._children.channel))

        self._children = Children(case.letters, folder, does)

    def run(self, decide: Decide) -> Run:
        """Run the case in one order."""
        _empty(self._folder)
        for name, content in self._before.items():
            Path(self._folder, name).write_bytes(content)
        run, judge, children = Run(), Judge(self.case), self._children
        children.start(self.case.later)
        try:
            for letter in self.case.letters:
                _listen(children, children.all[letter], judge, run)
            _let_go(children, self.case.letters, judge, run, decide)
            if not judge.fault:
                judge.look_at_the_end(self._path, children.end)
        finally:
            judge.end_left()
            if self.case.later or not judge.all_is_given_back:
                children.end()
        run.fault = judge.fault
        return run

    def close(self) -> None:
        self._children.end()


def _content_before(case: Case, folder: str, path: str) -> dict[str, bytes]:
    """Return the files that are there when a run begins."""
    _empty(folder)
    prepare(case, path)
    return {entry.name: Path(entry.path).read_bytes() for entry in os.scandir(folder)}


def _empty(folder: str) -> None:
    for entry in os.scandir(folder):
        os.unlink(entry.path)


def _let_go(children: Children, letters: str, judge: Judge, run: Run, decide: Decide) -> None:
    """Let them go on, one after the other, until all are done, or sleep that were started later."""
    last = letters[-1]
    while children.busy(letters) and not judge.fault:
        enabled = children.enabled()
        token, steps = decide(len(run.steps), last if last in enabled else children.after(last, enabled))
        last = token[0].upper()
        if last not in enabled:
            raise click.ClickException(f"{token} cannot go on after {run.word}: that is an order of another program")
        _take_steps(children, children.all[last], token, steps, judge, run)
        if len(run.steps) > MOST:
            judge.fault = judge.fault or f"{last} still waits after {MOST} steps"
        children.wake(but=last)


def _take_steps(children: Children, child: Child, token: str, steps: int, judge: Judge, run: Run) -> None:
    first, enabled = child.at, children.enabled()
    assert first is not None
    run.take(token, first, enabled)
    if token.islower():
        child.kill()
        judge.dies(child.letter)
        return
    judge.disk_failed = judge.disk_failed or token.endswith("!")
    child.go(0 if token.endswith("!") else steps)
    _listen(children, child, judge, run)


def _listen(children: Children, child: Child, judge: Judge, run: Run) -> None:
    """Hear what a process does and says until it waits."""
    all_of_them = "".join(each.letter for each in children.all.values() if each is child or each.at)
    for heard in child.hears():
        if isinstance(heard, Event):
            run.take(child.letter, heard, all_of_them)
            continue
        run.news.append((len(run.steps), f"{child.letter} {' '.join(heard)}"))
        judge.hear(child.letter, heard)
        if heard[0] == "forks":
            other = children.all[heard[1]]
            other.pid = int(heard[2])
            _listen(children, other, judge, run)
            all_of_them += other.letter
        if heard[0] == "ends":
            child.go(1)
            child.reap()
            judge.dies(child.letter)
            return
