"""What operators reported while they ran, and whether any two TaskManagers ever had one device."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from observer import Life, Outcome

from .rig import Cluster, TaskManager


class Report(NamedTuple):
    """One line of WhichGpu.java or which_gpu.py."""

    #: Nanoseconds of the clock that `time.monotonic_ns` reads.
    when: int
    reporter: int
    task_manager: int
    devices: str
    mask: str


def read(folder: Path, kind: str) -> list[Report]:
    """Return all that operators of a kind have reported, in order."""
    return sorted(report for path in folder.glob(f"{kind}-*") for report in _parse(path.read_bytes()))


def last(folder: Path, kind: str) -> list[Report]:
    """Return the last report of each operator of a kind."""
    return [report for path in folder.glob(f"{kind}-*") for report in _parse(_end(path))[-1:]]


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 300))
        return file.read().partition(b"\n")[2] if file.tell() else file.read()


def _parse(text: bytes) -> list[Report]:
    # What is not a whole line is still being written, or was when its operator was killed.
    lines = [line.split() for line in text.decode().splitlines(keepends=True) if line.endswith("\n")]
    return [Report(int(when), int(who), int(whose), devices, mask) for when, who, whose, devices, mask in lines]


def told(reports: Iterable[Report]) -> list[tuple[int, str, str]]:
    """Return the TaskManagers, with the devices and the mask that their operators have."""
    return sorted({(report.task_manager, report.devices, report.mask) for report in reports})


def lives(reports: Iterable[Report], killed: Mapping[int, int]) -> list[Life]:
    """Return from when until when each TaskManager provably lived and knew of each device, by its operators' word.

    When it was killed that ends, as a Python worker goes on for a while.
    """
    times = defaultdict(list)
    for report in sorted(reports):
        if report.when < killed.get(report.task_manager, report.when + 1):
            times[report.task_manager, report.devices].append(report.when)
    return [
        Life(Outcome.GRANTED, when[0], when[0], when[-1], when[-1], device=int(device))
        for (_, devices), when in times.items()
        for device in devices.split(",")
    ]


@dataclass
class Observer:
    """Looks at TaskManagers and at the coordination file all the time that it waits for anything."""

    cluster: Cluster
    task_managers: list[TaskManager]
    #: When those were killed that are dead, by pid.
    killed: dict[int, int] = field(default_factory=dict)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self.look()
            assert time.monotonic() < deadline, f"after {seconds} s still not so: {what}"
            time.sleep(0.05)
        self.look()

    def look(self) -> None:
        """No device is in the hands of two that live, and the coordination file says what they say."""
        told = [(each, each.devices) for each in self.task_managers if each.lives]
        claims = self.cluster.claims()
        # Who lives now has lived at both looks; who has been told nothing yet may have claimed already.
        living = [(each.pid, devices) for each, devices in told if devices and each.lives]
        in_hands = [device for _, devices in living for device in devices]
        assert len(in_hands) == len(set(in_hands)), f"a device is in two living hands: {living}"
        for pid, devices in living:
            assert [index for index, owner in claims if owner == pid] == devices, (
                f"pid {pid} is told {devices}: {claims}"
            )
