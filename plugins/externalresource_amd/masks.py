"""The two masks of ROCm, one inside the other. Touches no process and no file.

ROCR_VISIBLE_DEVICES is read by the runtime below all others (ROCr): numbers in the order of the kernel's topology, or
UUIDs, `GPU-` and up to 16 digits, in the order in which the process is to see them. Unset is all, empty is none; the
first entry that names nothing, several devices or one again ends the list. HIP_VISIBLE_DEVICES is read by HIP, which
counts only what ROCr has left: of devices 2 and 3 it calls the first 0. If it is unset or empty, CUDA_VISIBLE_DEVICES
takes its place. HIP knows UUIDs only in newer releases; older ones take any for the number 0.

Sources: rocm.docs.amd.com, "GPU isolation techniques"; ROCm/ROCR-Runtime, src/core/runtime/amd_filter_device.cpp
(RvdFilter::BuildUsrDeviceList, ProcessUuidToken); ROCm/clr, rocclr/device/rocm/rocdevice.cpp (Device::init).
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from externalresource.errors import DiscoveryError

ROCR, HIP, CUDA = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"
#: All that would hide a GPU from AMD's tools and libraries.
VARIABLES = (ROCR, HIP, CUDA, "GPU_DEVICE_ORDINAL")

_SHORTEST, _LONGEST = 5, 20  # characters of a UUID, which may be cut short


class Name(NamedTuple):
    """What ROCr calls a device: by its number, and by its UUID unless others have the same."""

    position: int | None
    uuid: str | None


def of_process(joined: Mapping[str, str]) -> dict[str, str]:
    """Return the masks of a process that is to see just the devices in the first: the second counts inside it.

    Of no devices both are empty: the first hides all.
    """
    if not joined.get(ROCR):
        return {**joined, ROCR: "", HIP: ""}
    count = joined[ROCR].count(",") + 1
    return {**joined, HIP: ",".join(map(str, range(count)))}


def hiding(names: Sequence[Name], environment: Mapping[str, str]) -> dict[Name, str]:
    """Return the devices that the masks of a process hide from it, each with the mask that does.

    DiscoveryError if a mask has numbers and those of the devices are not known.
    """
    visible = _rocr(names, environment.get(ROCR))
    variable = HIP if environment.get(HIP) else CUDA
    mask = environment.get(variable)
    ordered = environment.get(ROCR) is not None or _are_counted(names)
    left = _hip(visible, f"{variable}={mask}", ordered=ordered) if mask else visible
    return {
        name: f"{variable}={mask}" if name in visible else f"{ROCR}={environment.get(ROCR)}"
        for name in names
        if name not in left
    }


def _rocr(names: Sequence[Name], mask: str | None) -> list[Name]:
    if mask is None:
        return sorted(names, key=lambda name: -1 if name.position is None else name.position)
    found: list[Name] = []
    for entry in mask.split(",") if mask else ():
        named = _named(names, entry.strip().upper())
        if len(named) != 1 or named[0] in found:
            break
        found += named
    return found


def _named(names: Sequence[Name], entry: str) -> list[Name]:
    if entry.startswith("G"):
        long_enough = _SHORTEST <= len(entry) <= _LONGEST
        return [name for name in names if long_enough and name.uuid and name.uuid.upper().startswith(entry)]
    if not re.fullmatch("0X[0-9A-F]{1,16}|0[0-7]{0,20}|[1-9][0-9]{0,18}", entry):
        return []
    position = int(entry, 16 if entry.startswith("0X") else 8 if entry.startswith("0") else 10)
    if not _are_counted(names):
        raise _uncounted(f"{ROCR}={entry}")
    return [name for name in names if name.position == position]


def _hip(visible: Sequence[Name], mask: str, *, ordered: bool) -> list[Name]:
    found: list[Name] = []
    for entry in mask.partition("=")[2].split(","):
        if entry.startswith("GPU-"):
            named = [name for name in visible if name.uuid and name.uuid.upper() == entry.upper()]
        elif re.fullmatch("0|[1-9][0-9]{0,8}", entry) and int(entry) < len(visible):
            if not ordered:
                raise _uncounted(mask)
            named = [visible[int(entry)]]
        else:
            break
        if len(named) != 1:
            break
        found += named
    return found


def _are_counted(names: Sequence[Name]) -> bool:
    return len(names) <= 1 or all(name.position is not None for name in names)


def _uncounted(mask: str) -> DiscoveryError:
    return DiscoveryError(f"{mask} counts devices in an order that is not known here: use UUIDs, or ignore-mask: true")
