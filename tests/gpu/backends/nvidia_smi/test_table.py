"""The table that nvidia-smi prints of its GPUs."""

from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvidia_smi import listing
from externalresource_gpu.backends.nvidia_smi.backend import FIELDS, SINCE, NvidiaSmi
from externalresource_gpu.device import Device
from tests.support.backends import message, soon
from tests.support.nvidia_smi import StandIn, row, table


def parse(*lines: str) -> list[Device]:
    return listing.parse("\n".join(lines), FIELDS, lambda _: None)


def test_row_becomes_a_device() -> None:
    assert listing.parse(row(), FIELDS, {"00000000:07:00.0": 3}.get) == [
        Device(
            index=0,
            uuid="GPU-0",
            name="NVIDIA A100-SXM4-40GB",
            memory_total=40960,
            memory_used=17,
            pci_bus_id="00000000:07:00.0",
            compute_mode="Default",
            mig_mode="Disabled",
            numa_node=3,
        )
    ]


@pytest.mark.parametrize(
    "nothing", ["[N/A]", "[Not Supported]", "N/A", "", "[Requested functionality has been deprecated]"]
)
@pytest.mark.parametrize(
    ("field", "attribute"),
    [
        ("uuid", "uuid"),
        ("name", "name"),
        ("memory__total", "memory_total"),
        ("memory__used", "memory_used"),
        ("pci__bus_id", "pci_bus_id"),
        ("compute_mode", "compute_mode"),
        ("mig__mode__current", "mig_mode"),
    ],
)
def test_cell_without_a_value_is_unknown_and_the_gpu_healthy(field: str, attribute: str, nothing: str) -> None:
    [device] = parse(row(**{field: nothing}))
    assert getattr(device, attribute) is None
    assert device.unusable is None


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"utilization__gpu": "[GPU requires reset]"}, "GPU requires reset"),
        ({"temperature__gpu": "[Unknown Error]"}, "Unknown Error"),
        ({"memory__total": "[GPU is lost]", "uuid": "[GPU is lost]"}, "GPU is lost"),
        ({"uuid": "[Insufficient Permissions]"}, "Insufficient Permissions"),
        ({"name": "[Unknown Error]", "utilization__gpu": "[GPU is lost]"}, "GPU is lost, Unknown Error"),
        ({"memory__total": "[Insufficient Permissions]"}, "Insufficient Permissions"),
        ({"memory__total": "40960 MiB"}, "memory.total is '40960 MiB'"),
        ({"memory__used": "-1"}, "memory.used is '-1'"),
        ({"memory__used": "9" * 5000}, f"memory.used is '{'9' * 300}...'"),
        ({"compute_mode": "Prohibited"}, "compute mode is Prohibited"),
        ({"compute_mode": "Prohibited", "uuid": "[GPU is lost]"}, "GPU is lost, compute mode is Prohibited"),
        ({"gpu_recovery_action": "Reset"}, "recovery action is Reset"),
        ({"gpu_recovery_action": "Drain and Reset"}, "recovery action is Drain and Reset"),
        ({"gpu_recovery_action": "Reboot", "uuid": "[GPU is lost]"}, "GPU is lost, recovery action is Reboot"),
    ],
)
def test_error_in_a_cell_makes_this_gpu_unusable_and_no_other(cells: dict[str, str], reason: str) -> None:
    broken, healthy = parse(row(**cells), row(index="1"))
    assert (broken.index, broken.unusable) == (0, reason)
    assert (healthy.index, healthy.unusable) == (1, None)


@pytest.mark.parametrize("mode", ["Default", "Exclusive_Process", "Exclusive_Thread"])
def test_compute_mode_that_admits_a_process_is_kept(mode: str) -> None:
    [device] = parse(row(compute_mode=mode))
    assert (device.compute_mode, device.unusable) == (mode, None)


@pytest.mark.parametrize("action", ["None", "Drain P2P", "[N/A]"])
def test_recovery_action_that_leaves_the_gpu_usable_is_no_reason(action: str) -> None:
    assert parse(row(gpu_recovery_action=action))[0].unusable is None


def test_indices_keep_their_gaps_and_are_sorted() -> None:
    assert [device.index for device in parse(row(index="11"), row(index="2"), row(index="0"))] == [0, 2, 11]


def test_name_may_hold_a_comma() -> None:
    assert parse(row(name="Board, second edition"))[0].name == "Board, second edition"


def test_domain_of_old_drivers_is_widened() -> None:
    assert parse(row(pci__bus_id="0000:0a:00.0"))[0].pci_bus_id == "00000000:0A:00.0"


def test_blank_lines_and_warnings_are_no_gpus() -> None:
    assert len(parse("", row(), "   ", "WARNING: infoROM is corrupted at gpu 0008:00:00.0")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "Loading module nvidia-driver",
        ", ".join(FIELDS),
        row(index="-1"),
        row(index="²"),
        row(index="٣"),
        row(index="9" * 100),
        row(index="GPU-1"),
        "0",
        "Failed to initialize NVML: Unknown Error",
    ],
)
def test_line_that_is_no_gpu_is_an_error_that_quotes_it(line: str) -> None:
    with pytest.raises(DiscoveryError) as error:
        parse(row(), line)
    assert repr(line) in message(error)


