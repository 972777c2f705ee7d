"""Which TaskManager of Flink does this process work for? Imports nothing that costs: each Python worker asks."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The main classes of a TaskManager: stand-alone and in Docker, on Kubernetes, on YARN.
_MAIN = (
    "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
    "org.apache.flink.kubernetes.taskmanager.KubernetesTaskExecutorRunner",
    "org.apache.flink.yarn.YarnTaskExecutorRunner",
)


class TaskManager:
    """The Flink process that this one works for."""

    def __init__(self, pid: int, arguments: "Sequence[str]") -> None:
        self.pid = pid
        #: What followed its main class: `--configDir`, `-D key=value`.
        self.arguments = arguments

    def folder(self) -> str | None:
        """Return its configuration's; None if it was told none. A relative one (YARN has `.`) is so to where it is."""
        told = zip(self.arguments, self.arguments[1:], strict=False)
        folder = next((value for name, value in told if name in ("--configDir", "-c")), None)
        folder = folder or os.environ.get("FLINK_CONF_DIR")
        return folder and os.path.join(f"/proc/{self.pid}/cwd", folder)

    def properties(self) -> "Iterator[str]":
        """Yield the dynamic properties of its command line, `key=value`."""
        rest = iter(self.arguments)
        for word in rest:
            if word == "-D":
                yield next(rest, "")
            elif word.startswith("-D"):
                yield word.removeprefix("-D")


def find() -> TaskManager | None:
    """Return the TaskManager among this process and its ancestors."""
    for pid, words in ancestors():
        for place, word in enumerate(words):
            if word in _MAIN:
                return TaskManager(pid, words[place + 1 :])
    return None


def ancestors() -> "Iterator[tuple[int, list[str]]]":
    """Yield this process and its ancestors, each with its command line."""
    pid = os.getpid()
    while pid > 0:
        yield pid, _command(pid)
        pid = _parent(pid)


def running() -> "Iterator[int]":
    """Yield the pid of each TaskManager that this process sees."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and any(word in _MAIN for word in _command(int(name))):
            yield int(name)


def listens(pid: int, port: int) -> bool:
    """Return whether a process listens on a TCP port; False also if it is not ours to look at."""
    sockets = {f"socket:[{inode}]" for inode in _listening(pid, port)}
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd") if sockets else []
    except OSError:
        return False
    return any(_target(f"/proc/{pid}/fd/{number}") in sockets for number in descriptors)


def _listening(pid: int, port: int) -> "Iterator[str]":
    """Yield the inodes of the sockets in a process's network that listen on a port."""
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for _, local, _, state, *others in rows:
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                yield others[5]


def _target(link: str) -> str | None:
    try:
        return os.readlink(link)
    except OSError:
        return None


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().split("\0")[:-1]
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
