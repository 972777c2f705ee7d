"""A machine as a file for `--simulate`, with all identifiers masked. Pure: it touches no process and no file.

What a driver says and such a file cannot is left out, so that it can be read whatever the driver said.

docs/simulate.md has the format; machine_file.py reads it.
"""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence

from externalresource_gpu.backends.simulated.machine_file import (
    BUS_ID,
    COMPUTE_MODES,
    LEVEL,
    MIG_MODES,
    PROFILE,
    UNKNOWN,
)
from externalresource_gpu.backends.simulated.yaml_file import DIGITS
from externalresource_gpu.choosing import topology
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device, Process

_HEADING = (
    "# Recorded by `externalresource discover --record`: UUIDs and pids are made up, and nothing names the host.\n"
)
#: Above the highest pid that Linux gives: a recorded process is never taken for one that lives here.
_PIDS = (1 << 22) + 1
_UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
_GPU = re.compile(rf"(?:GPU-)?(?i:{_UUID.pattern})")
_MIG = re.compile(rf"MIG-(?:GPU-)?(?i:{_UUID.pattern})(?:/\d+/\d+)?", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9](?:[\w ./:()+-]*[\w./()+-])?", re.ASCII)


def render(devices: Sequence[Device], links: Links) -> str:
    """Return the file. One that is read has the same devices and links, but for UUIDs and pids.

    The same UUID is replaced by the same one wherever it stands, so is the same pid.
    """
    text = "\n".join(["gpus:" if devices else "gpus: []", *_gpus(devices), *_links(devices, links), ""])
    # Two machines that differ get different UUIDs, and none is made from what is masked.
    seed = zlib.crc32(_UUID.sub("", text).encode())
    masks: dict[str, str] = {}

    def masked(found: re.Match[str]) -> str:
        return masks.setdefault(found[0].lower(), f"5100{len(masks):04x}-0000-5000-8000-{seed:012x}")

    return _HEADING + _UUID.sub(masked, text)


def _gpus(devices: Sequence[Device]) -> Iterator[str]:
    pids: dict[int, int] = {}
    for device in devices:
        yield from _indented("  - ", _lines(_gpu(device)))
        if device.processes is not None:
            items = [_flow(_process(process, pids)) for process in device.processes]
            yield from _indented("    ", ["processes:", *items] if items else ["processes: []"])
        if device.instances:
            yield from _indented("    ", ["instances:", *(_flow(_instance(each)) for each in device.instances)])


def _gpu(device: Device) -> Mapping[str, object]:
    return {
        "index": device.index,
        "uuid": _uuid(device),
        "name": device.name,
        "memory_total": device.memory_total,
        "memory_used": device.memory_used,
        "pci_bus_id": _fitting(device.pci_bus_id, BUS_ID),
        "compute_mode": device.compute_mode if device.compute_mode in COMPUTE_MODES else None,
        "mig_mode": "Enabled" if device.instances else device.mig_mode if device.mig_mode in MIG_MODES else None,
        "numa_node": device.numa_node,
        "unusable": device.unusable,
    }


def _instance(device: Device) -> Mapping[str, object]:
    return {
        "mig_index": device.mig_index,
        "profile": _fitting(device.mig_profile, PROFILE),
        "uuid": _uuid(device),
        "gpu_instance": device.gpu_instance,
        "compute_instance": device.compute_instance,
        "memory_total": device.memory_total,
        "memory_used": device.memory_used,
        "unusable": device.unusable,
    }


def _uuid(device: Device) -> str:
    """Return what may be written down: nothing that could be masked in part only."""
    if device.uuid is None:
        return "unknown"
    return device.uuid if (_GPU if device.mig_index is None else _MIG).fullmatch(device.uuid) else ""


def _fitting(text: str | None, pattern: re.Pattern[str]) -> str | None:
    return text if text and pattern.fullmatch(text) else None


def _process(process: Process, pids: dict[int, int]) -> Mapping[str, object]:
    return {"pid": pids.setdefault(process.pid, _PIDS + len(pids)), "memory": process.memory}


def _links(devices: Sequence[Device], links: Links) -> list[str]:
    """Return the matrix; or the one link that all pairs have."""
    known = {pair: word for pair, word in links.items() if LEVEL.fullmatch(word)}
    shown = topology.matrix(known, devices)
    matrix = [[UNKNOWN if cell == topology.UNKNOWN else cell for cell in row] for row in shown]
    different = {cell for row, cells in enumerate(matrix) for column, cell in enumerate(cells) if row != column}
    if different <= {UNKNOWN}:
        return []
    if len(different) == 1:
        return [f"links: {different.pop()}"]
    names = [f"GPU{device.index}:" for device in devices]
    wide, widest = max(map(len, names)), max(map(len, different))
    rows = zip(names, matrix, strict=True)
    return [
        "links:",
        *(f"  {name:{wide}} {' '.join(f'{cell:^{widest}}' for cell in cells)}".rstrip() for name, cells in rows),
    ]


def _lines(values: Mapping[str, object]) -> list[str]:
    return [f"{key}: {_scalar(key, value)}" for key, value in values.items() if _is_known(value)]


def _is_known(value: object) -> bool:
    return value not in (None, "") and not (isinstance(value, int) and len(str(value)) > DIGITS)


def _flow(values: Mapping[str, object]) -> str:
    return f"  - {{{', '.join(_lines(values))}}}"


def _indented(first: str, lines: list[str]) -> list[str]:
    return [f"{' ' * len(first) if number else first}{line}" for number, line in enumerate(lines)]


def _scalar(key: str, value: object) -> str:
    """Return the value as YAML reads it back, quoted where it could mean anything else."""
    text = str(value)
    if _PLAIN.fullmatch(text) and ": " not in text and (text != "unknown" or key == "uuid"):
        return text
    return '"' + "".join(_character(character) for character in text) + '"'


def _character(character: str) -> str:
    return character if " " <= character <= "~" and character not in '"\\' else f"\\U{ord(character):08x}"
