"""A machine as a YAML file describes it: docs/simulate.md has the format, machines/ has examples."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

from externalresource.api import read_text, read_yaml, record, replace
from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import pci, reasons
from externalresource_gpu.backends.simulated import driver, made_up
from externalresource_gpu.backends.simulated.driver import Driver
from externalresource_gpu.backends.simulated.yaml_file import Entry
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device, Process

_SECTIONS = ("gpus", "each", "links", "driver")
_OWN = ("index", "uuid", "pci_bus_id")
_MEMORY = ("memory_total", "memory_used")
_SHARED = ("name", *_MEMORY, "compute_mode", "mig_mode", "numa_node", "unusable", "processes", "instances")
_INSTANCE = ("profile", "uuid", "mig_index", "gpu_instance", "compute_instance", *_MEMORY, "unusable")
_PROCESS = ("pid", "memory")
#: All that a file may say.
KEYS = frozenset({*_SECTIONS, *_OWN, *_SHARED, *_INSTANCE, *_PROCESS, *driver.KEYS})
COMPUTE_MODES = ("Default", "Exclusive_Thread", "Exclusive_Process", "Prohibited")
MIG_MODES = ("Enabled", "Disabled")
BUS_ID = re.compile(r"([0-9A-Fa-f]{4}){1,2}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")
PROFILE = re.compile(r"\S*\dg\.\d+gb\S*", re.ASCII)
#: In a matrix. The `?` that we show to people means something to YAML.
UNKNOWN = "N/A"
LEVEL = re.compile(r"NV[1-9]\d?|PSB|PIX|PXB|PHB|NODE|SYS|SOC", re.ASCII)  # PSB and SOC are of old drivers
_LEVELS = "NV1, NV2, ... (so many NVLinks), PIX, PXB, PHB, NODE or SYS"
_LAST = 0xFFFF  # of the numbers that stand in made-up UUIDs


@record
class Machine:
    """What a file describes."""

    devices: tuple[Device, ...]
    links: Links
    driver: Driver


def read(path: str, seed: str) -> Machine:
    """Return the machine of a file; `seed` is what UUIDs are made up from.

    DiscoveryError names the file, the line and what is allowed there.
    """
    document = read_yaml(read_text(path, DiscoveryError), path, DiscoveryError, Entry)
    if document is None:
        raise DiscoveryError(f"{path} is empty: it must have a list `gpus:`")
    sections = document.fields(_SECTIONS)
    each = sections["each"].fields(_SHARED) if "each" in sections else {}
    devices = _gpus(sections.get("gpus", document).items("gpus"), each, seed)
    return Machine(
        devices=devices,
        links=_links(sections["links"], [device.index for device in devices]) if "links" in sections else {},
        driver=driver.read(sections["driver"]) if "driver" in sections else Driver(),
    )


def _gpus(entries: Sequence[Entry], each: dict[str, Entry], seed: str) -> tuple[Device, ...]:
    found: dict[int, Device] = {}
    uuids: set[str | None] = set()
    for position, entry in enumerate(entries):
        device = _gpu(position, each | entry.fields((*_OWN, *_SHARED)), seed)
        if device.index in found:
            raise entry.wrong(f"two GPUs have the index {device.index}")
        for known in (device, *device.instances):
            if known.uuid is not None and known.uuid in uuids:
                what = "GPUs" if known is device else "MIG instances"
                raise entry.wrong(f"two {what} have the UUID {known.uuid}")
            uuids.add(known.uuid)
        found[device.index] = device
    return tuple(found[index] for index in sorted(found))


def _gpu(position: int, written: Mapping[str, Entry], seed: str) -> Device:
    given = _known(written)
    index = given["index"].number("index", last=_LAST) if "index" in given else position
    compute_mode = given["compute_mode"].word("compute_mode", COMPUTE_MODES) if "compute_mode" in given else None
    device = Device(
        index=index,
        uuid=_text(given, "uuid") if "uuid" in written else made_up.uuid(seed, index),
        name=_text(given, "name"),
        memory_total=_number(given, "memory_total"),
        memory_used=_number(given, "memory_used"),
        pci_bus_id=_bus_id(given["pci_bus_id"]) if "pci_bus_id" in given else None,
        compute_mode=compute_mode,
        mig_mode=given["mig_mode"].word("mig_mode", MIG_MODES) if "mig_mode" in given else None,
        numa_node=_number(given, "numa_node"),
        unusable=_text(given, "unusable") or reasons.unusable([], compute_mode),
        processes=tuple(map(_process, given["processes"].items("processes"))) if "processes" in given else None,
    )
    if "instances" not in given:
        return device
    return replace(device, instances=_instances(device, given["instances"], seed))


def _instances(gpu: Device, listed: Entry, seed: str) -> tuple[Device, ...]:
    entries = listed.items("instances")
    if entries and gpu.mig_mode != "Enabled":
        raise listed.wrong(f"GPU {gpu.index} has instances, which needs `mig_mode: Enabled`")
    found: dict[int, Device] = {}
    places: set[tuple[int | None, int | None]] = set()
    for position, entry in enumerate(entries):
        number, instance = _instance(gpu, position, entry, seed)
        place = instance.gpu_instance, instance.compute_instance
        if number in found:
            raise entry.wrong(f"two MIG instances of GPU {gpu.index} have the mig_index {number}")
        if None not in place and place in places:
            raise entry.wrong(f"two MIG instances of GPU {gpu.index} are {place[0]}/{place[1]}")
        places.add(place)
        found[number] = instance
    return tuple(found[number] for number in sorted(found))


def _instance(gpu: Device, position: int, entry: Entry, seed: str) -> tuple[int, Device]:
    written = entry.fields(_INSTANCE)
    given = _known(written)
    number = given["mig_index"].number("mig_index", last=_LAST) if "mig_index" in given else position
    profile = None
    if "profile" in given:
        profile = given["profile"].matching("profile", PROFILE, "like 3g.20gb or 1c.3g.20gb")
    uuid = _text(given, "uuid") if "uuid" in written else made_up.instance_uuid(seed, gpu.index, number)
    if uuid is not None and not uuid.startswith("MIG-"):
        raise given["uuid"].wrong(f"uuid of a MIG instance must begin with MIG-, not {uuid!r}")
    return number, replace(
        gpu.instance(number, uuid, profile),
        memory_total=_number(given, "memory_total"),
        memory_used=_number(given, "memory_used"),
        unusable=_text(given, "unusable"),
        gpu_instance=_number(given, "gpu_instance"),
        compute_instance=_number(given, "compute_instance"),
    )


def _links(entry: Entry, indices: Sequence[int]) -> Links:
    """Return the links of a matrix, whose rows are named; or the one that all pairs have."""
    if entry.scalar is not None:
        level = _level(entry, entry.scalar)
        return dict.fromkeys(combinations(indices, 2), level)
    rows = entry.fields([f"GPU{index}" for index in indices])
    columns = [int(name.removeprefix("GPU")) for name in rows]
    links: dict[tuple[int, int], str] = {}
    seen: dict[tuple[int, int], str] = {}
    for index, row in zip(columns, rows.values(), strict=True):
        for other, cell in zip(columns, _cells(row, index, columns), strict=True):
            pair = min(index, other), max(index, other)
            if seen.setdefault(pair, cell) != cell:
                raise row.wrong(f"GPU{index} to GPU{other} is {cell} here, and {seen[pair]} the other way round")
            if index != other and cell != UNKNOWN:
                links[pair] = _level(row, cell)
    return links


def _cells(row: Entry, index: int, columns: Sequence[int]) -> list[str]:
    cells = (row.scalar or "").split()
    if len(cells) != len(columns):
        raise row.wrong(f"GPU{index} must have {len(columns)} links, one for each row, not {len(cells)}")
    if [other for other, cell in zip(columns, cells, strict=True) if cell == "X"] != [index]:
        raise row.wrong(f"GPU{index} must have X, the link to itself, in column {columns.index(index) + 1} alone")
    return cells


def _level(entry: Entry, word: str) -> str:
    if not LEVEL.fullmatch(word):
        raise entry.wrong(f"a link must be {_LEVELS}, not {word!r}; N/A in a matrix is an unknown one")
    return word


def _process(entry: Entry) -> Process:
    given = entry.fields(_PROCESS)
    if "pid" not in given:
        raise entry.wrong("a process must have a pid")
    return Process(given["pid"].number("pid", first=1), _number(given, "memory"))


def _bus_id(entry: Entry) -> str:
    return pci.canonical(entry.matching("pci_bus_id", BUS_ID, "like 00000000:1B:00.0"))


def _known(written: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the values but for those that say `unknown`, against what stands under `each`."""
    return {key: entry for key, entry in written.items() if not entry.unknown}


def _number(given: Mapping[str, Entry], key: str) -> int | None:
    return given[key].number(key) if key in given else None


def _text(given: Mapping[str, Entry], key: str) -> str | None:
    return given[key].text(key) if key in given else None
