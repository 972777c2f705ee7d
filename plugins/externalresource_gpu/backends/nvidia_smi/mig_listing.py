"""The MIG instances of GPUs, as `nvidia-smi -L` and `nvidia-smi -q -x` print them. Touches no process and no file.

Only the list has their UUIDs and profiles, only the XML their ids and memory: both count them alike on each GPU.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLPullParser

from externalresource.api import record, replace
from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import reasons
from externalresource_gpu.backends.nvidia_smi import listing
from externalresource_gpu.device import Device

_GPU = re.compile(r"GPU (?P<index>[0-9]{1,9}): .*\(UUID: (?P<uuid>[^()]*)\)")
# "MIG 1g.5gb Device  0: (UUID: MIG-...)", and "MIG Device 0: ..." of the oldest drivers
_INSTANCE = re.compile(r"MIG (?:(?P<profile>\S+) +)?Device +(?P<index>[0-9]{1,9}): \(UUID: (?P<uuid>[^()]*)\)")
# The UUIDs before driver 470 are made of the GPU's UUID and the ids of GPU instance and compute instance.
_IDS = re.compile(r"MIG-.+/(?P<gpu_instance>[0-9]{1,9})/(?P<compute_instance>[0-9]{1,9})")
_MIB = re.compile(r"(?P<number>[0-9]{1,18}) MiB")


@record
class Detail:
    """What the XML tells of an instance."""

    gpu_instance: int | None = None
    compute_instance: int | None = None
    #: MiB
    total: int | None = None
    #: MiB
    used: int | None = None


class Listed:
    """A GPU of the list."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        #: Number, profile and UUID of each instance, as printed.
        self.instances: list[tuple[int, str | None, str]] = []
        #: Why the list cannot be trusted; None if it can.
        self.wrong: str | None = None


def attach(gpus: Iterable[Device], listed: str | DiscoveryError, detailed: str | DiscoveryError) -> list[Device]:
    """Return the GPUs, those with MIG on with their instances; unusable where these are not known for sure."""
    found = parse(listed) if isinstance(listed, str) else {}
    details = parse_xml(detailed) if isinstance(detailed, str) else {}
    return [
        gpu if gpu.mig_mode != listing.MIG_ENABLED else _divided(gpu, listed, found, details.get(gpu.uuid or "", {}))
        for gpu in gpus
    ]


def parse(text: str) -> dict[int, Listed]:
    """Return the GPUs of `nvidia-smi -L`, by index."""
    found: dict[int, Listed] = {}
    gpu: Listed | None = None
    for said in map(str.strip, text.splitlines()):
        if said.startswith("MIG "):
            if gpu is not None:
                _add(gpu, said)
        elif match := _GPU.fullmatch(said):
            gpu = found[int(match["index"])] = Listed(match["uuid"])
        elif said:
            gpu = None  # whatever it is, no instance that follows is of the GPU before
    return found


def parse_xml(text: str) -> dict[str, dict[int, Detail]]:
    """Return the instances by the UUID of their GPU and their number; an output that was cut off tells of some GPUs.

    The DTD is another file, which is not read. A document that declares entities is none of nvidia-smi's.
    """
    found: dict[str, dict[int, Detail]] = {}
    if "<!ENTITY" in text:
        return found
    parser: Any = XMLPullParser(["end"])
    try:
        parser.feed(text[max(text.find("<?xml"), 0) :])  # it begins with the GPUs that are lost
        for _, element in parser.read_events():
            if element.tag == "gpu" and (uuid := element.findtext("uuid")):
                found[uuid.strip()] = _details(element.iterfind("mig_devices/mig_device"))
    except (ParseError, ValueError):
        pass  # what came before is valid
    return found


def _add(gpu: Listed, said: str) -> None:
    match = _INSTANCE.fullmatch(said)
    if match is None:
        gpu.wrong = f"nvidia-smi -L printed {reasons.quote(said)!r}"
        return
    index, uuid = int(match["index"]), match["uuid"]
    if any(index == known or uuid == other for known, _, other in gpu.instances):
        gpu.wrong = f"nvidia-smi -L printed one twice: {reasons.quote(said)!r}"
    gpu.instances.append((index, match["profile"], uuid))


def _details(instances: Iterable[Element]) -> dict[int, Detail]:
    details = (
        (
            _number(instance.findtext("index")),
            Detail(
                _number(instance.findtext("gpu_instance_id")),
                _number(instance.findtext("compute_instance_id")),
                _mib(instance.findtext("fb_memory_usage/total")),
                _mib(instance.findtext("fb_memory_usage/used")),
            ),
        )
        for instance in instances
    )
    return {index: detail for index, detail in details if index is not None}


def _divided(
    gpu: Device, said: str | DiscoveryError, listed: Mapping[int, Listed], details: Mapping[int, Detail]
) -> Device:
    found = listed.get(gpu.index)
    if isinstance(said, DiscoveryError):
        wrong: object = said
    elif found is None or (gpu.uuid and found.uuid != gpu.uuid):
        wrong = f"nvidia-smi -L does not list GPU {gpu.index} ({gpu.uuid})"
    elif found.wrong:
        wrong = found.wrong
    else:
        each = (_instance(gpu, *instance, details.get(instance[0], Detail())) for instance in found.instances)
        return replace(gpu, instances=tuple(each))
    return replace(gpu, unusable=gpu.unusable or reasons.instances_unlisted(wrong))


def _instance(gpu: Device, index: int, profile: str | None, uuid: str, detail: Detail) -> Device:
    if match := _IDS.fullmatch(uuid):
        ids = int(match["gpu_instance"]), int(match["compute_instance"])
        if ids != (detail.gpu_instance, detail.compute_instance):  # made anew between the two answers
            detail = Detail(*ids)
    known = uuid.startswith("MIG-")
    return replace(
        gpu.instance(index, uuid if known else None, profile),
        memory_total=detail.total,
        memory_used=detail.used,
        unusable=None if known else f"it has no UUID, but {uuid!r}",
        gpu_instance=detail.gpu_instance,
        compute_instance=detail.compute_instance,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else None


def _mib(text: str | None) -> int | None:
    match = _MIB.fullmatch(text or "")
    return int(match["number"]) if match else None
