"""Which devices look used though nobody claimed them."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from externalresource_gpu.choosing.policies import USED, foreign
from externalresource_gpu.device import Device, Process

RECORDED = Path(__file__).parents[3].parent / "shared/data/nvidia-smi/xml"


@pytest.mark.parametrize(
    ("device", "use"),
    [
        (Device(0), None),
        (Device(0, processes=()), None),
        (Device(0, memory_used=0, processes=()), None),
        (Device(0, memory_used=USED - 1, processes=()), None),
        (Device(0, memory_used=USED), "used (128 MiB of its memory)"),
        (Device(0, memory_used=5120, processes=()), "used (5120 MiB of its memory)"),
        (Device(0, processes=(Process(7),)), "used by pid 7"),
        (Device(0, memory_used=0, processes=(Process(7, 512), Process(9))), "used by pid 7 (512 MiB), pid 9"),
        (Device(0, processes=tuple(map(Process, range(1, 5)))), "used by pid 1, pid 2, pid 3, pid 4"),
        (
            Device(0, processes=tuple(map(Process, range(1, 8)))),
            "used by pid 1, pid 2, pid 3, pid 4 and 3 more",
        ),
        (Device(0, uuid="MIG-1", mig_index=0, memory_used=12), None),
        (Device(0, uuid="MIG-1", mig_index=0, memory_used=9000), "used (9000 MiB of its memory)"),
    ],
)
def test_use_by_others_is_what_computes_on_it_or_its_memory(device: Device, use: str | None) -> None:
    assert foreign(device) == use


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of nvidia-smi are not here")
def test_memory_alone_tells_the_recorded_gpus_at_work_from_the_idle_ones() -> None:
    idle: set[int] = set()
    working: set[int] = set()
    for path in RECORDED.glob("*.xml"):
        for gpu in ET.fromstring(path.read_text(encoding="utf-8")).iter("gpu"):
            used = re.fullmatch(r"(\d+) MiB", gpu.findtext("fb_memory_usage/used") or "")
            load = re.fullmatch(r"(\d+) %", gpu.findtext("utilization/gpu_util") or "")
            if used and load and (int(load[1]) > 50 or gpu.find("processes/process_info") is None):
                (working if int(load[1]) > 50 else idle).add(int(used[1]))
    assert (max(idle), min(working)) == (116, 2028)
    assert all(foreign(Device(0, memory_used=used)) is None for used in idle)
    assert all(foreign(Device(0, memory_used=used)) for used in working)
