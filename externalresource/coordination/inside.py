"""Which runs a process is inside of: those whose grants its environment carries as a mark, if it may be there.

`CLASS:GRANT`, with a comma between the resources of a run and a semicolon before each run inside of it. What a program
starts carries its mark, too, unless it takes the variable away: so it tells who may still use a run's devices.
"""

import _thread
import os
import time
from collections.abc import Collection, Iterable, Sequence

from externalresource.coordination import process as processes
from externalresource.coordination.ledger import quoted
from externalresource.coordination.process import Observer, Process, Stat
from externalresource.errors import CoordinationError

_MARK = "EXTERNALRESOURCE_RUN"
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO in the kernel: the inode is the same on every machine
_LISTINGS = 100  # of the processes of a host, of which each shows new ones
_READINGS, _EXECUTES = 5, 0.01  # of an environment that is not there, and seconds between two of them
#: What a watcher is called, which may carry the mark of a run around that of its own.
WATCHER = "device-watcher"
_IGNORES = "EXTERNALRESOURCE_RUN_IGNORES"  # further programs of that kind, joined by commas
#: Programs that stay when what started them has ended, and use no device; their environments may be unreadable.
_SPARED = frozenset({"(sd-pam)", "bazel(", "dbus-daemon", "gpg-agent", "ssh-agent", "sshd", "sshd-session", "systemd"})
_GRADLE = b"org.gradle.launcher.daemon.bootstrap.GradleDaemon"  # which java runs
_STARTING = 2.0  # seconds in which one of them may become another program, as `ssh-agent COMMAND` does
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def runs_around() -> Sequence[frozenset[str]]:
    """Return in which runs this process is, the outermost first: of each its grants, one for each of its resources."""
    return [frozenset(mark.rpartition(":")[2] for mark in run) for run in _runs(os.environ.get(_MARK, ""))]


def run_variable(marks: Iterable[str]) -> dict[str, str]:
    """Return the variable that tells a program that it runs on these grants of this process, each with its class."""
    return {_MARK: ";".join([*filter(None, [os.environ.get(_MARK)]), ",".join(sorted(marks))])}


def mark(device_class: str, grant: str) -> str:
    """Return how a grant stands in the variable."""
    return f"{quoted(device_class, _PLAIN)}:{grant}"


def check_inside(runs: Iterable[Process], here: Observer) -> None:
    """Raise CoordinationError unless this process is of the user of each run, or root, or was started by the run.

    Everybody can read the names of grants in the coordination file.
    """
    for run in set(runs):
        if not (is_its_user(run, here) or _descends_from(run)):
            user = "a user who is not known" if run.uid is None else f"the user with uid {run.uid}"
            program = processes.program_of(run, here) or "of an unknown program"
            raise CoordinationError(
                f"{_MARK} names a run of {user}, pid {run.pid} ({program}), which has not started this process of uid "
                f"{os.getuid()}: nothing is granted; unset {_MARK} to claim as any other process"
            )


def is_its_user(run: Process, here: Observer) -> bool:
    """Return whether this process is of the user of a run, or root, and sees the same users."""
    return os.getuid() in (0, run.uid) and _has_its_users(run, here)


def _has_its_users(run: Process, here: Observer) -> bool:
    """Return whether uids mean the same for both: who makes a user namespace is there who he likes, also root."""
    own = _user_namespace("self")
    if own in (_INITIAL_USER_NAMESPACE, None):
        return True
    pid = processes.pid_here(run, here)
    return pid is not None and _user_namespace(str(pid)) == own


def _user_namespace(pid: str) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/user").st_ino
    except OSError:  # another user's process, or a kernel without such namespaces
        return None


def _descends_from(run: Process) -> bool:
    try:
        return run.pid in ancestors(os.getpid()) and processes.identify(run.pid) == run
    except CoordinationError:  # it is not to be seen, and may be another process that has this pid now
        return False


def ancestors(pid: int) -> Collection[int]:
    """Return a process and those above it, as far as they are to be seen in this pid namespace."""
    found = set[int]()
    while pid != 0:
        found.add(pid)
        stat = processes.look_at(pid)
        pid = stat.parent if stat and stat.parent not in found else 0
    return found


def bearer(
    wanted: str, first: Process, above: Collection[int] | None = None, seconds: float | None = None
) -> Process | None:
    """Return a process that carries the mark as that of its device of this class, or may do so; None if none provably.

    Of several it is the oldest. `first` is the process for which the mark was made: others that carry it are of the
    same user, and were started later. `above` are those above it, which may adopt what it leaves. CoordinationError if
    it cannot be told, or not in so many seconds: to read an environment may hang.
    """
    if seconds is None:
        return _bearer(wanted, first, above)
    found: list[Process | None] = []
    done = _thread.allocate_lock()
    done.acquire()

    def search() -> None:
        try:
            found.append(_bearer(wanted, first, above))
        except (OSError, CoordinationError):
            pass
        finally:
            done.release()

    try:
        _thread.start_new_thread(search, ())
        done.acquire(timeout=seconds)
    except RuntimeError:  # no more threads
        pass
    if not found:
        raise CoordinationError(f"it cannot be told whether a process carries {wanted}")
    return found[0]


