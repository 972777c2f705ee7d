"""The parsers of GPU discovery, each with real lines to change, and what must hold of its answers."""

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from externalresource.records import replace
from externalresource_gpu import foreign_script
from externalresource_gpu.backends.nvidia_smi import backend as nvidia_smi, listing, mig_listing, topo
from externalresource_gpu.backends.nvml import answer as nvml
from externalresource_gpu.backends.simulated import machine_file, made_up, recording
from externalresource_gpu.choosing import candidates, mask as masks, policies, topology
from externalresource_gpu.device import Device
from externalresource_gpu.script import dialects
from externalresource_gpu.script.options import OPTIONS, PREFIX, Options
from mutations import ODD
from seeds import ANSWERS, ANSWERS_OF_CHILD, APPS, CHILD, LIST, MACHINE, MASKS, MATRIX, ROWS, XML, uuid

_RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "nvidia-smi"
_LARGEST = 4096  # bytes of a recording that is changed again and again
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Parser:
    """What is fed. `read` returns what kind of answer it gave, and raises nothing but ExternalResourceError."""

    name: str
    seeds: Sequence[str]
    read: Callable[[str], object]
    #: How many inputs it gets, against the others.
    weight: int = 8


_KEPT = ("gpus", "failures", "index", "mig_index")  # by the child, whatever a GPU does not tell
_COUNTED = ("index", "mig_index", "levels", "nvlinks")  # by the child itself
_CHANGED = 0.15  # of the values of a record
_WORDS = (
    "2\n--enable-coordination-mode\n--coordination-file=/tmp/claims\n--backend\nnvml\n--format=spark\nnull",
    *(f"1\n--{option.name}=1" if option.value else f"--{option.name}\n1" for option in OPTIONS.values()),
    f"{PREFIX}AMOUNT=2\n{PREFIX}POLICY=pack\n{PREFIX}LIST=true",
    "2\n--policy\nconnected\n--mig\n1g.10gb\n--min-memory\n40000\n--foreign-use\nexclude\n--timeout\n0.5\n--wait=60",
)
_REQUESTS = tuple(f"{mask}\n{rows}" for mask in (*MASKS, "0", "0,1,2,3") for rows in ROWS)


def _no_node(_bus_id: str) -> None:
    return None


def _read_rows(text: str, fields: Sequence[str] = nvidia_smi.FIELDS) -> object:
    for status in (0, 2, 6, 14, 15):
        listing.unknown_field(status, text)
        listing.is_empty(status, text)
        listing.is_complete(status, text)
        listing.is_answer(status, text)
    return _kind(_rows(text, fields))


def _rows(text: str, fields: Sequence[str] = nvidia_smi.FIELDS) -> list[Device]:
    devices = listing.parse(text, fields, _no_node)
    _check(devices)
    return devices


def _check(devices: Sequence[Device]) -> None:
    """Hold that the devices can be told apart, and that each says in one line why it is not handed out."""
    indices = [device.index for device in devices]
    assert indices == sorted(set(indices)), indices
    for gpu in devices:
        for device in (gpu, *gpu.instances):
            assert device.index >= 0, device
            numbers = (device.memory_total, device.memory_used, device.numa_node)
            assert all(number is None or number >= 0 for number in numbers), device
            assert device.unusable is None or is_line(device.unusable), device
            assert is_line(device.token), device
            assert policies.foreign(device) is None or device.processes or device.memory_used, device
            device.properties()


def is_line(text: str) -> bool:
    return len(text.splitlines()) == 1


_HOST = [
    Device(0, uuid=uuid(1), name="NVIDIA A100", mig_mode="Enabled"),
    Device(1, uuid=uuid(2), name="NVIDIA A100", mig_mode="Enabled"),
]
_WHOLE = [Device(index, uuid=uuid(index + 1), name="NVIDIA A100") for index in range(6)]
_HOSTS = (
    _WHOLE,
    [_WHOLE[0], Device(1, unusable="GPU is lost"), *_WHOLE[3:]],
    [*mig_listing.attach(_HOST, LIST[0], XML[0]), *_WHOLE[2:]],
)


