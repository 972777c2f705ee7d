"""An interrupt in a process that lives on, at each line of a claim and of its end: nothing stays locked, held or open.

As Ctrl-C in a notebook does it, or a signal handler that raises.
"""

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import externalresource
from externalresource.api import Device, driver
from externalresource.context import RuntimeContext
from externalresource.coordination import Coordination, Holder, identify
from externalresource.errors import NotEnoughDevicesError
from tests.support.claiming import error_of
from tests.support.processes import NEW_PIDS, in_child, in_namespaces

SOURCES = os.path.dirname(externalresource.__file__)


@driver("board")
def board() -> Iterator[Device]:
    yield Device("0")


class Interrupt:
    """Raises KeyboardInterrupt at the nth line of ours that the main thread executes."""

    def __init__(self, nth: int) -> None:
        self._left = nth
        self.at: str | None = None

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event in ("line", "call"):
            self._left -= 1
            if self._left == 0:
                self.at = f"{frame.f_code.co_filename.removeprefix(SOURCES)}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self


def claim(path: str, **options: str) -> RuntimeContext:
    options = {"coordination-file": path, **options}
    return externalresource.claim("board", driver_factory=f"{__name__}:board", options=options)


def interrupted(action: Callable[[], object], nth: int) -> str | None:
    """Return at which line the action was interrupted; None if it has ended before its nth."""
    interrupt = Interrupt(nth)
    sys.settrace(interrupt)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interrupt.at


def wrong(path: str) -> list[str]:
    """Return what is not as it must be once whoever was interrupted has claimed and closed again."""
    found = [f"{name} is locked" for name in (path, f"{path}.lock") if is_locked(name)]
    claim(path).close()
    found += ["a device is held" for _ in Coordination(path, "board").held()]
    left = set(os.listdir(Path(path).parent)) - {Path(path).name, f"{Path(path).name}.lock"}
    return found + [f"{name} is left" for name in left]


def is_locked(path: str) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def interrupted_claims(path: str, step: int) -> list[tuple[str, list[str]]]:
    """Interrupt a claim at each `step`th of its lines; return at which something is wrong after it."""
    claim(path).close()
    kept: list[RuntimeContext] = []
    found, nth = [], 1
    while at := interrupted(lambda: kept.append(claim(path)), nth):
        while kept:  # it was interrupted after it had been told
            kept.pop().close()
        found.append((at, wrong(path)))
        nth += step
    return [(at, problems) for at, problems in found if problems]


def interrupted_closes(path: str, step: int) -> list[tuple[str, list[str]]]:
    found, nth, context = [], 1, claim(path)
    while at := interrupted(context.close, nth):
        if at.startswith("/context.py") and at.endswith(" close"):  # which has not begun
            context.close()
        found.append((at, wrong(path)))
        context = claim(path)
        nth += step
    return [(at, problems) for at, problems in found if problems]


def interrupted_waits(path: str, step: int) -> list[tuple[str, list[str]]]:
    """Interrupt a wait for a device that another process has."""
    with another_process() as other:
        Coordination(path, "board").claim([Device("0")], 1, Holder(identify(other)))
        found, nth = [], 1
        while at := interrupted(lambda: claim_in_vain(path, wait="0.2"), nth):
            refused = error_of(NotEnoughDevicesError, lambda: claim(path))
            left = [name for name in os.listdir(Path(path).parent) if "queue" in name or "witness" in name]
            found.append((at, left + [refused] * ("waiting before" in refused)))
            nth += step
    return [(at, problems) for at, problems in found if problems]


def claim_in_vain(path: str, **options: str) -> None:
    with contextlib.suppress(NotEnoughDevicesError):
        claim(path, **options)


@contextlib.contextmanager
def another_process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("interrupt", [interrupted_claims, interrupted_closes])
def test_interrupt_at_any_line_leaves_nothing_behind(
    tmp_path: Path, interrupt: Callable[[str, int], list[tuple[str, list[str]]]]
) -> None:
    assert in_child(lambda: interrupt(str(tmp_path / "boards"), 2)) == []


@pytest.mark.parametrize("interrupt", [interrupted_claims, interrupted_closes])
def test_interrupt_at_any_line_leaves_nothing_behind_in_a_container(
    tmp_path: Path, interrupt: Callable[[str, int], list[tuple[str, list[str]]]]
) -> None:
    assert in_namespaces(lambda: interrupt(str(tmp_path / "boards"), 5), NEW_PIDS) == []


def test_interrupt_at_any_line_of_a_wait_leaves_no_place_in_the_queue(tmp_path: Path) -> None:
    assert in_child(lambda: interrupted_waits(str(tmp_path / "boards"), 17)) == []


def disturbed(action: Callable[[], object], seconds: float) -> bool:
    """Return whether a timer's signal has interrupted the action."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            action()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


def claim_under_signals(path: str, rounds: int, seed: int) -> tuple[int, list[list[str]]]:
    """Claim and close while a timer's signal raises; return how often it did, and what was wrong after it."""
    chance = random.Random(seed)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    claim(path).close()
    kept: list[RuntimeContext] = []
    interrupts, found = 0, []
    for _ in range(rounds):
        interrupts += disturbed(lambda: kept.append(claim(path)), chance.uniform(0.00005, 0.004))
        interrupts += bool(kept) and disturbed(kept[-1].close, chance.uniform(0.00005, 0.002))
        while kept:
            kept.pop().close()
        found.append(wrong(path))
    return interrupts, [problems for problems in found if problems]


def test_signals_whose_handler_raises_leave_nothing_behind(tmp_path: Path) -> None:
    interrupts, found = in_child(lambda: claim_under_signals(str(tmp_path / "boards"), 300, seed=7))
    assert interrupts > 30
    assert found == []


ENDS = """
import os, sys
import externalresource
from externalresource.api import Device, driver

@driver("board")
def board():
    yield Device("0")

context = externalresource.claim("board", driver_factory="__main__:board", options={"coordination-file": sys.argv[1]})
inner = context._drivers["board"]
close, inner.close = inner.close, lambda: os.kill(os.getpid(), 2)
try:
    context.close()
except KeyboardInterrupt:
    inner.close = close
print(os.path.getsize(sys.argv[1]))
"""


def test_what_an_interrupt_left_is_given_back_when_the_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "boards"
    command = [sys.executable, "-P", "-c", ENDS, str(path)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    assert int(said) > 0
    assert path.read_text(encoding="ascii") == ""
