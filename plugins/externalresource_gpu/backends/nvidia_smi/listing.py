"""What nvidia-smi printed: devices, or a line that cannot be one. Touches no process and no file."""

from externalresource.api import replace
from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import pci, reasons
from externalresource_gpu.device import Device, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

#: A GPU that nvidia-smi could not list: its index and bus id, as far as they are known, and the reason.
_Lost = tuple[int | None, str | None, str]

_NO_FIELD = "is not a valid field to query"
_NO_DEVICES = "No devices were found"
_COMPLETE = {0, 14}  # 14 warns of a corrupted infoROM, after the full output
_WARNING = "WARNING:"
MIG_ENABLED = "Enabled"
_LOST = "Unable to determine the device handle for GPU"
# "GPU1: 0000:02:00.0: reason", "GPU 0000:02:00.0: reason" and "GPU0000:02:00.0: reason", by age of the driver
_LOST_GPU = r" ?(?:(?P<index>[0-9]{1,9}): )?(?P<bus_id>[\dA-Fa-f]+(?::[\dA-Fa-f.]+)+): (?P<reason>.+)"
_DIGITS = 18  # of a number that int() takes
_COLUMNS_OF_PROCESSES = 3
# Texts that say nothing about the GPU's health: what the cell asks for does not exist, here or any more.
_UNKNOWN = {
    "",
    "N/A",
    "[N/A]",
    "Not Supported",
    "[Not Supported]",
    "[Not Found]",
    "[Function Not Found]",
    "[Requested functionality has been deprecated]",
}


def unknown_field(status: int, output: str) -> str | None:
    """Return the field that this nvidia-smi does not know, for which it answered nothing."""
    if status in _COMPLETE or _NO_FIELD not in output:
        return None
    import re

    match = re.search(rf'Field "([^"]*)" {_NO_FIELD}', output)
    return match and match[1]


def is_empty(status: int, output: str) -> bool:
    """Whether nvidia-smi says that there is no GPU, and nothing else."""
    return status == reasons.NOT_FOUND and output.strip() == _NO_DEVICES


def is_complete(status: int, output: str) -> bool:
    """Whether the output lists the GPUs: all of them, or all but those that it names as lost."""
    rows, lost = _split(output)
    return bool(rows) and (status in _COMPLETE or bool(lost))


def is_answer(status: int, output: str) -> bool:
    """Whether the output is all that there is to say: of all GPUs, or of all but those that it names as lost."""
    return status in _COMPLETE or names_lost(output)


def names_lost(output: str) -> bool:
    """Whether the output names a lost GPU."""
    return bool(_split(output)[1])


def parse(output: str, fields: "Sequence[str]", numa_node: "Callable[[str], int | None]") -> list[Device]:
    """Return the devices of `--query-gpu=FIELDS --format=csv,noheader,nounits`, by index.

    `name` is the last of the fields. Raises DiscoveryError with the line that is no row of such a table.
    """
    return _devices(*_split(output), fields, numa_node)


def parse_each(
    answers: "Mapping[str, str | DiscoveryError]", fields: "Sequence[str]", numa_node: "Callable[[str], int | None]"
) -> list[Device]:
    """Return the same devices, of answers for one bus id each; where there is no row, the GPU is unusable."""
    rows: list[str] = []
    lost: list[_Lost] = []
    for bus_id, answer in answers.items():
        listed, unlisted = _split(answer) if isinstance(answer, str) else ([], [])
        rows += listed
        if not listed:
            said = answer if isinstance(answer, DiscoveryError) else "nvidia-smi does not list it"
            lost += unlisted[:1] or [(None, bus_id, reasons.quote(str(said)))]
    return _devices(rows, lost, fields, numa_node)


def attach_processes(gpus: "Iterable[Device]", said: str | DiscoveryError) -> list[Device]:
    """Return the GPUs with what computes on them, by `--query-compute-apps=gpu_uuid,pid,used_memory`.

    It is unknown where nvidia-smi does not tell of it.
    """
    found = _processes(said) if isinstance(said, str) else None
    if found is None:
        return list(gpus)
    return [replace(gpu, processes=found.get(gpu.uuid, ())) if gpu.uuid else gpu for gpu in gpus]


def _devices(
    rows: "Sequence[str]", lost: "Sequence[_Lost]", fields: "Sequence[str]", numa_node: "Callable[[str], int | None]"
) -> list[Device]:
    found, unlisted = [], [*lost]
    for row in rows:
        cells = _cells(row, fields)
        if _failure(cells["index"]):
            unlisted.append((None, _known(cells, "pci.bus_id"), cells["index"].strip("[]")))
        else:
            found.append(_device(row, cells, numa_node))
    return reasons.unique("nvidia-smi", [*found, *_lost_devices(unlisted, {device.index for device in found})])


