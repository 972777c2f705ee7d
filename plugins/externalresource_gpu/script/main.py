"""The discovery script: Flink's protocol in, devices out.

Flink, Spark or the GPU driver start it, wait 10 seconds, read one line, and kill what is late. It may be killed at any
moment, so it leaves nothing behind that could still record a claim; what it cannot deliver, it takes back.

nvidia-smi takes 50 ms and the imports of coordination 30: it is started first, so that one hides behind the other.
"""

import gc
import os
import sys
import time

from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError
from externalresource_gpu.question import Question
from externalresource_gpu.script import dialects
from externalresource_gpu.script.options import USAGE, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from externalresource.coordination import Owner
    from externalresource_gpu.device import Device
    from externalresource_gpu.question import Host

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


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
            _deliver(USAGE)
        else:
            _decide(Options(words, os.environ), parent)
    except ExternalResourceError as error:
        _complain(str(error))
        return _USAGE if isinstance(error, ConfigurationError) else _FAILED
    return 0


def _decide(options: Options, parent: int) -> None:
    """Answer, and write to the log file how."""
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
    return f"named {_tokens(chosen)} as {host.backend} sees them, without coordination{_warn(host, chosen)}"


def _coordinated(options: Options, parent: int, question: Question, deadline: float) -> str:
    from externalresource.coordination import Coordination
    from externalresource_gpu.script.progress import Progress

    owner = _owner(options, parent)
    progress = Progress(options.terminal)

    def pause(seconds: float, reason: str) -> None:
        _check_asker(parent, owner)
        progress.show(reason)
        _sleep(seconds)
        _look_again(question, host, deadline + options.wait)

    coordination = Coordination(options.coordination_file, "gpu", pause=pause)
    host = question.host(deadline)
    candidates = _candidates(host)
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
    who = f"pid {owner.pid} ({owner.program})"
    return f"granted {_tokens(claimed)} as {host.backend} sees them to {who}{_warn(host, claimed)}"


def _candidates(host: "Host") -> "list[Device]":
    """Return what may be handed out; NotEnoughDevicesError says so, if a run around this is why they are too few."""
    from externalresource.coordination import runs_around
    from externalresource.errors import NotEnoughDevicesError

    try:
        return host.candidates()
    except NotEnoughDevicesError as error:
        if not runs_around():
            raise
        raise NotEnoughDevicesError(
            f"{error}; this is inside of `externalresource run`, and gets a share of that one's devices"
        ) from None


def _owner(options: Options, parent: int) -> "Owner":
    from externalresource.coordination import identify, new_grant

    if options.until_children_exit and options.witness is None:
        raise ConfigurationError(
            "option --until-children-exit needs --witness: the owner's children inherit nothing from this script; "
            "use our driver, or `externalresource run --until-children-exit`"
        )
    return identify(
        parent if options.owner_pid is None else options.owner_pid,
        witness=options.witness,
        until_children_exit=options.until_children_exit,
        grant=options.grant or new_grant(),
    )


def _warn(host: "Host", granted: "Sequence[Device]") -> str:
    """Say on stderr what is doubtful about the answer, and return it for the log file, too."""
    doubts = host.doubts(granted)
    for doubt in doubts:
        _complain(f"warning: {doubt}")
    return "".join(f"; {doubt}" for doubt in doubts)


def _sleep(seconds: float) -> None:
    """Let others give back what is waited for; whoever wants to end this may, and it leaves the queue first."""
    import signal

    heeded = {number for number in _ending_signals() if signal.getsignal(number) != signal.SIG_IGN}  # see nohup
    asked = signal.sigtimedwait(heeded, seconds)
    # A process that was stopped for longer than the pause gets an answer that was never filled in (CPython).
    if asked is None or asked.si_signo not in heeded:
        return
    if asked.si_signo == signal.SIGINT:
        raise KeyboardInterrupt
    raise _Ended(asked.si_signo)


def _look_again(question: Question, host: "Host", deadline: float) -> None:
    """Ask the driver, which may hang, and whoever wants to end this may: it leaves the queue first."""
    import signal

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    _hold_signals(hold=False)
    try:
        question.look_again(host, deadline)
    finally:
        _hold_signals(hold=True)


def _end(number: int, _frame: object) -> None:
    raise _Ended(number)


def _ending_signals() -> "set[int]":
    import signal

    return {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def _die_of(number: int) -> "NoReturn":
    import signal

    signal.signal(number, signal.SIG_DFL)
    _hold_signals(hold=False)
    signal.raise_signal(number)
    raise AssertionError("a signal that ends the process did not")


def _hold_signals(*, hold: bool) -> None:
    import signal

    how = signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK
    signal.pthread_sigmask(how, _ending_signals())


def _check_asker(parent: int, owner: "Owner") -> None:
    """Raise if there is nobody any more to answer to, or to record."""
    from externalresource.coordination import lives

    if os.getppid() != parent:
        raise DiscoveryError(f"the process that started this script (pid {parent}) has ended: nothing is granted")
    if not lives(owner):
        raise DiscoveryError(f"the owner (pid {owner.pid}) has ended: nothing is granted")


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
        os.write(2, _line(f"nvidia-gpu-discovery: {message}"))
    except OSError:
        pass


def _log(options: Options, parent: int, decision: str) -> None:
    if options.log_file is None:
        return
    line = _line(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} asked by pid {parent}: {decision}")
    try:
        # A pipe that nobody reads would block here, after the answer, until Flink kills this and has lost the devices.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        os.write(os.open(options.log_file, flags, 0o644), line)
    except OSError as error:
        _complain(f"cannot write to the log file {options.log_file}: {error.strerror}")


def _line(text: str) -> bytes:
    """Return the text as one line that commands no terminal, whatever a path or the name of a program brought in."""
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(text.splitlines()))
    return plain.encode() + b"\n"


def _tokens(devices: "Sequence[Device]") -> str:
    return ",".join(device.token for device in devices) or "none"


def _open_if_closed(descriptor: int) -> None:
    """Put a full device where a standard stream is closed, lest the coordination file become our stdout."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open("/dev/full", os.O_RDWR)


if __name__ == "__main__":
    main()
