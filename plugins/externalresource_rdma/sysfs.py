"""Files of sysfs, each with one value. What cannot be read is not known."""

import os
import re

_UNTOLD = ("", "N/A", "-1")


def value(*path: str) -> str | None:
    """Return what stands in a file; None if the kernel does not tell, or the device has just gone."""
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
            text = " ".join(file.read().split())
    except (OSError, ValueError):
        return None
    return None if text in _UNTOLD else text


def names(*path: str) -> list[str]:
    """Return the names in a folder, numbers in them in the order of numbers; none if it is not there."""
    try:
        return sorted(os.listdir(os.path.join(*path)), key=by_number)
    except OSError:
        return []


def by_number(name: str) -> list[tuple[int, str]]:
    """Order mlx5_2 before mlx5_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
