"""The demo: the GPUs of a host are divided among TaskManager processes, one of which is killed.

It is the demo with which GPUs came to Flink, operators that read handwritten digits, with real processes and a real
coordination file. Where there are too few GPUs, they are simulated.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from externalresource.coordination import Claim
from externalresource.demo import digits
from externalresource.demo.gpus import Gpus
from externalresource.demo.processes import Processes
from externalresource.demo.text import LIBRARIES, claims, count, pictures
from externalresource.errors import ConfigurationError, ExternalResourceError

_WIDTH = 80
_MASK = 40  # characters of a UUID

_Write = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What a TaskManager says once it has read its digits, or was refused."""

    number: int
    pid: int
    refused: str | None = None
    devices: Sequence[str] = ()
    mask: str = ""
    library: str = ""
    accuracy: float = 0.0
    images: Sequence[Sequence[Sequence[float]]] = ()
    answers: Sequence[int] = ()


class Host(Processes):
    """TaskManagers that share one configuration file and one coordination file."""

    def __init__(self, folder: str, gpus: Gpus) -> None:
        super().__init__(folder, os.environ)
        self.gpus = gpus
        self.configuration = gpus.configuration()
        self._config = os.path.join(folder, "config.yaml")
        with open(self._config, "w", encoding="utf-8") as file:
            file.write(self.configuration)

    def start(self, count: int, *, amount: int = 1) -> list[Report]:
        """Start so many TaskManagers at once and return what they say."""
        program = [sys.executable, "-P", "-m", "externalresource.demo.task_manager", self._config]
        first = len(self.started) + 1
        for number in range(first, first + count):
            words = [*program, str(number), self.gpus.libraries, f"external-resource.gpu.amount={amount}"]
            self.begin(f"TaskManager {number}", *words)
        started = enumerate(self.started[-count:], start=first)
        return [Report(number, each.pid, **json.loads(self.line(each, '"refused"'))) for number, each in started]

    def kill(self, number: int) -> None:
        process = self.started[number - 1]
        process.end(signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """Let them give back what they hold, and end."""
        for process in self.started:
            process.end(signal.SIGTERM)
        for process in self.started:
            process.wait()


def run(task_managers: int = 2, gpus: int = 2, write: _Write = print) -> int:
    """Show it, in lines of text, and return the exit status; ExternalResourceError if it does not go as it should."""
    if task_managers < 1 or gpus < 1:
        raise ConfigurationError(f"the demo needs one TaskManager and one GPU or more, not {task_managers} and {gpus}")
    digits.check_installed()
    with tempfile.TemporaryDirectory(prefix="externalresource-", ignore_cleanup_errors=True) as folder:
        shared = Gpus(folder, gpus)
        write(shared.first_line)
        with contextlib.closing(Host(folder, shared)) as host:
            _show(host, task_managers, write)
    return 0


def _show(host: Host, task_managers: int, write: _Write) -> None:
    configuration = textwrap.indent(host.configuration, "    ")
    write(f"\nEach TaskManager reads this configuration, in Flink's own keys:\n\n{configuration}")
    write(f"Starting {count(task_managers, 'TaskManager')} at once; each claims a GPU and learns to read digits:\n")
    first, *_ = _show_reports(host.start(task_managers), min(task_managers, host.gpus.count), write)
    write(f"\nTaskManager {first.number} trained with {LIBRARIES[first.library]}. It reads:\n")
    write(pictures(first.images, first.answers))
    write(f"\nThe coordination file says who holds what:\n\n{claims(host.gpus.claims())}")
    host.kill(first.number)
    write(f"\nKilling TaskManager {first.number} (SIGKILL), so that it gives nothing back; but it is provably gone:\n")
    write(claims(host.gpus.claims()))
    left = host.gpus.count - _taken(host.gpus.claims())
    write(f"\nStarting another, which asks for all that no living process holds, {count(left, 'GPU')}:\n")
    (new,) = _show_reports(host.start(1, amount=left), 1, write)
    write(f"\n{_handed_on(first, new)}")
    host.end()
    write(f"Ending them all; they give back what they hold. Claims that are left: {len(host.gpus.claims())}.")


def _taken(claims: Collection[Claim]) -> int:
    """Return how many devices living processes hold: who has a share of one has no further one."""
    return sum(claim.living for claim in claims)


def _show_reports(reports: Sequence[Report], grants: int, write: _Write) -> list[Report]:
    """Show what the TaskManagers got, and return those that got something: so many, with a GPU of its own each."""
    granted = [report for report in reports if report.refused is None]
    refused = [report for report in reports if report.refused is not None]
    if len(granted) < grants:
        raise ExternalResourceError(f"TaskManager {refused[0].number} got no GPU: {refused[0].refused}")
    devices = [device for report in granted for device in report.devices]
    if len(set(devices)) < len(devices):
        raise ExternalResourceError(f"one GPU was given to two TaskManagers: {', '.join(devices)}")
    write("  TaskManager  PID      GPU  CUDA_VISIBLE_DEVICES                      accuracy")
    for report in granted:
        mask = report.mask if len(report.mask) <= _MASK else f"{report.mask[: _MASK - 3]}..."
        own = ",".join(report.devices)
        write(f"  {report.number:<11}  {report.pid:<7}  {own:<3}  {mask:<{_MASK}}  {report.accuracy:.1%}")
    for report in refused:
        reason = f"TaskManager {report.number} was refused: {report.refused}"
        lines = textwrap.wrap(reason, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        write("\n".join(["", *lines]))
    return granted


def _handed_on(old: Report, new: Report) -> str:
    if not set(old.devices) <= set(new.devices):
        raise ExternalResourceError(f"GPU {', '.join(old.devices)} was not handed on to TaskManager {new.number}")
    return f"GPU {', '.join(old.devices)} went from TaskManager {old.number} to TaskManager {new.number}."
