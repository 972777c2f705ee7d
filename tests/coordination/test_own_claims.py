"""What a process holds goes back once, whoever interrupts, closes, ends or collects."""

import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from externalresource.coordination import Coordination, Grants
from externalresource.coordination.lock import LockedError, shielded
from externalresource.coordination.safe_files import Descriptors
from externalresource.errors import CoordinationError
from tests.support.claiming import LONG, claim, content, error_of, gpus, held, leftovers, locked, places, tokens
from tests.support.processes import Start, in_child, wait_until

T = TypeVar("T")

UNUSED = 500  # a descriptor that nothing else here has


class InterruptedOnce(Coordination):
    """An interrupt comes when a claim has just been written; `is_busy` tells whether it can be given back then."""

    is_busy = True
    was_interrupted = False

    def claim(self, *arguments: Any, **options: Any) -> list[Any]:
        claimed = super().claim(*arguments, **options)
        if not self.was_interrupted:
            self.was_interrupted = True
            raise KeyboardInterrupt
        return claimed

    def release(self, *arguments: Any, **options: Any) -> int:
        if self.is_busy:
            raise LockedError("the lock is not free")
        return super().release(*arguments, **options)


def interrupted(path: str) -> Grants:
    grants = Grants(InterruptedOnce(path, "gpu"))
    with pytest.raises(KeyboardInterrupt):
        grants.claim(gpus(1), 1)
    assert held(path) == ["0"]
    return grants


def free_lock(grants: Grants) -> None:
    assert isinstance(grants.coordination, InterruptedOnce)
    grants.coordination.is_busy = False


def test_interrupt_is_raised_as_it_is_though_the_lock_is_busy_and_the_next_claim_gives_back(path: str) -> None:
    grants = interrupted(path)
    free_lock(grants)
    assert tokens(grants.claim(gpus(1), 1)) == ["0"]
    assert len(held(path)) == 1


def test_claim_that_nobody_was_told_of_is_given_back_when_its_driver_is_collected(path: str) -> None:
    grants = interrupted(path)
    free_lock(grants)
    del grants
    gc.collect()
    assert held(path) == []


def test_claim_that_was_noted_and_never_made_leaves_no_life_lock_when_its_driver_is_collected(path: str) -> None:
    jobs = 0

    def interrupt_first(job: Callable[[], T]) -> T:
        nonlocal jobs
        jobs += 1
        done = shielded(job)
        if jobs == 1:
            raise KeyboardInterrupt
        return done

    grants = Grants(Coordination(path, "gpu", run=interrupt_first))
    with pytest.raises(KeyboardInterrupt):
        grants.claim(gpus(1), 1, marked=True)
    assert len(os.listdir(os.path.dirname(path))) == 1
    del grants
    gc.collect()
    assert leftovers(path) == set()


# The end of the interpreter

DRIVER = """
import gc, sys
from externalresource.coordination import Coordination, Grants
from externalresource.drivers import Device

gc.set_threshold(0)  # a circle is found at the very end only
class Driver:
    def __init__(self):
        self.grants, self.itself = Grants(Coordination(sys.argv[1], "gpu")), self
"""
CLOSED_AT_THE_END = f"""{DRIVER}
    def __del__(self):
        assert sys.is_finalizing()
        self.grants.close()
        print("closed", file=sys.stderr, flush=True)

Driver().grants.claim([Device("0")], 1)
"""
LOST_AT_THE_END = f"""{DRIVER}
def interrupted(*_arguments):
    raise KeyboardInterrupt

driver = Driver()
grants, coordination = driver.grants, driver.grants.coordination
write = coordination._write
coordination._write = lambda *arguments: (write(*arguments), interrupted())
coordination.release = interrupted
try:
    grants.claim([Device("0")], 1)
except KeyboardInterrupt:
    del coordination.release, grants, coordination, driver
sys.stdin.read()
"""


def test_finalizer_gives_back_at_the_end_of_the_interpreter(path: str) -> None:
    command = [sys.executable, "-P", "-c", CLOSED_AT_THE_END, path]
    ended = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.stderr == "closed\n"
    assert content(path) == ""


