"""What a claim and its release take within a process, beside what their files alone take.

All devices but one are claimed by as many living owners; the last is claimed and given back. The floor is what nothing
that coordinates by a file can go below: lock, read, write the same bytes to a new file, rename; twice. Then, for
information, what one claim takes if no device is unclaimed, so that each owner is looked at; beside the floor once.
"""

import contextlib
import fcntl
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

import contenders
import owners
from externalresource.coordination import Coordination, Holder, Process, identify
from externalresource.errors import NotEnoughDevicesError

#: By the number of devices: how long a claim with its release may take, as a multiple of the floor.
GOALS = {8: 2.0, 1024: 3.0}
_WARMING = 3  # runs before those that count


@dataclass(frozen=True, slots=True)
class Times:
    """Medians in microseconds, and the median of the ratios of paired runs."""

    ours: float
    floor: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Device:
    token: str
    uuid: str
    parent_uuid: None = None
    parent_token: None = None


class Pair:
    """Ours and the floor, with a coordination file each."""

    def __init__(self, folder: Path, number: int, holders: Sequence[Process]) -> None:
        self._ours, self._floor = folder / "ours", folder / "floor"
        self._devices = [Device(str(index), f"GPU-00000000-0000-4000-8000-{index:012}") for index in range(number)]
        self._asker = Holder(identify(os.getpid()))
        self._coordination = Coordination(str(self._ours), "gpu")
        for device, holder in zip(self._devices, holders, strict=False):
            self._coordination.claim([device], 1, Holder(holder))
        self._released = self._ours.read_bytes()
        self._floor.write_bytes(self._released)

    def claim_and_release(self) -> None:
        self._coordination.release(self._coordination.claim(self._devices, 1, self._asker), self._asker)

    def floor_of_both(self) -> None:
        _pass(self._floor, self._claimed)
        _pass(self._floor, self._released)

    def claim(self) -> None:
        with contextlib.suppress(NotEnoughDevicesError):
            self._coordination.claim(self._devices, 1, self._asker)

    def floor_of_claim(self) -> None:
        _pass(self._floor, self._released)

    def put_back(self) -> None:
        self._ours.write_bytes(self._released)

    @property
    def _claimed(self) -> bytes:
        return self._released + self._released[self._released.rindex(b"\n", 0, -1) + 1 :]


def _pass(path: Path, content: bytes) -> None:
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(path, "rb") as file:
        file.read()
    with open(f"{path}.new", "wb") as file:
        file.write(content)
    os.replace(f"{path}.new", path)
    os.close(lock)


def compare(
    ours: Callable[[], None], floor: Callable[[], None], runs: int, before: Callable[[], None] = lambda: None
) -> Times:
    """Run the two in turn; `before` puts back what they changed."""
    pairs = [(_timed(ours, before), _timed(floor, before)) for _ in range(runs + _WARMING)][_WARMING:]
    return Times(
        ours=statistics.median(mine for mine, _ in pairs) * 1e6,
        floor=statistics.median(least for _, least in pairs) * 1e6,
        ratio=statistics.median(mine / least for mine, least in pairs),
    )


def _timed(action: Callable[[], None], before: Callable[[], None]) -> float:
    before()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def report(devices: int, held: str, times: Times, goal: float | None = None) -> None:
    judged = "" if goal is None else f"{goal:>6g}  {'met' if times.ratio <= goal else 'missed'}"
    click.echo(f"{devices:>7}  {held:<28}{times.ours:>9.0f}{times.floor:>9.0f}{times.ratio:>7.2f}{judged}")


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(1), default=300, show_default=True)
@click.option("--devices", type=click.IntRange(2, 4096), multiple=True, default=(8, 64, 256, 1024), show_default=True)
def main(runs: int, devices: Sequence[int]) -> None:
    click.echo(f"{contenders.machine()}\nMedians of {runs} runs in µs, and the median of the ratios of paired runs.\n")
    click.echo(f"{'devices':>7}  {'claims':<28}{'ours':>9}{'floor':>9}{'ratio':>7}{'goal':>6}")
    with owners.idle(max(devices)) as living:
        for number in devices:
            with _pair(number, living[: number - 1]) as pair:
                times = compare(pair.claim_and_release, pair.floor_of_both, runs)
            report(number, "all but one", times, GOALS.get(number))
        for number in devices:
            _report_all_claimed(number, living[:number], "all, of living: refused", runs // 10 + 1)
    for number in devices:
        _report_all_claimed(number, living[:number], "all, of dead: granted", runs // 10 + 1)


def _report_all_claimed(number: int, holders: Sequence[Process], held: str, runs: int) -> None:
    with _pair(number, holders) as pair:
        times = compare(pair.claim, pair.floor_of_claim, runs, pair.put_back)
    report(number, held, times)


@contextlib.contextmanager
def _pair(number: int, holders: Sequence[Process]) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as name:
        yield Pair(Path(name), number, holders)


if __name__ == "__main__":
    main()
