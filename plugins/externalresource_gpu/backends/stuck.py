"""The memory of a driver that hangs so deeply that SIGKILL does not end who asked it.

Each further question would leave one more such process behind. So whoever leaves one writes its pid down, beside the
coordination file, and who comes next asks the kernel whether that process is still not gone. The file alone is
believed nothing: not after the driver let go, and not if somebody else planted it.
"""

import contextlib
import os

from externalresource.errors import DiscoveryError

_SIGKILL = 1 << (9 - 1)  # in the sets of pending signals of /proc/PID/status


class DriverStuckError(DiscoveryError):
    """A process that asked the driver was killed, and does not end."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


def remember(coordination_file: str, pid: int) -> None:
    """Write down the process that does not end; where that is not allowed, nothing is remembered."""
    path = _path(coordination_file)
    with contextlib.suppress(OSError):
        _remove(path)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
            file.write(f"{pid} {_pid_namespace()}\n")


def check(coordination_file: str) -> None:
    """Raise DriverStuckError if the process that was written down is still not gone.

    One of another container means nothing here: it is neither believed nor forgotten.
    """
    path = _path(coordination_file)
    pid, namespace = _remembered(path)
    if pid is None or namespace != _pid_namespace():
        return
    if not _is_killed_and_there(pid):
        _remove(path)
        return
    raise DriverStuckError(
        f"the NVIDIA driver is stuck: pid {pid} asked it, was killed and does not end, so nobody asks again until that "
        f"process is gone (it stands in {path}): reboot the machine, see `dmesg` for lines with NVRM or Xid",
        pid,
    )


def _path(coordination_file: str) -> str:
    return f"{coordination_file}.stuck"


def _remembered(path: str) -> tuple[int, int] | tuple[None, None]:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            pid, namespace = file.read(40).split()
            return int(pid), int(namespace)
    except (OSError, ValueError):
        return None, None


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no /proc: then no process can be looked at either
        return 0


def _is_killed_and_there(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.rstrip("\n").partition(":\t")[::2] for line in file)
    except OSError:
        return False
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    return bool(pending & _SIGKILL) and status.get("State", "Z")[0] not in "ZX"


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
