"""What `run` does where it is pid 1 of a container: it starts the command, and does an init's duties beside it.

As the command it would be the parent of all that others leave in the container, and what holds its life lock would be
the command's child. So it stays and holds that itself. The command is in its process group: what a terminal sends, it
sends to both.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import NoReturn

from externalresource.cli.run import EndedError

_OF_THE_KERNEL = 0x80  # si_code of a signal that nobody sent: SI_KERNEL
_OWN = {signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU}
_OF_A_LEADER = {signal.SIGHUP, signal.SIGCONT}  # what a terminal sends to the first process of its session only
_SIGNALLED = 128


def end_when_asked() -> None:
    """Let SIGTERM and SIGHUP end this process while it claims: of pid 1 the kernel keeps what would end another one."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _frame: object) -> NoReturn:
    raise EndedError(_SIGNALLED + number)


def run(command: Sequence[str]) -> int:
    """Start the command, pass on what is sent to this process until it has ended, and return its exit status.

    That is 128 and the number of the signal that ended it, if one did. OSError if it cannot be started.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would keep no statuses
    started = _start(command)  # kept: when it is collected, it reaps the child itself
    child = started.pid
    while True:
        came = signal.sigwaitinfo(signal.valid_signals())
        if came.si_signo == signal.SIGCHLD and (status := _reaped(child)) is not None:
            return status if status >= 0 else _SIGNALLED - status
        if _is_for(child, came):
            with contextlib.suppress(PermissionError):  # the command is another user's by now, as below sudo
                os.kill(child, came.si_signo)


def _start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start the command as exec would, with the signals that this process was started with, and block them here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def as_before() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:  # it lets the command have those again that Python ignores
        return subprocess.Popen(command, close_fds=False, preexec_fn=as_before)  # noqa: PLW1509 - one thread
    except OSError:
        as_before()
        raise


def _reaped(child: int) -> int | None:
    """Reap all that has ended; return the exit status of the child, once it is among them."""
    found = None
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return found
            if pid == child:
                found = os.waitstatus_to_exitcode(status)
    except ChildProcessError:
        return found


def _is_for(child: int, came: signal.struct_siginfo) -> bool:
    """Return whether the child has not got a signal itself, as its process group gets what a terminal sends."""
    number = came.si_signo
    of_the_group = came.si_code == _OF_THE_KERNEL and number not in _OF_A_LEADER
    return number not in _OWN and not (of_the_group and os.getpgid(child) == os.getpgrp())
