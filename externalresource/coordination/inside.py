"""Which runs a process is inside of: those whose grants its environment carries as a mark, if it may be there."""

import os
from collections.abc import Iterable, Sequence

from externalresource.coordination import process as processes
from externalresource.coordination.process import Observer, Process
from externalresource.errors import CoordinationError

_MARK = "EXTERNALRESOURCE_RUN"
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO in the kernel: the inode is the same on every machine


def runs_around() -> Sequence[frozenset[str]]:
    """Return in which runs this process is, the outermost first: of each its grants, one for each of its resources."""
    return [frozenset(grants.split(",")) for grants in os.environ.get(_MARK, "").split(";") if grants]


def run_variable(grants: Iterable[str]) -> dict[str, str]:
    """Return the variable that tells a program that it runs on these grants of this process."""
    around = [",".join(sorted(run)) for run in runs_around()]
    return {_MARK: ";".join([*around, ",".join(sorted(grants))])}


def check_inside(runs: Iterable[Process], here: Observer) -> None:
    """Raise CoordinationError unless this process is of the user of each run, or root, or was started by the run.

    Everybody can read the names of grants in the coordination file.
    """
    for run in set(runs):
        if not (_is_its_user(run, here) or _descends_from(run)):
            user = "a user who is not known" if run.uid is None else f"the user with uid {run.uid}"
            program = processes.program_of(run, here) or "of an unknown program"
            raise CoordinationError(
                f"{_MARK} names a run of {user}, pid {run.pid} ({program}), which has not started this process of uid "
                f"{os.getuid()}: nothing is granted; unset {_MARK} to claim as any other process"
            )


def _is_its_user(run: Process, here: Observer) -> bool:
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
    pid = os.getpid()
    while pid not in (0, run.pid):
        pid = _parent(pid)
    try:
        return pid != 0 and processes.identify(pid) == run
    except CoordinationError:  # it is not to be seen, and may be another process that has this pid now
        return False


def _parent(pid: int) -> int:
    """Return the pid of the parent; 0 if that is outside of this pid namespace, or not to be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0
