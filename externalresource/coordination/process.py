"""Which process is this, and whether it is provably gone.

A pid alone lies: it is reused, survives a reboot in a file, and is 1 in every container. A process is known here by its
pid, the moment it started, the boot, and the namespaces in which those two numbers mean something. What cannot be
proven counts as living: a device held too long is a nuisance, a device given twice is a disaster.
"""

import functools
import os

from externalresource.errors import CoordinationError
from externalresource.records import record

_STAT_SIZE = 4096  # bytes, of which /proc/PID/stat fills a tenth
_PF_KTHREAD = 0x00200000
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO in the kernel: the inode is the same on every machine


@record
class Process:
    """A process of this host. Two are equal if pid, start, boot and namespaces are. What is not known is None."""

    pid: int
    #: Clock ticks from boot to its start, as seen in `time_namespace`: field 22 of /proc/PID/stat.
    start_time: int | None = None
    #: Of the machine; None in a container that has a boot id of its own.
    boot_id: str | None = None
    #: Inode of the pid namespace in which `pid` is this process; of whoever looked, not of the process itself.
    pid_namespace: int | None = None
    #: Inode of the time namespace in which `start_time` was read; None also where the kernel has none (before 5.6).
    time_namespace: int | None = None
    # What follows is not compared: it may change, or not be known to whoever looks.
    uid: int | None = None
    #: Name of the program, without its arguments: those may hold secrets.
    program: str | None = None
    #: Inode of its pidfd, which no other process of this boot ever has; None before Linux 6.9.
    pidfd_inode: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return self.pid, self.start_time, self.boot_id, self.pid_namespace, self.time_namespace


@record
class Observer:
    """From where this process sees others."""

    boot_id: str | None
    pid_namespace: int | None
    time_namespace: int | None
    #: /proc shows this process's own pid namespace, and not an outer one that a container was started without leaving.
    sees_own_pids: bool

    @property
    def in_container(self) -> bool:
        """Whether there may be processes that this one, or that cannot see this one."""
        return self.pid_namespace != _INITIAL_PID_NAMESPACE

    def can_judge(self, process: Process) -> bool:
        """Whether that pid means something from here: in the same namespace, or from the host."""
        if process.pid_namespace is None:
            return False
        return process.pid_namespace == self.pid_namespace or (not self.in_container and self.sees_own_pids)


@record
class Stat:
    """What the kernel shows everybody of a process."""

    program: str
    state: str
    threads: int
    start_time: int
    parent: int
    #: It is a thread of the kernel itself.
    is_kernels: bool
    #: It was started with an empty environment. Of one that is in the middle of an exec that is not known.
    has_no_environment: bool


def observer() -> Observer:
    """Return from where the calling process sees others; not remembered, as a fork may be somewhere else."""
    return Observer(_boot_id(), _namespace("pid"), _namespace("time"), _own_proc())


def identify(pid: int) -> Process:
    """Return the identity of a living process; CoordinationError if there is none or it cannot be looked at."""
    here = observer()
    if pid == 1 and here.pid_namespace == _INITIAL_PID_NAMESPACE:
        raise CoordinationError("init cannot own devices: the process that asked for them has ended; see --owner-pid")
    if pid == 0:
        raise CoordinationError("a process outside this pid namespace cannot own devices; see --owner-pid")
    uid = _uid(pid)
    stat = look_at(pid) if here.sees_own_pids else None
    if stat is not None and _is_thread(pid):
        raise CoordinationError(f"{pid} cannot own devices: it is a thread, which may end before its process")
    if here.sees_own_pids and (stat is None or has_ended(pid, stat)):
        raise CoordinationError(f"process {pid} cannot own devices: there is no such living process here")
    if stat is None or here.pid_namespace is None:
        raise CoordinationError(
            f"process {pid} cannot own devices: /proc does not show this process's pid namespace; mount it there"
        )
    return Process(
        pid=pid,
        start_time=stat.start_time,
        boot_id=here.boot_id,
        pid_namespace=here.pid_namespace,
        time_namespace=here.time_namespace,
        uid=uid,
        program=stat.program,
        pidfd_inode=_pidfd_inode(pid),
    )


def before_this_boot(process: Process, here: Observer) -> bool:
    """Return whether that process provably lived before the machine was started again."""
    return None not in (process.boot_id, here.boot_id) and process.boot_id != here.boot_id


def gone(process: Process, here: Observer) -> bool:
    """True only if that process provably is no more; a zombie without living threads is no more.

    A network file system or a virtual machine that shares a folder brings claims of another kernel, whose boot id
    differs although its processes live: the coordination file must be on a local file system of one kernel.
    """
    if before_this_boot(process, here):
        return True
    if not here.can_judge(process):
        return False
    if process.pid_namespace != here.pid_namespace:
        pids = [name for name in os.listdir("/proc") if name.isdecimal()]
        # With hidepid not even init is shown, and those that are not shown may be the process.
        return "1" in pids and not any(_may_be(process, pid, here) for pid in pids)
    if _is_missing(process.pid):
        return True
    stat = look_at(process.pid) if here.sees_own_pids else None
    if stat is None:  # hidden (hidepid), or it ended this moment
        return False
    return has_ended(process.pid, stat) or _recycled(process, stat, here)


def in_container() -> bool:
    """Return whether there may be processes to which this one's pid means nothing."""
    return observer().in_container


def is_here(process: Process) -> bool:
    """Return whether that process was seen from this very pid namespace."""
    return process.pid_namespace == observer().pid_namespace


def is_of_host(process: Process) -> bool:
    """Return whether that process was seen from the host itself."""
    return process.pid_namespace == _INITIAL_PID_NAMESPACE


