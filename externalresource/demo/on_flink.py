"""The demo on real Flink: a PyFlink job reads handwritten digits on two TaskManagers, each on a GPU of its own.

It is the demo with which GPUs came to Flink. Where there are too few GPUs, they are simulated.
"""

import contextlib
import importlib
import signal
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Sequence

from externalresource.demo import digits, flink_host, text
from externalresource.demo.flink_host import Flink, Report, TaskManager
from externalresource.demo.gpus import Gpus
from externalresource.errors import ConfigurationError, ExternalResourceError

_SHOWN = 8

_Write = Callable[[str], None]


def run(task_managers: int = 2, gpus: int = 2, write: _Write = print) -> int:
    """Show it, in lines of text, and return the exit status; ExternalResourceError if it does not go as it should."""
    if not 0 < task_managers <= gpus:
        raise ConfigurationError(f"each TaskManager of Flink needs a GPU: {task_managers} of them cannot share {gpus}")
    digits.check_installed()
    flink_host.check_installed()
    for each in (signal.SIGHUP, signal.SIGTERM):  # from a terminal that is closed, or a process manager: as Ctrl-C
        if signal.getsignal(each) is signal.SIG_DFL:
            signal.signal(each, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="externalresource-", ignore_cleanup_errors=True) as folder:
        shared = Gpus(folder, gpus)
        write(shared.first_line)
        configuration = shared.configuration(flink_host.discovery_script())
        version = importlib.import_module("pyflink.version").__version__
        write(f"\nEach TaskManager of Flink {version} reads this:\n\n{textwrap.indent(configuration, '    ')}")
        with contextlib.closing(Flink(folder, configuration)) as flink:
            _show(flink, shared, task_managers, write)
            write("\nKilling all of Flink (SIGKILL), so that it gives nothing back; but it is provably gone:\n")
        write(text.claims(shared.claims()))
    return 0


def _show(flink: Flink, gpus: Gpus, count: int, write: _Write) -> None:
    write(f"Starting a JobManager and {text.count(count, 'TaskManager')}, which takes some ten seconds:\n")
    members = _show_members(flink.start(count), write)
    write(f"\nThe coordination file says who holds what:\n\n{text.claims(gpus.claims())}")
    write("\nSubmitting a PyFlink job, externalresource/demo/flink_job.py, which takes some seconds.")
    flink.submit(count, gpus.libraries)
    _, unread = digits.learned_and_unread(0)
    write(
        "It is accepted. Each TaskManager now starts a Python worker. Its operator asks\n"
        'get_external_resource_infos("gpu"), learns to read digits on that GPU, and reads its part of\n'
        f"{len(unread.labels)} others:\n"
    )
    reports = flink.reports()
    _check(members, reports)
    _show_subtasks(members, reports, unread.labels.tolist(), write)
    _show_answers(reports, unread, write)


def _show_members(members: Iterable[TaskManager], write: _Write) -> list[TaskManager]:
    write("  TaskManager  PID      GPU")
    shown: list[TaskManager] = []
    for member in members:
        write(f"  {member.number:<11}  {member.pid:<7}  {','.join(member.devices)}")
        shown.append(member)
    devices = [device for member in shown for device in member.devices]
    if len(set(devices)) < len(devices):
        raise ExternalResourceError(f"one GPU was given to two TaskManagers: {', '.join(devices)}")
    return shown


def _check(members: Sequence[TaskManager], reports: Sequence[Report]) -> None:
    """Raise ExternalResourceError unless the operator was told in each TaskManager of the GPUs that this one has."""
    had = {member.pid: list(member.devices) for member in members}
    told = {report.task_manager: list(report.devices) for report in reports}
    if told != had:
        raise ExternalResourceError(f"by their pids, the TaskManagers have GPUs {had}, but operators were told {told}")


def _show_subtasks(
    members: Sequence[TaskManager], reports: Sequence[Report], labels: Sequence[int], write: _Write
) -> None:
    numbers = {member.pid: member.number for member in members}
    write("  subtask  PID      TaskManager  GPU  digits  accuracy")
    for report in reports:
        accuracy = _right(report.answers, labels) / len(report.answers)
        write(
            f"  {report.number:<7}  {report.pid:<7}  {numbers[report.task_manager]:<11}  "
            f"{','.join(report.devices):<3}  {len(report.answers):<6}  {accuracy:.1%}"
        )


def _show_answers(reports: Sequence[Report], unread: digits.Digits, write: _Write) -> None:
    labels = unread.labels.tolist()
    answers = dict(answer for report in reports for answer in report.answers)
    if len(answers) < len(labels):
        raise ExternalResourceError(f"the job read only {len(answers)} of {len(labels)} digits")
    right = _right(answers.items(), labels)
    write(
        f"\nWith {text.LIBRARIES[reports[0].library]} they read {right} of {len(labels)} digits correctly, "
        f"an accuracy of {right / len(labels):.1%}. The first ones:\n"
    )
    write(text.pictures(unread.images[:_SHOWN].tolist(), [answers[place] for place in range(_SHOWN)]))


def _right(answers: Iterable[tuple[int, int]], labels: Sequence[int]) -> int:
    return sum(answer == labels[place] for place, answer in answers)
