"""The discovery script: Flink's protocol in, devices out.

Flink or Spark start it, wait 10 seconds, read one line, and kill what is late. It may be killed at any
moment, so it leaves nothing behind that could still record a claim; what it cannot deliver, it takes back.

nvidia-smi takes 50 ms and the imports of coordination 30: it is started first, so that one hides behind the other.
"""

import gc
import os
import sys
import time

from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError
from externalresource_gpu.question import Question
from externalresource_gpu.script import dialects, said
from externalresource_gpu.script.options import Options, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from externalresource.coordination import Holder
    from externalresource_gpu.device import Device
    from externalresource_gpu.host import Host

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_ENDING = 1, 2, 15  # SIGHUP, SIGINT, SIGTERM on each Linux; the module signal costs 3 ms


class _Ended(BaseException):
    """A signal asked for the end of this script while it waited in the queue."""

    def __init__(self, number: int) -> None:
        self.number = number


def main() -> "NoReturn":
    """Answer the arguments on stdout and exit: 0, 1 with the reason on stderr, 2 if the arguments are not allowed."""
    parent = os.getppid()  # before anything else: it may end while this runs
    gc.disable()  # it takes 3 ms of the imports, and all is gone soon
    sys.unraisablehook = _heed
    for descriptor in range(3):
        _open_if_closed(descriptor)
    try:
        status = _run(sys.argv[1:], parent)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except _Ended as ended:
        status = _die_of(ended.number)
    os._exit(status)  # nothing is left to tidy up, and tearing the interpreter down takes 7 ms


def _heed(lost: "sys.UnraisableHookArgs") -> None:
    """End at an interrupt that came while a callback ran, as imports have some: Python itself would drop it."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        os._exit(_INTERRUPTED)
    sys.__unraisablehook__(lost)


def _run(words: "Sequence[str]", parent: int) -> int:
    try:
        if "--help" in words or "-h" in words:
            _deliver(usage())
        else:
            _decide(Options(words, os.environ), parent)
    except ExternalResourceError as error:
        _complain(str(error))
        return _USAGE if isinstance(error, ConfigurationError) else _FAILED
    return 0


def _decide(options: Options, parent: int) -> None:
    try:
        decision = _answer(options, parent)
    except ExternalResourceError as error:
        _log(options, parent, f"refused: {error}")
        raise
    _log(options, parent, decision)


def _answer(options: Options, parent: int) -> str:
    deadline = time.monotonic() + options.timeout
    if options.amount == 0 and not options.list:
        _deliver(dialects.render(options.format, []))
        return "0 wanted, none granted"
    question = Question(options)
    question.start()
    if options.coordination and not options.list:
        return _coordinated(options, parent, question, deadline)
    host = question.host(deadline)
    if options.list:
        _deliver(host.listing())
        return f"listed all devices as {host.backend} sees them"
    chosen = host.choose(host.candidates(), [], options.amount)
    _deliver(host.answer(chosen))
    _warn(host, chosen)
    return host.decision(chosen, None)


def _coordinated(options: Options, parent: int, question: Question, deadline: float) -> str:
    from externalresource.coordination import Coordination, Holder, flock, identify, new_grant, unshielded

    owner = Holder(identify(parent if options.owner_pid is None else options.owner_pid), new_grant())
    progress = said.Progress()

    def pause(seconds: float, reason: str) -> None:
        _check_asker(parent, owner)
        progress.show(reason)
        _sleep(seconds)
        _look_again(question, host, deadline + options.wait, first=coordination.is_first)

    coordination = Coordination(options.coordination_file, "gpu", pause=pause, lock=flock, run=unshielded)
    host = question.host(deadline)
    candidates = host.claimable()
    _check_asker(parent, owner)
    # From here to the answer nothing but SIGKILL may end this: a claim that nobody was told of would be lost.
    _hold_signals(hold=True)
    try:
        claimed = coordination.claim(
            candidates,
            options.amount,
            owner,
            choose=host.choose,
            deadline=deadline,
            wait=options.wait,
            suits=host.suits,
        )
    finally:
        progress.clear()
    try:
        _check_asker(parent, owner)
        _check_time(deadline + options.wait, options.timeout)
        _deliver(host.answer(claimed))
    except BaseException:
        coordination.release(claimed, owner)
        raise
    _warn(host, claimed)
    return host.decision(claimed, owner.process)


def _warn(host: "Host", granted: "Sequence[Device]") -> None:
    for doubt in host.doubts(granted):
        _complain(f"warning: {doubt}")


def _sleep(seconds: float) -> None:
    """Let others give back what is waited for; whoever wants to end this may, and it leaves the queue first."""
    import signal

    heeded = {number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN}  # see nohup
    asked = signal.sigtimedwait(heeded, seconds)
    # A process that was stopped for longer than the pause gets an answer that was never filled in (CPython).
    if asked is None or asked.si_signo not in heeded:
        return
    if asked.si_signo == signal.SIGINT:
        raise KeyboardInterrupt
    raise _Ended(asked.si_signo)


def _look_again(question: Question, host: "Host", deadline: float, *, first: bool) -> None:
    """Ask the driver, which may hang, and whoever wants to end this may: it leaves the queue first."""
    import signal

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    _hold_signals(hold=False)
    try:
        question.look_again(host, deadline, first=first)
    finally:
        _hold_signals(hold=True)


def _end(number: int, _frame: object) -> None:
    raise _Ended(number)


def _die_of(number: int) -> "NoReturn":
    import signal

    signal.signal(number, signal.SIG_DFL)
    _hold_signals(hold=False)
    signal.raise_signal(number)
    raise AssertionError("a signal that ends the process did not")


def _hold_signals(*, hold: bool) -> None:
    import signal

    how = signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK
    signal.pthread_sigmask(how, _ENDING)


def _check_asker(parent: int, owner: "Holder") -> None:
    """Raise if there is nobody any more to answer to, or to record."""
    from externalresource.coordination import lives

    if os.getppid() != parent:
        raise DiscoveryError(f"the process that started this script (pid {parent}) has ended: nothing is granted")
    if not lives(owner.process):
        raise DiscoveryError(f"the owner (pid {owner.process.pid}) has ended: nothing is granted")


def _check_time(deadline: float, timeout: float) -> None:
    if time.monotonic() > deadline:
        raise DiscoveryError(f"it took longer than the {timeout:g} s of --timeout: nothing is granted")


def _deliver(text: str) -> None:
    """Write the answer, which is shorter than a pipe's buffer; raise if nobody can have read all of it."""
    answer = text.encode()
    try:
        written = os.write(1, answer)
    except OSError as error:
        raise DiscoveryError(
            f"the answer could not be written to stdout ({error.strerror}): nothing is granted"
        ) from None
    if written < len(answer):
        raise DiscoveryError(f"stdout took only {written} of the answer's {len(answer)} bytes: nothing is granted")


def _complain(message: str) -> None:
    try:  # noqa: SIM105 - contextlib would be imported before nvidia-smi is started
        os.write(2, said.line(f"nvidia-gpu-discovery: {message}"))
    except OSError:
        pass


def _log(options: Options, parent: int, decision: str) -> None:
    if failure := said.log(options.log_file, parent, decision):
        _complain(failure)


def _open_if_closed(descriptor: int) -> None:
    """Put a full device where a standard stream is closed, lest the coordination file become our stdout."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open("/dev/full", os.O_RDWR)


if __name__ == "__main__":
    main()