def _split(output: str) -> tuple[list[str], list[_Lost]]:
    """Return the lines that should be rows, and the GPUs that could not be listed."""
    rows: list[str] = []
    lost: list[_Lost] = []
    for line in map(str.strip, output.splitlines()):
        if gpu := _lost(line):
            lost.append(gpu)
        elif line and line != _NO_DEVICES and not line.startswith(_WARNING):
            rows.append(line)
    return rows, lost


def _lost(line: str) -> _Lost | None:
    if not line.startswith(_LOST):
        return None
    import re

    match = re.match(_LOST + _LOST_GPU, line)
    if match is None:
        return None
    return int(match["index"]) if match["index"] else None, match["bus_id"], reasons.failure(match["reason"])


def _cells(row: str, fields: "Sequence[str]") -> dict[str, str]:
    cells = [cell.strip() for cell in row.split(",", len(fields) - 1)]
    if len(cells) != len(fields):
        raise _unreadable(row, f"{len(fields)} columns were asked for")
    return dict(zip(fields, cells, strict=True))


def _device(row: str, cells: dict[str, str], numa_node: "Callable[[str], int | None]") -> Device:
    if not _is_number(cells["index"]):
        raise _unreadable(row, f"{cells['index']!r} is no number")
    bus_id = _known(cells, "pci.bus_id")
    compute_mode = _known(cells, "compute_mode")
    mig_mode = _known(cells, "mig.mode.current")
    failures = [failure for cell in cells.values() if (failure := _failure(cell))]
    return Device(
        index=int(cells["index"]),
        uuid=_known(cells, "uuid"),
        name=_known(cells, "name"),
        memory_total=_mib(cells, "memory.total", failures),
        memory_used=_mib(cells, "memory.used", failures),
        pci_bus_id=bus_id and pci.canonical(bus_id),
        compute_mode=compute_mode,
        mig_mode=mig_mode,
        numa_node=numa_node(bus_id) if bus_id else None,
        unusable=reasons.unusable(
            failures, compute_mode, _known(cells, "gpu_recovery_action"), mig=mig_mode == MIG_ENABLED
        ),
    )


def _lost_devices(lost: list[_Lost], listed: set[int]) -> "Iterator[Device]":
    """Yield lost GPUs. One without an index has one of the gaps: both follow the PCI bus."""
    named = {index for index, _, _ in lost if index is not None}
    gaps = (index for index in range(len(listed) + len(lost)) if index not in listed | named)
    for index, bus_id, reason in sorted(lost, key=lambda gpu: pci.canonical(gpu[1] or "")):
        place = next(gaps) if index is None else index
        yield Device(place, pci_bus_id=bus_id and pci.canonical(bus_id), unusable=reason)


def _known(cells: dict[str, str], field: str) -> str | None:
    cell = cells.get(field, "")
    return None if cell in _UNKNOWN or cell.startswith("[") else cell


def _failure(cell: str) -> str | None:
    """Return the error that stands in the place of a value."""
    return cell.strip("[]") if cell.startswith("[") and cell not in _UNKNOWN else None


def _mib(cells: dict[str, str], field: str, failures: list[str]) -> int | None:
    """Return the number in the cell, if there is one; what is neither a number nor `[...]` is one more failure."""
    cell = _known(cells, field)
    if cell is None or _is_number(cell):
        return None if cell is None else int(cell)
    failures.append(f"{field} is {reasons.quote(cell)!r}")
    return None


def _is_number(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) <= _DIGITS


def _processes(text: str) -> "Mapping[str, tuple[Process, ...] | None] | None":
    """Return the processes by the UUID of their GPU, in the order of their pids; None for a GPU that cannot tell.

    A GPU that is not mentioned has none. Returns None if a line says anything else: what it stands for is unknown.
    """
    found: dict[str, list[Process] | None] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        cells = [cell.strip() for cell in line.split(",")]
        if line.startswith(_WARNING) or _lost(line):
            continue
        if len(cells) != _COLUMNS_OF_PROCESSES:
            return None
        uuid, pid, memory = cells
        before = found.setdefault(uuid, [])
        if not _is_number(pid):
            found[uuid] = None
        elif before is not None:
            before.append(Process(int(pid), int(memory) if _is_number(memory) else None))
    return {
        uuid: None if known is None else tuple(sorted(known, key=lambda process: process.pid))
        for uuid, known in found.items()
    }


def _unreadable(row: str, reason: str) -> DiscoveryError:
    return DiscoveryError(f"nvidia-smi printed a line that is no GPU: {reasons.quote(row)!r}: {reason}")