def _read_list(text: str) -> object:
    mig_listing.parse(text)
    devices = mig_listing.attach(_HOST, text, XML[0])
    _check(devices)
    return _kind(devices)


def _read_xml(text: str) -> object:
    mig_listing.parse_xml(text)
    devices = mig_listing.attach(_HOST, LIST[0], text)
    _check(devices)
    return _kind(devices)


def _read_apps(text: str) -> object:
    devices = listing.attach_processes(_HOST, text)
    _check(devices)
    return [None if device.processes is None else len(device.processes) for device in devices]


def _read_matrix(text: str) -> object:
    links = topo.parse(text)
    assert all(0 <= one < other for one, other in links), links
    topology.matrix(links, _HOST)
    return sorted(map(topology.rank, links.values()))


def _read_child(text: str) -> object:
    """Read what the child process printed, cut off or mixed with what others print. Its own line it prints whole."""
    try:
        ours = json.loads(text.splitlines()[-1]) in ANSWERS_OF_CHILD
    except (ValueError, LookupError, RecursionError):
        ours = True  # or nobody's
    return _kind(_told(nvml.read(0, text, ""))) if ours else "another's"


def _read_records(text: str) -> object:
    """Read what the child process may tell: of each value there is any, and what need not be there may be missing."""
    return _kind(_told(_varied(ANSWERS_OF_CHILD[0], random.Random(text))))


def _told(answer: dict[str, Any]) -> list[Device]:
    devices = nvml.placed(
        [nvml.device(gpu, _no_node) for gpu in answer["gpus"]], ["0000:1b:00.0", "0000:43:00.0", "0000:b1:00.0"]
    )
    _check(devices)
    nvml.links(answer)
    return devices