def _bearer(wanted: str, first: Process, above: Collection[int] | None) -> Process | None:
    """Do so. That there is none takes a listing of which all could be read, and then another with nobody new in it."""
    cleared: dict[int, int] = {}  # processes that cannot carry it: the ticks of their starts, by pid
    outside: dict[int, int] = {}  # those of them that the run has not started, nor adopted anything of it
    complete = False
    for _ in range(_LISTINGS):
        listed, older, missed = _later(first, cleared)
        if above is not None:
            outside.update({pid: start for pid, start in older.items() if pid not in {1, *above}})
        if complete and not listed and not missed:
            return None
        doubtful = None
        for pid, stat in listed:
            try:
                if _is_child_of(stat, outside):
                    cleared[pid] = outside[pid] = stat.start_time
                    continue
                carries = _carries(pid, wanted)
                if carries is False or _is_spared(pid, stat):
                    cleared[pid] = stat.start_time
                elif carries:
                    return processes.identify(pid)
                else:
                    doubtful = doubtful or processes.identify(pid)
            except (OSError, CoordinationError):  # it has ended unread, and may have left another one
                missed = True
        if doubtful:
            return doubtful
        complete = not missed
    raise CoordinationError(f"processes are started too fast to tell whether one carries {wanted}")


def _later(first: Process, cleared: dict[int, int]) -> tuple[list[tuple[int, Stat]], dict[int, int], bool]:
    """Return those of the user's processes that may carry the mark, the oldest first; clear those that cannot.

    And those that are older than the mark, and whether a process could not be looked at. New ones are looked at first:
    the others take a while.
    """
    here = processes.observer()
    same_clock = first.time_namespace == here.time_namespace
    earliest = first.start_time if first.start_time is not None and same_clock else 0
    found, older, missed = [], dict[int, int](), False
    for pid in sorted(map(int, filter(str.isdecimal, os.listdir("/proc"))), key=cleared.__contains__):
        stat = processes.look_at(pid)
        if stat is None:
            missed = missed or (pid not in cleared and _may_be_of(first, pid, here))
        elif cleared.get(pid) == stat.start_time:
            continue
        elif stat.is_kernels or stat.start_time < earliest or not _may_be_of(first, pid, here):
            cleared[pid] = stat.start_time
            older.update({pid: stat.start_time} if stat.start_time < earliest else {})
        elif processes.has_ended(pid, stat):
            cleared[pid], missed = stat.start_time, True  # but it may have started another one meanwhile
        else:
            found.append((pid, stat))
    return sorted(found, key=lambda each: (each[1].start_time, each[0])), older, missed


def _may_be_of(first: Process, pid: int, here: Observer) -> bool:
    """Return whether a process is of the same user, or has just ended and may have been his.

    From the host a container's users are not known, but that its processes are in another pid namespace.
    """
    try:
        if first.pid_namespace != here.pid_namespace:
            return os.stat(f"/proc/{pid}/ns/pid").st_ino != here.pid_namespace
        with open(f"/proc/{pid}/status", "rb") as file:  # /proc/PID itself is root's if it may not be looked into
            words = next((line.split()[1:] for line in file if line.startswith(b"Uid:")), [])
        return first.uid is None or str(first.uid).encode() in words
    except PermissionError:  # /proc hides what other users run
        return os.stat(f"/proc/{pid}").st_uid == first.uid
    except OSError:
        return True


def _is_child_of(stat: Stat, outside: dict[int, int]) -> bool:
    parent = processes.look_at(stat.parent) if stat.parent in outside else None
    return parent is not None and parent.start_time == outside[stat.parent]


def _carries(pid: int, wanted: str) -> bool | None:
    """Return whether a process carries the mark as that of its device; None if that cannot be told."""
    variable = _variable(pid)
    if variable is None:
        return None
    device_class = wanted.rpartition(":")[0]
    mine = [run for run in _runs(variable) if any(word.rpartition(":")[0] == device_class for word in run)]
    return bool(mine) and wanted in mine[-1]


def _runs(variable: str) -> list[list[str]]:
    return [run.split(",") for run in variable.split(";") if run]


def _variable(pid: int) -> str | None:
    """Return the variable of a process, empty if it has none; None if its environment cannot be read.

    During an exec it has none for a moment, and looks as if it had been started with an empty one; it does not sleep
    then. A title that is written over it (setproctitle) leaves it empty, or filled up with zeros. Raises OSError if
    the process has ended.
    """
    for _ in range(_READINGS):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                content = file.read()
        except PermissionError:
            return None
        name, equals, _ = content.partition(b"=")
        if equals and b"\0\0" not in content and len(name.split()) == 1:
            start = f"{_MARK}=".encode()
            values = [entry for entry in content.split(b"\0") if entry.startswith(start)]
            return values[0].removeprefix(start).decode(errors="replace") if values else ""
        stat = processes.look_at(pid)
        if stat is None or processes.has_ended(pid, stat):
            raise ProcessLookupError(pid)
        if stat.has_no_environment and stat.state == "S":
            return ""
        time.sleep(_EXECUTES)
    return None


def _is_spared(pid: int, stat: Stat) -> bool:
    """Return whether a process is one of the programs that use no device, and stays what it is."""
    if stat.program == WATCHER:
        return True
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().split(b"\0")
    path, server, _ = words[0].partition(b"(")  # bazel(workspace)
    called = (path.rpartition(b"/")[2] + server).decode(errors="replace")
    spared = _SPARED.union(os.environ.get(_IGNORES, "").split(",")) - {""}
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start_time / os.sysconf("SC_CLK_TCK")
    return age > _STARTING and (stat.program in spared or called in spared or _GRADLE in words)