def test_end_of_the_interpreter_waits_for_no_lock_to_give_back_what_it_frees_anyway(path: str) -> None:
    command = [sys.executable, "-P", "-c", LOST_AT_THE_END, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: os.path.exists(path) and content(path))
        with locked(f"{path}.lock"):
            began = time.monotonic()
            assert process.communicate(timeout=60)[1] == b""
            assert time.monotonic() - began < 8  # the lock would be waited for 9 s
    assert held(path) == ["0"]
    assert tokens(claim(path, 1, gpus(1))) == ["0"]


# Several threads


def test_two_threads_that_close_at_once_give_back_once_and_raise_nothing(path: str) -> None:
    both = threading.Barrier(2, timeout=LONG)

    class Meeting(Coordination):
        def release(self, *arguments: Any, **options: Any) -> int:
            given_back = super().release(*arguments, **options)
            both.wait()
            return given_back

    grants = Grants(Meeting(path, "gpu", in_container=lambda: True))
    grants.claim(gpus(2), 1)
    closing = Thread(grants.close)
    grants.close()
    assert closing.outcome() is None
    assert (grants.devices, held(path), leftovers(path)) == ([], [], set())


class Thread:
    """Runs something beside the test."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._done: list[object] = []
        self._thread = threading.Thread(target=lambda: self._done.append(self._run(action)), daemon=True)
        self._thread.start()

    def outcome(self) -> object:
        """Return what it returned or raised."""
        self._thread.join(LONG)
        [done] = self._done
        return done

    @staticmethod
    def _run(action: Callable[[], object]) -> object:
        try:
            return action()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            return error


@pytest.mark.parametrize("contained", [False, True], ids=["host", "container"])
def test_thread_that_waits_while_another_one_closes_gives_back_what_it_gets_and_says_so(
    path: str, start: Start, *, contained: bool
) -> None:
    grants = Grants(Coordination(path, "gpu", in_container=lambda: contained))
    grants.claim(gpus(2), 1)
    holder = start(lambda: claim(path, 1, gpus(2)))
    assert tokens(holder.result()) == ["1"]
    waiting = Thread(lambda: grants.claim(gpus(2), 2, wait=LONG))
    wait_until(lambda: places(path) == 1)
    grants.close()
    assert held(path) == ["1"]
    assert places(path) == 1
    holder.kill()
    error = waiting.outcome()
    assert isinstance(error, CoordinationError)
    assert str(error) == "closed by another thread during this claim: what it got has been given back"
    assert (grants.devices, held(path), leftovers(path)) == ([], [], set())


def test_driver_that_was_closed_while_it_claimed_can_claim_again(path: str) -> None:
    class ClosedMeanwhile(Coordination):
        def claim(self, *arguments: Any, **options: Any) -> list[Any]:
            claimed = super().claim(*arguments, **options)
            if not closed:
                closed.append(Thread(grants.close).outcome())
                assert held(path) == ["0"]
            return claimed

    closed: list[object] = []
    grants = Grants(ClosedMeanwhile(path, "gpu"))
    message = error_of(CoordinationError, lambda: grants.claim(gpus(1), 1))
    assert message.startswith("closed by another thread during this claim")
    assert (closed, held(path)) == ([None], [])
    assert tokens(grants.claim(gpus(1), 1)) == ["0"]
    grants.close()
    assert held(path) == []


def test_descriptor_that_another_thread_closes_at_this_moment_is_closed_once() -> None:
    class TakenMeanwhile(list[int]):
        def __bool__(self) -> bool:
            there = len(self) > 0
            self.clear()
            return there

    descriptors = Descriptors()
    descriptors.open = TakenMeanwhile([UNUSED])
    descriptors.close()
    assert descriptors.open == []


# Forks


def test_fork_of_one_who_closed_what_it_had_open_can_claim_in_any_thread(path: str) -> None:
    def fork() -> list[str]:
        descriptors = Descriptors()
        os.close(descriptors.take(lambda: fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, UNUSED)))

        def claim_in_time() -> list[str]:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            return tokens(claim(path, 1, gpus(1)))

        return in_child(claim_in_time)

    assert in_child(fork) == ["0"]
