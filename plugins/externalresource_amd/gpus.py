"""AMD's GPUs as amd-smi and rocm-smi print them in JSON. What they do not tell is None, never 0."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_BUS_ID = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]")
_UNTOLD = ("", "N/A", "NONE", "UNKNOWN")
_NO_NUMBER = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # what AMD's library answers for a number that it does not have
_WHOLE = "SPX"
_MIB = {"B": 1 / (1 << 20), "KB": 1 / (1 << 10), "MB": 1, "GB": 1 << 10}  # amd-smi's MB are MiB


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU, or a compute partition of one."""

    #: As amd-smi or rocm-smi counts.
    index: int
    #: `GPU-` and 16 digits, as ROCm's runtime knows it; partitions have that of their GPU.
    uuid: str | None = None
    name: str | None = None
    #: MiB
    memory: int | None = None
    #: `0000:83:00.0`
    bus_id: str | None = None
    numa_node: int | None = None
    #: In the topology of the kernel's compute driver (KFD), in whose order ROCm's runtime counts.
    node: int | None = None
    #: `SPX` for a whole GPU; `DPX`, `QPX`, `CPX`, ...
    compute_partition: str | None = None
    #: `NPS1`, `NPS4`, ...
    memory_partition: str | None = None
    #: Its number among the partitions of its GPU; None if it is a whole GPU.
    partition: int | None = None
    #: `gfx942`
    target: str | None = None
    unhealthy: str | None = None

    @property
    def identity(self) -> str | None:
        """Return what it is known by on the host and in each container."""
        return self.uuid if self.uuid is None or self.partition is None else f"{self.uuid}/{self.partition}"


def of_amd_smi(listed: Any, static: Any) -> list[GPU]:
    """Return the GPUs of `amd-smi list --json` and `amd-smi static --json`. ValueError if these are something else."""
    details = {_index(entry): entry for entry in _entries(static)}
    return _with_partitions([_amd_smi(entry, details.get(_index(entry))) for entry in _entries(listed)])


def of_rocm_smi(found: Any) -> list[GPU]:
    """Return the GPUs of `rocm-smi --json`: an object for each `card0`, with keys in words."""
    if not isinstance(found, dict):
        raise ValueError("no object with cards")  # noqa: TRY004 - JSON of another kind, not a mistake of the caller
    cards = {match[1]: card for name, card in found.items() if (match := re.fullmatch(r"card([0-9]{1,9})", name))}
    return [_rocm_smi(int(index), card) for index, card in sorted(cards.items(), key=lambda pair: int(pair[0]))]


def positions(gpus: Sequence[GPU]) -> dict[int, int]:
    """Return the number of each GPU for ROCm's runtime, by its index; nothing for those of which that is not known."""
    nodes = sorted(gpu.node for gpu in gpus if gpu.node is not None)
    if not nodes and len(gpus) == 1:
        return {gpus[0].index: 0}
    if len(set(nodes)) < len(nodes):
        return {}
    return {gpu.index: nodes.index(gpu.node) for gpu in gpus if gpu.node is not None}


def _amd_smi(listed: Mapping[str, Any], static: Mapping[str, Any] | None) -> GPU:
    said = static or {}
    asic, partition, vram = _part(said, "asic"), _part(said, "partition"), _part(said, "vram")
    exceeded = _text(_part(said, "ras").get("bad_page_threshold_exceeded")) or ""
    return GPU(
        _index(listed),
        _uuid(asic.get("asic_serial")),
        _text(asic.get("market_name")),
        _mib(vram.get("size", vram.get("vram_size_mb"))),
        _bus_id(listed.get("bdf")) or _bus_id(_part(said, "bus").get("bdf")),
        numa_node=_number(_part(said, "numa").get("node")),
        node=_number(listed.get("node_id")),
        compute_partition=_text(partition.get("accelerator_partition", partition.get("compute_partition"))),
        memory_partition=_text(partition.get("memory_partition")),
        partition=_number(listed.get("partition_id", partition.get("partition_id"))),
        target=_text(asic.get("target_graphics_version")),
        unhealthy="more pages of its memory are bad than its threshold allows"
        if exceeded.lower() in ("true", "yes")
        else "amd-smi lists it and tells nothing else of it"
        if static is None
        else None,
    )


