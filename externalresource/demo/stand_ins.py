"""The demo: the GPUs of a host are divided among TaskManager processes, one of which is killed.

It is the demo with which GPUs came to Flink, operators that read handwritten digits, with real processes and a real
coordination file. Where there are too few GPUs, they are simulated.
"""

import contextlib
import tempfile
import textwrap
from collections.abc import Callable, Collection, Sequence

from externalresource.coordination import Claim
from externalresource.demo import digits
from externalresource.demo.gpus import Gpus
from externalresource.demo.host import Host, Report
from externalresource.demo.text import claims, count, indented, library, pictures
from externalresource.errors import ConfigurationError, ExternalResourceError

_WIDTH = 80
_MASK = 40  # characters of a UUID

_Write = Callable[[str], None]


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
    write(f"\nEach TaskManager reads this configuration, in Flink's own keys:\n\n{indented(host.configuration)}")
    write(f"Starting {count(task_managers, 'TaskManager')} at once; each claims a GPU and learns to read digits:\n")
    first, *_ = _show_reports(host.start(task_managers), min(task_managers, host.gpus.count), write)
    write(f"\nTaskManager {first.number} trained with {library(first.library)}. It reads:\n")
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
        write(_row(report))
    for report in refused:
        write(_refusal(report))
    return granted


def _row(report: Report) -> str:
    mask = report.mask if len(report.mask) <= _MASK else f"{report.mask[: _MASK - 3]}..."
    devices = ",".join(report.devices)
    return f"  {report.number:<11}  {report.pid:<7}  {devices:<3}  {mask:<{_MASK}}  {report.accuracy:.1%}"


def _refusal(report: Report) -> str:
    text = f"TaskManager {report.number} was refused: {report.refused}"
    return "\n" + textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _handed_on(old: Report, new: Report) -> str:
    if not set(old.devices) <= set(new.devices):
        raise ExternalResourceError(f"GPU {', '.join(old.devices)} was not handed on to TaskManager {new.number}")
    return f"GPU {', '.join(old.devices)} went from TaskManager {old.number} to TaskManager {new.number}."
