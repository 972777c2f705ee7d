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
_STARTING = 2.0  # seconds in which one of them may yet become another program, as `ssh-agent COMMAND` does
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


def has_all_users() -> bool:
    """Return whether uids mean the same here as on the host."""
    return _user_namespace("self") in (_INITIAL_USER_NAMESPACE, None)


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
    search = _Search(wanted, first, above)
    if seconds is None:
        return search.bearer()
    found: list[Process | None] = []
    done = _thread.allocate_lock()
    done.acquire()

    def look() -> None:
        try:
            found.append(search.bearer())
        except (OSError, CoordinationError):
            pass
        finally:
            done.release()

    try:
        _thread.start_new_thread(look, ())
        done.acquire(timeout=seconds)
    except RuntimeError:  # no more threads
        pass
    if not found:
        raise CoordinationError(f"it cannot be told whether a process carries {wanted}")
    return found[0]


class _Search:
    """Looks for a process that carries a mark, in one listing of the processes of this host after the other.

    That there is none takes a listing of which all could be read, and then another with nobody new in it.
    """

    def __init__(self, wanted: str, first: Process, above: Collection[int] | None) -> None:
        self._wanted, self._first, self._above = wanted, first, above
        #: Processes that cannot carry it: the ticks of their starts, by pid.
        self._cleared: dict[int, int] = {}
        #: Those of them that the run has not started, nor adopted anything of it.
        self._outside: dict[int, int] = {}
        #: Those that use no device: what they are, and since when they have been seen to be that.
        self._spared: dict[int, tuple[object, float]] = {}

    def bearer(self) -> Process | None:
        complete = False
        for _ in range(_LISTINGS):
            listed, missed = self._later()
            new = [(pid, stat) for pid, stat in listed if not self._is_still_spared(pid, stat)]
            if complete and not new and not missed:
                rest = max([self._spared[pid][1] + _STARTING - time.monotonic() for pid, _ in listed], default=0)
                if rest <= 0:
                    return None
                time.sleep(rest)
                continue
            doubtful = None
            for pid, stat in new:
                try:
                    carries = self._carries(pid, stat)
                    if carries:
                        return processes.identify(pid)
                    if carries is None:
                        doubtful = doubtful or processes.identify(pid)
                except (OSError, CoordinationError):  # it has ended unread, and may have left another one
                    missed = True
            if doubtful:
                return doubtful
            complete = not missed
        raise CoordinationError(f"processes are started too fast to tell whether one carries {self._wanted}")

    def _later(self) -> tuple[list[tuple[int, Stat]], bool]:
        """Return those of the user's processes that may carry the mark, the oldest first; clear those that cannot.

        And whether one could not be looked at. New ones are looked at first: the others take a while.
        """
        first, here = self._first, processes.observer()
        same_clock = first.time_namespace == here.time_namespace
        earliest = first.start_time if first.start_time is not None and same_clock else 0
        found, missed = [], False
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        if 1 not in pids and (os.getuid() != first.uid or first.pid_namespace != here.pid_namespace):
            raise CoordinationError("/proc hides what other users run")
        for pid in sorted(pids, key=self._cleared.__contains__):
            stat = processes.look_at(pid)
            if stat is None:
                missed = missed or (pid not in self._cleared and _may_be_of(first, pid, here))
            elif self._cleared.get(pid) == stat.start_time:
                continue
            elif stat.is_kernels or stat.start_time < earliest or not _may_be_of(first, pid, here):
                self._cleared[pid] = stat.start_time
                if stat.start_time < earliest and self._above is not None and pid not in {1, *self._above}:
                    self._outside[pid] = stat.start_time
            elif processes.has_ended(pid, stat):
                self._cleared[pid], missed = stat.start_time, True  # but it may have started another one meanwhile
            else:
                found.append((pid, stat))
        return sorted(found, key=lambda each: (each[1].start_time, each[0])), missed

    def _carries(self, pid: int, stat: Stat) -> bool | None:
        """Return whether a process carries the mark as that of its device, and is not spared; None if it may do so."""
        if self._is_child_of_outside(stat):
            self._cleared[pid] = self._outside[pid] = stat.start_time
            return False
        carries = False if stat.program == WATCHER else _carries(pid, self._wanted)
        if carries is False:
            self._cleared[pid] = stat.start_time
        elif (program := _spared(pid, stat)) is not None:
            self._spared[pid] = program, time.monotonic()
            return False
        return carries

    def _is_still_spared(self, pid: int, stat: Stat) -> bool:
        try:
            return pid in self._spared and self._spared[pid][0] == _spared(pid, stat)
        except OSError:
            return False

    def _is_child_of_outside(self, stat: Stat) -> bool:
        parent = processes.look_at(stat.parent) if stat.parent in self._outside else None
        return parent is not None and parent.start_time == self._outside[stat.parent]


def _may_be_of(first: Process, pid: int, here: Observer) -> bool:
    """Return whether a process is of the same user, or has just ended and may have been his.

    From the host a container's users are not known, but that its processes are in another pid namespace.
    """
    is_here = first.pid_namespace == here.pid_namespace
    try:
        if not is_here:
            return os.stat(f"/proc/{pid}/ns/pid").st_ino != here.pid_namespace
        with open(f"/proc/{pid}/status", "rb") as file:
            words = next((line.split()[1:] for line in file if line.startswith(b"Uid:")), [])
        return first.uid is None or str(first.uid).encode() in words
    except PermissionError:  # /proc hides what other users run
        return not is_here or os.stat(f"/proc/{pid}").st_uid == first.uid
    except OSError:
        return True


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
        if equals and b"\0\0" not in content and len(name.split()) == 1 and b"\0" not in name:
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


def _spared(pid: int, stat: Stat) -> object:
    """Return what a process is, if that is one of the programs that use no device; else None."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        line = file.read()
    path, server, _ = line.partition(b"\0")[0].partition(b"(")  # bazel(workspace)
    called = (path.rpartition(b"/")[2] + server).decode(errors="replace")
    names = _SPARED.union(os.environ.get(_IGNORES, "").split(",")) - {""}
    if stat.program in names or called in names or _GRADLE in line.split(b"\0"):
        return stat.start_time, stat.program, line
    return None