def has_namespace(process: Process) -> bool:
    """Return False only if no process is left in the pid namespace of one that was seen in another than this one.

    To be asked by root of the host: with a namespace all end that are below it.
    """
    if process.pid_namespace == observer().pid_namespace:
        return True
    pids = [pid for pid in os.listdir("/proc") if pid.isdecimal()]
    return "1" not in pids or any(_namespace("pid", pid) in (process.pid_namespace, None) for pid in pids)


def lives(process: Process) -> bool:
    """Return False only if that process provably is no more."""
    return not gone(process, observer())


def pid_here(process: Process, here: Observer | None = None) -> int | None:
    """Return the pid by which this process, or another observer, sees one that may live; None if it sees none."""
    here = here or observer()
    if not here.can_judge(process) or gone(process, here):
        return None
    if process.pid_namespace == here.pid_namespace:
        return process.pid
    return next((int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _may_be(process, pid, here)), None)


def program_of(process: Process, here: Observer | None = None) -> str | None:
    """Return what a process runs now, else what it ran when it claimed, without its arguments.

    `externalresource run` becomes its command.
    """
    pid = pid_here(process, here)
    stat = None if pid is None else look_at(pid)
    return process.program if stat is None else stat.program


def _recycled(process: Process, stat: Stat, here: Observer) -> bool:
    comparable = process.start_time is not None and process.time_namespace == here.time_namespace
    if comparable and process.start_time != stat.start_time:
        return True
    # Within one clock tick a pid may be used again.
    return process.pidfd_inode is not None and process.pidfd_inode != (_pidfd_inode(process.pid) or process.pidfd_inode)


def _may_be(process: Process, pid: str, here: Observer) -> bool:
    """Return whether the process that is `pid` here may be the one known by its pid in a container."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            inner = next((line.split()[2:] for line in file if line.startswith(b"NSpid:")), [])
    except OSError:  # it ended this moment, or is not ours to look at
        return not _is_missing(int(pid))
    if str(process.pid).encode() not in inner:
        return False
    stat = look_at(int(pid))
    if stat is None:
        return not _is_missing(int(pid))
    if has_ended(int(pid), stat):
        return False
    if process.time_namespace == here.time_namespace and process.start_time not in (None, stat.start_time):
        return False
    # Containers that are started together have first processes of one clock tick.
    return process.pidfd_inode is None or process.pidfd_inode == (_pidfd_inode(int(pid)) or process.pidfd_inode)


def _is_missing(pid: int) -> bool:
    """Return whether no process has that pid here. The kernel answers for the one that a thread's execve leaves."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists and belongs to somebody else
        pass
    return False


def has_ended(pid: int, stat: Stat) -> bool:
    """Return True only if the process that was seen so provably runs no more, with all its threads.

    When a thread that is not the first calls execve, the first one looks like this in /proc, until the other has taken
    its place; poll(2) on a pidfd does not say so. A kernel without pidfds (before 5.3) proves nothing before the
    process has left its pid.
    """
    if not _seems_ended(stat):
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return _is_missing(pid)
    try:
        import select  # few owners are zombies

        end = select.poll()
        end.register(descriptor, select.POLLIN)
        if not end.poll(0):
            return False
    finally:
        os.close(descriptor)
    again = look_at(pid)
    return again is None or _seems_ended(again)


def _seems_ended(stat: Stat) -> bool:
    # The leader of a thread group may be a zombie while its threads live on, and with them the use of the device.
    return stat.state in "ZX" and stat.threads <= 1


def look_at(pid: int) -> Stat | None:
    """Return what the kernel shows of the process that has that pid here; None if it shows nothing."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # half the time of a file object
    except OSError:  # it has ended, is hidden, or this process has no more descriptors
        return None
    try:
        head, _, tail = os.read(descriptor, _STAT_SIZE).rpartition(b")")
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    fields = tail.split()
    program = head.partition(b"(")[2].decode("utf-8", "replace")
    state, parent, flags = fields[0].decode(), int(fields[1]), int(fields[6])
    starts, ends = fields[47:49]
    is_empty = starts == ends != b"0"
    return Stat(program, state, int(fields[17]), int(fields[19]), parent, bool(flags & _PF_KTHREAD), is_empty)


def _pidfd_inode(pid: int) -> int | None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        return status.st_ino if status.st_dev != _anonymous_device() else None
    finally:
        os.close(descriptor)


@functools.cache  # the kernel makes it once
def _anonymous_device() -> int:
    """Return the device of the inode that all pidfds shared before they had a file system of their own."""
    descriptor = os.eventfd(0)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _is_thread(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return any(line.startswith(b"Tgid:") and int(line.split()[1]) != pid for line in file)
    except OSError:  # it ended, or is not ours to look at
        return False


def _uid(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _boot_id() -> str | None:
    """Return the id of the machine's boot, not one that LXC or systemd-nspawn mounts over it for one container.

    The private id of a sibling container differs although its processes live.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            private = os.fstat(file.fileno()).st_dev != os.stat("/proc").st_dev
            return None if private else file.read().strip()
    except OSError:
        return None


def _namespace(kind: str, pid: str = "self") -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


def _own_proc() -> bool:
    try:
        with open("/proc/self/status", "rb") as file:
            pids = [line.split()[1:] for line in file if line.startswith((b"Pid:", b"NSpid:"))]
    except OSError:
        return False
    # In /proc of an outer namespace NSpid has one number for each, and those may be equal by chance.
    return bool(pids) and all(numbers == [str(os.getpid()).encode()] for numbers in pids)