@pytest.mark.parametrize(
    ("cells", "what"), [({"index": "0", "uuid": "GPU-2"}, "index 0"), ({"index": "1", "uuid": "GPU-1"}, "UUID GPU-1")]
)
def test_two_gpus_of_one_identity_are_an_error(cells: dict[str, str], what: str) -> None:
    with pytest.raises(DiscoveryError, match=f"nvidia-smi: two GPUs have the {what}"):
        parse(row(index="0", uuid="GPU-1"), row(**cells))


def test_gpus_without_a_uuid_are_told_apart_by_index() -> None:
    assert len(parse(row(index="0", uuid="[N/A]"), row(index="1", uuid="[N/A]"))) == 2


@pytest.mark.parametrize(
    ("line", "index"),
    [
        ("Unable to determine the device handle for GPU1: 0000:0F:00.0: GPU is lost", 1),
        ("Unable to determine the device handle for GPU 0000:0F:00.0: GPU is lost", 1),
        ("Unable to determine the device handle for GPU0000:0F:00.0: GPU is lost", 1),
        ("Unable to determine the device handle for GPU7: 0000:0F:00.0: GPU is lost", 7),
    ],
)
def test_lost_gpu_is_unusable_and_has_the_index_that_is_missing(line: str, index: int) -> None:
    devices = parse(line, row(index="0"), row(index="2"), row(index="3"))
    assert [device.index for device in devices] == sorted({0, 2, 3, index})
    assert [device for device in devices if device.unusable] == [
        Device(index, pci_bus_id="00000000:0F:00.0", unusable="GPU is lost")
    ]


def test_lost_gpus_fill_the_gaps_in_bus_order() -> None:
    lost = "Unable to determine the device handle for GPU {}: GPU is lost"
    devices = parse(lost.format("0000:47:00.0"), lost.format("0000:0F:00.0"), row(index="0"), row(index="3"))
    assert [(device.index, device.pci_bus_id) for device in devices[1:3]] == [
        (1, "00000000:0F:00.0"),
        (2, "00000000:47:00.0"),
    ]


def test_lost_gpu_without_an_index_never_has_that_of_another() -> None:
    lost = "Unable to determine the device handle for GPU{}: GPU is lost"
    devices = parse(lost.format(" 0000:07:00.0"), lost.format("0: 0000:0F:00.0"), row(index="2"))
    assert [(device.index, device.pci_bus_id) for device in devices[:2]] == [
        (0, "00000000:0F:00.0"),
        (1, "00000000:07:00.0"),
    ]


def test_row_without_an_index_is_a_lost_gpu() -> None:
    devices = parse(row(index="0"), row(index="[Unknown Error]", pci__bus_id="00000000:0F:00.0"), row(index="2"))
    assert devices[1] == Device(1, pci_bus_id="00000000:0F:00.0", unusable="Unknown Error")


@pytest.mark.parametrize(
    "unknown",
    [
        *([field] for field in FIELDS if field != "index"),
        ["gpu_recovery_action", "mig.mode.current"],
        [field for field in FIELDS if field != "index"],
    ],
)
def test_driver_that_does_not_know_a_field_is_asked_again_without_it(
    stand_in: StandIn, tmp_path: Path, unknown: list[str]
) -> None:
    fields = tuple(field for field in FIELDS if field not in unknown)
    cells = dict(zip(FIELDS, row().split(", "), strict=True))
    [device] = stand_in(table(tmp_path, fields, ", ".join(cells[field] for field in fields))).devices(soon())
    assert (device.index, device.unusable) == (0, None)
    known = {"name": device.name, "mig.mode.current": device.mig_mode, "uuid": device.uuid}
    assert known == {field: None if field in unknown else cells[field] for field in known}


@pytest.mark.parametrize(
    ("version", "left_out"),
    [
        ("595.71.05\n", set()),
        ("570.86.10\n", set()),
        ("565.57.01\n", {"gpu_recovery_action"}),
        ("535.161.08\n", {"gpu_recovery_action"}),
        ("418.56\n", set(SINCE)),
        ("unreadable", {"gpu_recovery_action"}),
        (None, {"gpu_recovery_action"}),
    ],
)
def test_driver_is_asked_at_once_for_what_it_knows(tmp_path: Path, version: str | None, left_out: set[str]) -> None:
    program, file = tmp_path / "nvidia-smi", tmp_path / "version"
    program.write_text('#!/bin/sh\necho "asked: $1"\nexit 1\n')
    program.chmod(0o755)
    if version is not None:
        file.write_text(version)
    with pytest.raises(DiscoveryError) as error:
        NvidiaSmi(str(program), str(file)).devices(soon())
    asked = message(error).partition("--query-gpu=")[2].partition(":")[0].split(",")
    assert set(FIELDS) - set(asked) == left_out


def test_driver_that_does_not_know_the_index_fails_with_what_it_said(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError) as error:
        stand_in(table(tmp_path, ("uuid", "pci.bus_id"), "GPU-1, 00000000:07:00.0")).devices(soon())
    assert 'Field "index" is not a valid field to query.' in message(error)


def test_unified_memory_is_unknown_and_the_gpu_healthy(stand_in: StandIn, tmp_path: Path) -> None:
    gb10 = "None, [N/A], 0, GPU-1, 0000000F:01:00.0, [N/A], [N/A], Default, 0, 41, NVIDIA GB10"
    [device] = stand_in(table(tmp_path, FIELDS, gb10)).devices(soon())
    assert (device.memory_total, device.memory_used, device.unusable) == (None, None, None)
    assert device.pci_bus_id == "0000000F:01:00.0"