def _rocm_smi(index: int, card: Any) -> GPU:
    known = {str(key).lower(): value for key, value in card.items()} if isinstance(card, dict) else {}
    return GPU(
        index,
        _uuid(known.get("unique id")),
        _text(known.get("card series")) or _text(known.get("device name")),
        _mib(known.get("vram total memory (b)"), "B"),
        _bus_id(known.get("pci bus")),
        numa_node=_number(known.get("(topology) numa node")),
        target=_text(known.get("gfx version")),
    )


def _with_partitions(gpus: list[GPU]) -> list[GPU]:
    """Tell partitions from whole GPUs, which have a partition 0, too. Of all but the first amd-smi may not say much.

    The partitions of a GPU differ in the function of their PCI bus id at most.
    """
    partitioned = {_card(gpu) for gpu in gpus if gpu.partition or gpu.compute_partition not in (None, _WHOLE)}
    found = []
    for gpu in gpus:
        if gpu.bus_id is None or _card(gpu) not in partitioned:
            found.append(replace(gpu, partition=None))
            continue
        card = sorted((other for other in gpus if _card(other) == _card(gpu)), key=lambda other: other.partition or 0)
        uuid, name = (
            next(filter(None, told), None) for told in zip(*((one.uuid, one.name) for one in card), strict=True)
        )
        found.append(replace(gpu, uuid=uuid, name=gpu.name or name))
    return found


def shared(gpus: Sequence[GPU]) -> set[str]:
    """Return the UUIDs that more than one of the GPUs has: ROCm's runtime takes none of them for a name."""
    return {uuid for uuid, count in Counter(gpu.uuid for gpu in gpus).items() if uuid and count > 1}


def _card(gpu: GPU) -> str | None:
    return gpu.bus_id.partition(".")[0] if gpu.bus_id else None


def _entries(found: Any) -> list[Mapping[str, Any]]:
    """Return the list of GPUs, which newer releases of amd-smi have in an object, beside one of CPUs."""
    entries = found.get("gpu_data", [found] if "gpu" in found else None) if isinstance(found, dict) else found
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("no list of GPUs")
    return [entry for entry in entries if "gpu" in entry]


def _index(entry: Mapping[str, Any]) -> int:
    index = _number(entry.get("gpu"))
    if index is None:
        raise ValueError(f"a GPU whose number is {repr(entry.get('gpu'))[:60]}")
    return index


def _part(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = entry.get(name)
    return part if isinstance(part, dict) else {}


def _text(value: Any) -> str | None:
    text = " ".join(str(value).split()) if isinstance(value, str | bool | int | float) else ""
    return None if text.upper() in _UNTOLD else text


def _number(value: Any) -> int | None:
    """Return a number that is no stand-in for none."""
    text = _text(value)
    if text is None or isinstance(value, bool) or not re.fullmatch("[0-9]{1,20}", text, re.ASCII):
        return None
    return None if int(text) in _NO_NUMBER else int(text)


def _mib(value: Any, unit: str = "MB") -> int | None:
    if isinstance(value, dict):
        value, unit = value.get("value"), str(value.get("unit", unit))
    text, _, given = (_text(value) or "").partition(" ")
    factor = _MIB.get((given or unit).upper())
    return (int(int(text) * factor) or None) if re.fullmatch("[0-9]{1,20}", text) and factor else None


def _bus_id(value: Any) -> str | None:
    text = _text(value) or ""
    return text.lower() if _BUS_ID.fullmatch(text) else None


def _uuid(serial: Any) -> str | None:
    """Return the UUID of ROCm's runtime, which is made of the serial number; older chips have none, or 0."""
    text = (_text(serial) or "").lower().removeprefix("0x")
    return f"GPU-{text:0>16}" if re.fullmatch("[0-9a-f]{1,16}", text) and text.strip("0") else None
