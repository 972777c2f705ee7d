"""Devices in use though nobody claimed them: ignored, mentioned, or left out."""

import pytest

from externalresource.errors import NotEnoughDevicesError
from externalresource_gpu.device import Device, Process
from externalresource_gpu.host import Host
from externalresource_gpu.script.options import Options

BUSY = Process(4711, 2000)
GPUS = [
    Device(0, uuid="GPU-0", memory_used=2000, processes=(BUSY,)),
    Device(1, uuid="GPU-1", memory_used=0, processes=()),
    Device(2, uuid="GPU-2", memory_used=30000, processes=()),
    Device(3, uuid="GPU-3"),
]


def host(foreign_use: str, gpus: list[Device] = GPUS) -> Host:
    return Host(Options(["1", f"--foreign-use={foreign_use}", "--ignore-mask"], {}), "simulated", gpus, {})


def chosen(foreign_use: str, amount: int) -> list[int]:
    return [device.index for device in host(foreign_use).choose(GPUS, [], amount)]


def test_use_is_ignored_unless_asked_for() -> None:
    assert chosen("ignore", 2) == [0, 1]


@pytest.mark.parametrize("foreign_use", ["warn", "exclude"])
def test_what_nobody_uses_comes_first_and_unknown_is_not_used(foreign_use: str) -> None:
    assert chosen(foreign_use, 2) == [1, 3]


def test_what_is_used_is_given_with_a_warning_if_there_is_no_other() -> None:
    assert chosen("warn", 3) == [1, 3, 0]
    assert host("warn").doubts(GPUS) == [
        "GPU 0 is used by pid 4711 (2000 MiB); GPU 2 is used (30000 MiB of its memory)"
    ]
    assert host("warn").doubts(GPUS[1:2]) == []


def test_what_is_used_is_refused_where_that_is_wanted() -> None:
    with pytest.raises(NotEnoughDevicesError) as caught:
        chosen("exclude", 3)
    assert str(caught.value) == (
        "3 wanted, 2 of 4 free ones are not in use (--foreign-use exclude): GPU 0 is used by pid 4711 (2000 MiB); "
        "GPU 2 is used (30000 MiB of its memory)"
    )


def test_later_look_counts() -> None:
    later = host("exclude")
    later.look([Device(index, uuid=f"GPU-{index}", memory_used=0, processes=()) for index in range(4)])
    assert [device.index for device in later.choose(GPUS, [], 4)] == [0, 1, 2, 3]


def test_mig_instance_is_used_by_its_own_memory() -> None:
    instances = tuple(
        Device(0, uuid=f"MIG-{number}", mig_index=number, memory_used=used) for number, used in enumerate([9000, 12])
    )
    gpu = Device(0, uuid="GPU-0", mig_mode="Enabled", instances=instances, memory_used=9012, processes=(BUSY,))
    assert [device.place for device in host("exclude", [gpu]).choose(instances, [], 1)] == ["0:1"]
