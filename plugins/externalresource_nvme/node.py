"""The file of a disk in /dev: only the kernel itself knows of all who have a disk, and it tells by refusing another."""

import errno
import os
import stat
import time
from collections.abc import Callable

_TRIES = 5
_PAUSE = 0.02  # seconds: another process that asks as we do has the disk for far less


def refusal(
    path: str,
    number: str,
    opened: Callable[[str], str | None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> str | None:
    """Return why nobody could use the disk of that number by this file; None if it can be had alone.

    `opened` opens it exclusively, for a moment, and returns its MAJOR:MINOR: None if it is no block device.
    """
    for tries in range(_TRIES):  # processes that start together ask for the same disks at once
        if tries:
            pause(_PAUSE)
        try:
            found = (opened or open_alone)(path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                return f"{path} cannot be opened: {error.strerror}"
        else:
            return None if found in (None, number) else f"{path} is another device ({found}, not {number})"
    return f"{path} is in use: something has it for itself (a file system, ZFS, a RAID, a program)"


def open_alone(path: str) -> str | None:
    """Return the MAJOR:MINOR of a block device that nobody else has opened exclusively; OSError with EBUSY if one has.

    File systems, swap, RAID, device mapper and ZFS all open their disks so, those of other containers as well, and a
    partition of a disk counts as the disk. Without O_EXCL the kernel would let us open what they use.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" if stat.S_ISBLK(status.st_mode) else None
