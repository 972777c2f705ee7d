"""What the tests of claims call their devices and processes, and how they ask for some."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, Holder, Process, identify
from externalresource.coordination.process import Observer
from tests.support.devices import Device
from tests.support.processes import Running

Asker = Running[list[Device]]
Start = Callable[[Callable[[], list[Device]]], Asker]


def gpus(count: int) -> list[Device]:
    return [Device(str(index), f"GPU-{index}") for index in range(count)]


def of(gpu: str, name: str) -> Device:
    """Return a slice, as MIG has them."""
    return Device(f"MIG-{name}", f"MIG-{name}", f"GPU-{gpu}", gpu)


def nobody_ends(who: Process, here: Observer) -> bool:
    return False


def made_up(pid: int) -> Holder:
    return Holder(Process(pid, pid, "b", 1, 1, uid=0, program="java"))


def me() -> Holder:
    return Holder(identify(os.getpid()))


def tokens(devices: Sequence[Device]) -> list[str]:
    return [device.token for device in devices]


def claim(path: str, amount: int, devices: Sequence[Device]) -> list[Device]:
    return Coordination(path, "gpu").claim(devices, amount, me())


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
