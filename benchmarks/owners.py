"""Processes that own devices: idle ones, and ones that ask a discovery script for themselves, as a TaskManager does."""

import contextlib
import ctypes
import os
import pickle
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from externalresource.coordination import Process, identify

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a script answered its owner. Times are of CLOCK_MONOTONIC, which is one clock for all processes."""

    asked: float
    #: When the owner had read the devices.
    answered: float
    #: Its exit status; the negative number of the signal that ended it.
    status: int
    stdout: str
    stderr: str


class Asker:
    """A process that has a script as its child, and then lives until it is killed.

    With `patience` (seconds) it kills the script that has not answered by then, as Flink's driver does: the direct
    child only. Nothing is asked before the writing end of `gate`, a pipe, is closed.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        patience: float | None = None,
        gate: tuple[int, int] | None = None,
    ) -> None:
        self._report, report = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _be_asker(parent, report, words, environment, patience, gate)
        os.setpgid(self.pid, self.pid)  # as it does itself: whoever is first
        os.close(report)

    def has_answer(self, timeout: float = 0) -> bool:
        return bool(select.select([self._report], [], [], timeout)[0])

    def answer(self, timeout: float) -> Answer:
        """Return what it was answered. TimeoutError if it was not."""
        if not self.has_answer(timeout):
            raise TimeoutError(f"process {self.pid} has got no answer after {timeout:g} s")
        with open(self._report, "rb", closefd=False) as report:
            answer: Answer = pickle.load(report)
        return answer

    def has_asked(self) -> bool:
        """Return whether its script has started a child of its own, and so knows by now who its owner is."""
        return any(_children(script) for script in _children(str(self.pid)))

    def kill(self) -> tuple[float, float]:
        """Kill it, and nothing else; return when it still lived for certain, and when it was dead for certain."""
        lived = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        died = time.monotonic()
        os.close(self._report)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise RuntimeError(f"process {self.pid} had ended before it was killed, so nothing is known of its devices")
        return lived, died

    def end(self) -> None:
        """Kill it with all that it left behind; needs `adopt_orphans`."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.reap()
        os.close(self._report)

    def reap(self) -> None:
        """Wait for what it left behind; needs `adopt_orphans`."""
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self.pid, 0)


def end_with_parent() -> None:
    """Make this process be killed once the one that started it ends."""
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Make the processes that this one's children leave behind its own children, so that none is forgotten."""
    _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def idle(count: int) -> Iterator[list[Process]]:
    """So many processes, which have ended afterwards."""
    started = [subprocess.Popen(["sleep", "infinity"]) for _ in range(count)]
    try:
        yield [identify(process.pid) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _be_asker(
    parent: int,
    report: int,
    words: Sequence[str],
    environment: Mapping[str, str],
    patience: float | None,
    gate: tuple[int, int] | None,
) -> NoReturn:
    try:
        end_with_parent()
        os.setpgid(0, 0)
        if os.getppid() != parent:
            os._exit(1)
        if gate is not None:
            reading, writing = gate
            os.close(writing)
            os.read(reading, 1)
        answer = pickle.dumps(_ask(words, environment, patience))
        os.write(report, answer)
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _ask(words: Sequence[str], environment: Mapping[str, str], patience: float | None) -> Answer:
    asked = time.monotonic()
    stdout = stderr = b""
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        assert script.stdout is not None
        assert script.stderr is not None
        late = patience is not None and not select.select([script.stdout], [], [], patience)[0]
        if late:
            script.kill()  # and read nothing: what it leaves behind may have its pipes open for long
        else:
            stdout = script.stdout.readline()
        answered = time.monotonic()
        status = script.wait()
        if not late:
            stderr = script.stderr.read()
    return Answer(asked, answered, status, stdout.decode(), stderr.decode(errors="replace"))


def _children(pid: str) -> list[str]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return file.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
