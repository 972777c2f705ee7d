"""What the tests of claims call their devices and processes, and how these ask for some, and wait for them."""

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, Holder, Process, identify, ledger
from externalresource.coordination.process import Observer
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.devices import Device
from tests.support.discovery_host import MODULE, Answer
from tests.support.processes import Running, Start, wait_until

Asker = Running[list[Device]]
LONG = 60.0  # seconds: more than any of this takes
ANOTHER_BOOT = "b"  # of processes that are made up: no real one, of whatever container, is taken for one of them
THREE = [Device("0"), Device("1"), Device("2")]  # what the script calls three GPUs that it simulates


def gpus(count: int) -> list[Device]:
    return numbered(*range(count))


def numbered(*numbers: int) -> list[Device]:
    return [Device(str(number), f"GPU-{number}") for number in numbers]


def of(gpu: str, name: str) -> Device:
    """Return a slice, as MIG has them."""
    return Device(f"MIG-{name}", f"MIG-{name}", f"GPU-{gpu}", gpu)


def nobody_ends(who: Process, here: Observer) -> bool:
    return False


def on_the_host() -> bool:
    """Owners that are made up need no life lock, wherever these tests run."""
    return False


def made_up(pid: int) -> Holder:
    return Holder(Process(pid, pid, ANOTHER_BOOT, 1, 1, uid=0, program="java"))


def made_up_run(pid: int, grant: str | None = None) -> Holder:
    """Return a process, with the name of what it is granted."""
    return Holder(Process(pid, pid, ANOTHER_BOOT, 1, program="make"), grant or f"of{pid}")


def me() -> Holder:
    return Holder(identify(os.getpid()))


def tokens(devices: Sequence[Device]) -> list[str]:
    return [device.token for device in devices]


def claim(path: str, amount: int = 1, devices: Sequence[Device] = THREE, wait: float = 0) -> list[Device]:
    return Coordination(path, "gpu").claim(devices, amount, me(), wait=wait)


def held(path: str) -> list[str]:
    return [claim.token for claim in Coordination(path, "gpu").held()]


def script(path: str, simulated: int, *words: str) -> list[str]:
    """Return the words that ask the discovery script for one of so many GPUs."""
    coordinated = ("--enable-coordination-mode", f"--coordination-file={path}")
    return [*MODULE, "1", f"--simulate={simulated}", *coordinated, *words]


def script_says(path: str) -> str:
    """Ask the script for one of three GPUs; return its answer, or the reason why there is none."""
    said = Answer(subprocess.Popen(script(path, 3), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return said.devices if said.out else said.reason


def both_refuse(path: str) -> str:
    """Return why the script grants nothing, which is why Coordination does not."""
    reason = error_of(CoordinationError, lambda: claim(path))
    assert script_says(path) == reason
    return reason


def content(path: str) -> str:
    return Path(path).read_text(encoding="ascii")


def error_of(kind: type[Exception], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def no_wait() -> float:
    return time.monotonic()


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        fcntl.flock(file, fcntl.LOCK_UN)  # processes that were started meanwhile have it open, too


class Events:
    """What happens, one after the other, whenever a process that waits pauses; then it goes on without a pause."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.left = list(events)
        self.reasons: list[str] = []

    def __call__(self, seconds: float, reason: str) -> None:
        assert seconds >= 0
        self.reasons.append(reason)
        assert len(self.reasons) < 1000, f"never granted: {reason}"
        if self.left:
            self.left.pop(0)()


def coordination(path: str, *events: Callable[[], object]) -> Coordination:
    return Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=Events(*events))


def ask(path: str, devices: Sequence[Device], amount: int = 1, *, pid: int = 99, wait: float = 0) -> list[str]:
    return tokens(coordination(path).claim(devices, amount, made_up(pid), wait=wait))


def refusal(path: str, devices: Sequence[Device], amount: int = 1) -> str:
    return error_of(NotEnoughDevicesError, lambda: ask(path, devices, amount))


def give_back(path: str, devices: Sequence[Device], pid: int) -> None:
    assert Coordination(path, "gpu").release(devices, made_up(pid)) == len(devices)


def places(path: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return content(f"{path}.queue").count("\n")
    return 0


def leftovers(path: str) -> set[str]:
    """Return what stands beside the coordination file that neither the lock is nor a claim names."""
    locks = {f"{path}.witness-{claim.holders[0].life_lock}" for claim in ledger.read(path)}
    names = {f"{os.path.dirname(path)}/{name}" for name in os.listdir(os.path.dirname(path))}
    return names - locks - {path, f"{path}.lock"}


def queue_up(path: str, start: Start, devices: Sequence[Device], amount: int = 1) -> Asker:
    """Start a process that waits; its place is there."""
    before = places(path)
    process = start(lambda: claim(path, amount, devices, LONG))
    wait_until(lambda: places(path) > before)
    return process


class HostOfRuns:
    """A coordination file, and made-up processes, of which some are dead, and some run inside of others."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dead: set[int] = set()

    def inside(self, *runs: str, pause: Callable[[float, str], None] = lambda _seconds, _reason: None) -> Coordination:
        """Return the coordination as a process sees it that is inside of these runs, the outermost first."""
        around = [frozenset(run.split(",")) for run in runs]
        return Coordination(self.path, "gpu", in_container=on_the_host, gone=self.is_gone, pause=pause, runs=around)

    def is_gone(self, process: Process, here: Observer) -> bool:
        return process.pid in self.dead
