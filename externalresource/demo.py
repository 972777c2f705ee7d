"""The demo: the GPUs of a host are divided among TaskManager processes, one of which is killed.

It is the demo with which GPUs came to Flink, operators that read handwritten digits, with real processes and a real
coordination file. Where there are too few GPUs, they are simulated.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any

from externalresource.coordination import Holding
from externalresource.demo_host import Host, Report
from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError
from externalresource.plugins import create_driver

_LIBRARIES = {"cupy": "CuPy", "torch": "PyTorch", "numpy": "NumPy"}
_WIDTH = 80
_MASK = 40  # characters of a UUID
_INK = 8  # of 16: darker pixels are shown
# Two pixels, one above the other, by which of them are dark.
_BLOCKS = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
_ASCII = {(False, False): " ", (True, False): "'", (False, True): ".", (True, True): ":"}

_Write = Callable[[str], None]


def run(task_managers: int = 2, gpus: int = 2, write: _Write = print) -> int:
    """Show it, in lines of text, and return the exit status; ExternalResourceError if it does not go as it should."""
    _check(task_managers, gpus)
    usable = _usable_gpus()
    write(_first_line(usable, gpus))
    with (
        tempfile.TemporaryDirectory(prefix="externalresource-", ignore_cleanup_errors=True) as folder,
        contextlib.closing(Host(folder, max(usable, gpus), simulated=usable < gpus)) as host,
    ):
        _show(host, task_managers, write)
    return 0


def _check(task_managers: int, gpus: int) -> None:
    if task_managers < 1 or gpus < 1:
        raise ConfigurationError(f"the demo needs one TaskManager and one GPU or more, not {task_managers} and {gpus}")
    if not all(map(importlib.util.find_spec, ("numpy", "sklearn"))):
        raise ExternalResourceError("the demo needs NumPy and scikit-learn: pip install 'externalresource[demo]'")


def _usable_gpus() -> int:
    if "EXTERNALRESOURCE_GPU_SIMULATE" in os.environ:  # what is listed then is not there
        return 0
    driver: Any = create_driver("gpu", {})
    try:
        return sum(info.get_property("unusable") is None for info in driver.devices())
    except DiscoveryError:
        return 0


def _first_line(usable: int, gpus: int) -> str:
    if usable >= gpus:
        return f"Nothing in this demo is simulated: this host has {_count(usable, 'usable NVIDIA GPU')}."
    found = f"this host has only {_count(usable, 'usable NVIDIA GPU')}" if usable else "no usable NVIDIA GPU was found"
    return f"The {_count(gpus, 'GPU')} of this demo will be simulated, as {found}. All else is real."


def _show(host: Host, task_managers: int, write: _Write) -> None:
    write(f"\nEach TaskManager reads this configuration, in Flink's own keys:\n\n{_indented(host.configuration)}")
    write(f"Starting {_count(task_managers, 'TaskManager')} at once; each claims a GPU and learns to read digits:\n")
    first, *_ = _show_reports(host.start(task_managers), min(task_managers, host.gpus), write)
    write(f"\nTaskManager {first.number} trained with {_LIBRARIES[first.library]}. It reads:\n\n{_pictures(first)}")
    write(f"\nThe coordination file says who holds what:\n\n{_claims(host.claims())}")
    host.kill(first.number)
    write(f"\nKilling TaskManager {first.number} (SIGKILL), so that it gives nothing back; but it is provably gone:\n")
    write(_claims(host.claims()))
    left = host.gpus - sum(claim.living for claim in host.claims())
    write(f"\nStarting another, which asks for all that no living process holds, {_count(left, 'GPU')}:\n")
    (new,) = _show_reports(host.start(1, amount=left), 1, write)
    write(f"\n{_handed_on(first, new)}")
    host.end()
    write(f"Ending them all; they give back what they hold. Claims that are left: {len(host.claims())}.")


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


def _pictures(report: Report) -> str:
    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    halves = _BLOCKS if utf8 else _ASCII
    lines = (
        "".join(
            "  "
            + "".join(halves[above > _INK, below > _INK] for above, below in zip(*image[row : row + 2], strict=True))
            for image in report.images
        ).rstrip()
        for row in range(0, 8, 2)
    )
    return "\n".join([*lines, "".join(f"  {answer:^8}" for answer in report.answers)])


def _claims(claims: Collection[Holding]) -> str:
    rows = (
        f"  {claim.claim.token:<3}  {claim.owner.pid:<7}  {claim.owner.program:<12}  {claim.since}  "
        f"{'lives' if claim.living else 'is gone'}"
        for claim in claims
    )
    return "\n".join(["  GPU  PID      program       since                 the process", *rows])


def _handed_on(old: Report, new: Report) -> str:
    if not set(old.devices) <= set(new.devices):
        raise ExternalResourceError(f"GPU {', '.join(old.devices)} was not handed on to TaskManager {new.number}")
    return f"GPU {', '.join(old.devices)} went from TaskManager {old.number} to TaskManager {new.number}."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")