def _varied(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        return {
            key: item if key in _COUNTED else _varied(item, chance)
            for key, item in value.items()
            if key in _KEPT or chance.random() > _CHANGED
        }
    if isinstance(value, list):
        return [_varied(item, chance) for item in value]
    if value is None or chance.random() > _CHANGED:
        return value
    return chance.choice(ODD if isinstance(value, str) else (0, 1, 2, 15, 999, 1 << 40, (1 << 64) - 1))


def _read_machine(folder: str, text: str) -> object:
    path = os.path.join(folder, "machine.yaml")
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    machine = machine_file.read(path, "fuzz")
    _check(machine.devices)
    return _kind(machine.devices), machine.driver.status, len(machine.links)


def _read_recorded(folder: str, text: str) -> object:
    """Write down the devices of a listing as a machine, and read it."""
    devices = [replace(device, numa_node=0) for device in _rows(text)]
    kind = _read_machine(folder, recording.render(devices, {}))
    machine = machine_file.read(os.path.join(folder, "machine.yaml"), "fuzz")
    assert [_recorded_as(device) for device in machine.devices] == [_recorded_as(device) for device in devices], text
    return kind


def _recorded_as(device: Device) -> object:
    """Return what is neither masked nor left out because no machine can have it."""
    return device.index, device.memory_total, device.memory_used, device.unusable is None


def _read_mask(text: str) -> object:
    return [_shown(text, host) for host in _HOSTS]


def _shown(text: str, host: Sequence[Device]) -> object:
    shown = masks.visible(text, host)
    assert all(device in masks.visible(text, host, one_instance=False) for device in shown), text
    for relative in (False, True):
        masks.ambiguity(text, host, None, relative=relative)
    return [(device.place, masks.ordinal(device, shown)) for device in shown]


def _read_options(text: str) -> object:
    lines = text.split("\n")
    variables = dict(line.partition("=")[::2] for line in lines if line.startswith(PREFIX))
    # What is no name for a shell stands in an error as it is.
    environment = {name: value for name, value in variables.items() if name.isprintable()}
    return Options([line for line in lines if not line.startswith(PREFIX)], environment).amount


def _read_answer(text: str) -> object:
    return len(foreign_script.tokens(text, 3))


def _read_dialects(text: str) -> object:
    """Say the devices of a listing in each dialect, and understand it as those do who asked."""
    devices = _rows(text)
    tokens = [device.token for device in devices]
    if tokens:
        assert foreign_script.tokens(dialects.render("flink", devices), len(devices)) == tokens, text
    assert json.loads(dialects.render("spark", devices))["addresses"] == tokens, text
    assert json.loads(dialects.render("json", devices)) == [device.properties() for device in devices], text
    if all(_UUID.fullmatch(device.uuid or "") and device.mig_mode != "Enabled" for device in devices):
        variables = dict(line.partition("=")[::2] for line in dialects.render("env", devices).splitlines())
        assert masks.visible(variables["CUDA_VISIBLE_DEVICES"], devices) == devices, text
    return _kind(devices)


def _read_request(text: str) -> object:
    """Choose of the devices of a listing, whose first line is a mask, by each policy."""
    first, _, rows = text.partition("\n")
    mask = " ".join(first.split())  # it stands in the reason why a device is hidden
    gpus = mig_listing.attach(_rows(rows), LIST[0], XML[0])
    shown = masks.visible(mask, gpus, one_instance=False)
    found = candidates.usable(candidates.listed(gpus, shown, candidates.Wanted(mask=mask)), shown, 1)
    for policy in policies.POLICIES:
        for amount in range(1, len(found) + 1):
            chosen = policies.select(found, (), amount, policy=policy, links={}, devices=gpus)
            assert [device for device in found if device in chosen] == chosen, text
            assert len(chosen) == amount, text
    assert all(device.unusable is None and device.place in [one.place for one in shown] for device in found), text
    return _kind(found)


def _kind(devices: Sequence[Device]) -> object:
    """Return what distinguishes one answer from another."""
    return [
        (
            device.unusable and device.unusable[:12],
            device.memory_total is None,
            [(known.mig_profile, known.memory_total is None, known.gpu_instance) for known in device.instances],
        )
        for device in devices
    ]


def parsers(folder: str) -> list[Parser]:
    """Return all; those of files write into the folder."""
    return [
        Parser("nvidia-smi --query-gpu", ROWS, _read_rows),
        Parser("nvidia-smi -L", [*LIST, *_recorded("list")], _read_list),
        Parser("nvidia-smi -q -x", XML, _read_xml),
        Parser("nvidia-smi topo -m", [*MATRIX, *_recorded("topo")], _read_matrix),
        Parser("nvidia-smi --query-compute-apps", APPS, _read_apps),
        Parser("NVML's child process", CHILD, _read_child),
        Parser("NVML's records", CHILD, _read_records),
        Parser("CUDA_VISIBLE_DEVICES", MASKS, _read_mask, weight=16),
        Parser("options", _WORDS, _read_options),
        Parser("a foreign script's answer", ANSWERS, _read_answer),
        Parser("dialects, there and back", ROWS, _read_dialects),
        Parser("from mask and rows to a grant", _REQUESTS, _read_request),
        Parser("a machine's file", [*MACHINE, *_shipped()], partial(_read_machine, folder), weight=1),
        Parser("recording, there and back", ROWS, partial(_read_recorded, folder), weight=1),
    ]


def _shipped() -> Iterator[str]:
    for name in made_up.names():
        text = Path(made_up.path(name)).read_text(encoding="utf-8")
        if len(text) <= _LARGEST // 4:
            yield text


def _recorded(folder: str) -> Iterator[str]:
    """Yield the small recordings, where they are."""
    for path in sorted((_RECORDINGS / folder).glob("*.txt")):
        if path.stat().st_size <= _LARGEST:
            yield path.read_text(encoding="utf-8", errors="replace")
