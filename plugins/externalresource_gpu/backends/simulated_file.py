"""A YAML file that describes simulated GPUs.

    gpus:
      - name: Tesla T4
        memory_total: 15360
      - index: 2
        unusable: GPU is lost

Each has the fields of Device, all optional: the index counts from 0, the UUID is made up, what is left out is unknown.
"""

import os

import yaml

from externalresource.errors import DiscoveryError, did_you_mean
from externalresource_gpu.backends import listing, machines, reasons
from externalresource_gpu.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FIELDS = tuple(Device.__dataclass_fields__)
_NUMBERS = ("index", "memory_total", "numa_node")
_WORDS = {
    "compute_mode": ("Default", "Exclusive_Thread", "Exclusive_Process", "Prohibited"),
    "mig_mode": ("Enabled", "Disabled"),
}


def read(path: str) -> list[Device]:
    """Return the GPUs of the file. DiscoveryError names the file, the line and what is allowed there."""
    try:
        with open(path, encoding="utf-8") as file:
            # Nodes, not values: they know their lines, and YAML takes the bus id 00000000:10:00.0 for a number.
            document = yaml.compose(file, Loader=yaml.BaseLoader)
    except OSError as error:
        raise DiscoveryError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DiscoveryError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return listing.unique(path, (_device(path, index, node) for index, node in enumerate(_gpus(path, document))))


def _gpus(path: str, document: yaml.Node | None) -> list[yaml.Node]:
    if document is None:
        raise DiscoveryError(f"{path} is empty: it must have a list `gpus:`")
    listed = _mapping(path, document, ["gpus"]).get("gpus")
    if not isinstance(listed, yaml.SequenceNode):
        raise _wrong(path, listed or document, "`gpus:` must be a list of mappings")
    return list(listed.value)


def _mapping(path: str, node: yaml.Node, allowed: "Iterable[str]") -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(path, node, f"must be a mapping with {', '.join(allowed)}")
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.value not in allowed:
            near = did_you_mean(str(key.value), allowed)
            raise _wrong(path, key, f"{key.value!r} is none of {', '.join(allowed)}{near}")
        if key.value in found:
            raise _wrong(path, key, f"{key.value!r} is given twice")
        found[key.value] = value
    return found


def _device(path: str, position: int, node: yaml.Node) -> Device:
    given = _mapping(path, node, _FIELDS)
    numbers = {key: _number(path, key, value) for key, value in given.items() if key in _NUMBERS}
    words = {key: _word(path, key, value) for key, value in given.items() if key not in _NUMBERS}
    index = numbers.get("index", position)
    compute_mode = words.get("compute_mode")
    return Device(
        index=index,
        uuid=words.get("uuid", machines.uuid(os.path.realpath(path), index)),
        name=words.get("name"),
        memory_total=numbers.get("memory_total"),
        pci_bus_id=words.get("pci_bus_id"),
        compute_mode=compute_mode,
        mig_mode=words.get("mig_mode"),
        numa_node=numbers.get("numa_node"),
        unusable=words.get("unusable", reasons.unusable([], compute_mode)),
    )


def _number(path: str, key: str, node: yaml.Node) -> int:
    if not (isinstance(node, yaml.ScalarNode) and node.value.isascii() and node.value.isdigit()):
        raise _wrong(path, node, f"{key} must be a number from 0 on, not {node.value!r}")
    return int(node.value)


def _word(path: str, key: str, node: yaml.Node) -> str:
    allowed = _WORDS.get(key)
    if not isinstance(node, yaml.ScalarNode) or not node.value or (allowed and node.value not in allowed):
        raise _wrong(path, node, f"{key} must be {' or '.join(allowed or ['a text'])}, not {node.value!r}")
    return str(node.value)


def _wrong(path: str, node: yaml.Node, reason: str) -> DiscoveryError:
    return DiscoveryError(f"{path}:{node.start_mark.line + 1}: {reason}")
