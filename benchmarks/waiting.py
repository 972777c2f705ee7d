"""Processes that wait for devices in numbers: who is served when, and what their waiting costs.

They are forks that claim for themselves. What a start costs is measured with `externalresource run` instead.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import NoReturn

import owners
from externalresource.coordination import Claim, Coordination, Holder, flock, identify

_RUN = Path(sys.executable).with_name("externalresource")
_PATIENCE = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Device:
    token: str
    uuid: str
    parent_uuid: None = None
    parent_token: None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One process that was served. Times are of CLOCK_MONOTONIC."""

    pid: int
    token: str
    granted: float
    ended: float


@dataclass(frozen=True, slots=True)
class Result:
    waiters: int
    served: int
    #: So many of those that had come earlier still waited, at most, when one was served.
    ahead: int
    #: Seconds for which a device lay idle at most while somebody waited for it.
    idle: float
    #: From when all waited and the devices became free until the last one had had its device.
    seconds: float
    #: Seconds of processor time per process, for waiting alone.
    processor: float


def wait(size: int, devices: int, hold: float) -> Result:
    """Let `size` processes queue for so many devices, each of which they use for `hold` seconds."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        path, log = f"{name}/gpus", f"{name}/turns"
        shared = Coordination(path, "gpu", lock=flock)
        wanted = [Device(str(number), f"GPU-{number:032}") for number in range(devices)]
        shared.claim(wanted, devices, Holder(identify(os.getpid())))
        before = _children_s()
        pids = [stack.enter_context(_waiter(path, log, wanted, hold)) for _ in range(size)]
        order = _order(path, pids)
        began = time.monotonic()
        shared.release(wanted, Holder(identify(os.getpid())))
        for _ in pids:
            os.wait()
        turns = _turns(log)
    return Result(
        waiters=size,
        served=len(turns),
        ahead=_ahead(order, [turn.pid for turn in turns]),
        idle=max(_idle(turns, began), default=0),
        seconds=max((turn.ended for turn in turns), default=began) - began,
        processor=(_children_s() - before) / size,
    )


def start(count: int) -> float:
    """Return the seconds of processor time that an `externalresource run` takes which need not wait."""
    with tempfile.TemporaryDirectory() as name:
        words = [str(_RUN), "run", "gpu=1", "--simulate=8", f"--coordination-file={name}/gpus", "--", "true"]
        before = _children_s()
        for _ in range(count):
            subprocess.run(words, check=True)
        return (_children_s() - before) / count


@contextmanager
def _waiter(path: str, log: str, devices: Sequence[Device], hold: float) -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        _be_waiter(path, log, devices, hold)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def _be_waiter(path: str, log: str, devices: Sequence[Device], hold: float) -> NoReturn:
    try:
        owners.end_with_parent()
        granted = 0.0

        def choose(free: Sequence[Device], _claims: Sequence[Claim], amount: int) -> Sequence[Device]:
            nonlocal granted
            granted = time.monotonic()  # under the lock: no other one is served at the same time
            return free[:amount]

        shared = Coordination(path, "gpu", lock=flock)
        (device,) = shared.claim(devices, 1, Holder(identify(os.getpid())), choose=choose, wait=_PATIENCE)
        time.sleep(hold)
        with open(log, "a", encoding="ascii") as file:
            file.write(f"{os.getpid()} {device.token} {granted} {time.monotonic()}\n")
    finally:
        os._exit(0)  # and its device is free, as nobody holds it any more


def _order(path: str, pids: Sequence[int]) -> list[int]:
    """Return the processes in the order in which they stand in the queue, once all do."""
    queue = Path(f"{path}.queue")
    while not queue.exists() or len(lines := queue.read_text().splitlines()) < len(pids):
        time.sleep(0.1)
    whose = {name: pid for pid in pids for name in _locked(pid)}
    return [whose[f"{path}.witness-{line.split()[0]}"] for line in lines]


def _locked(pid: int) -> Iterator[str]:
    """Yield what a process has locked: it may have others' files open for a moment."""
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            if "FLOCK" in info.read_text():
                yield os.readlink(f"/proc/{pid}/fd/{info.name}")


def _turns(log: str) -> list[Turn]:
    words = [line.split() for line in Path(log).read_text().splitlines()]
    turns = [Turn(int(pid), token, float(granted), float(ended)) for pid, token, granted, ended in words]
    return sorted(turns, key=lambda turn: turn.granted)


def _ahead(order: Sequence[int], served: Sequence[int]) -> int:
    came = {pid: number for number, pid in enumerate(order)}
    numbers = [came[pid] for pid in served]
    return max((sum(other < number for other in numbers[at:]) for at, number in enumerate(numbers)), default=0)


def _idle(turns: Sequence[Turn], began: float) -> Iterator[float]:
    since: dict[str, float] = {}
    for turn in turns:
        yield turn.granted - since.get(turn.token, began)
        since[turn.token] = turn.ended


def _children_s() -> float:
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
