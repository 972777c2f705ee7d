from pathlib import Path

import pytest

from externalresource_gpu.backends import pci
from externalresource_gpu.device import Device


def test_properties_are_what_is_known_under_the_names_of_nvidia_smi() -> None:
    device = Device(
        index=0,
        uuid="GPU-1",
        name="NVIDIA H100 80GB HBM3",
        memory_total=81559,
        pci_bus_id="00000000:1B:00.0",
        compute_mode="Default",
        mig_mode="Disabled",
        numa_node=0,
    )
    assert device.properties() == {
        "index": "0",
        "uuid": "GPU-1",
        "name": "NVIDIA H100 80GB HBM3",
        "memory.total": "81559",
        "pci.bus_id": "00000000:1B:00.0",
        "compute_mode": "Default",
        "mig.mode.current": "Disabled",
        "numa_node": "0",
    }


def test_unknown_property_is_absent() -> None:
    assert Device(3).properties() == {"index": "3"}


def test_token_of_a_whole_gpu_is_its_index() -> None:
    device = Device(11, uuid="GPU-1")
    assert (device.token, device.parent_token, device.parent_uuid) == ("11", None, None)


def test_unusable_device_tells_the_reason() -> None:
    assert Device(0, unusable="GPU is lost").properties() == {"index": "0", "unusable": "GPU is lost"}


@pytest.mark.parametrize(
    ("bus_id", "canonical"),
    [
        ("00000000:07:00.0", "00000000:07:00.0"),
        ("0000:0a:00.0", "00000000:0A:00.0"),
        ("00008ED0:00:00.0", "00008ED0:00:00.0"),
        ("07:00.0", "07:00.0"),
        ("?", "?"),
    ],
)
def test_bus_id_has_a_domain_of_eight_digits(bus_id: str, canonical: str) -> None:
    assert pci.canonical(bus_id) == canonical


@pytest.mark.parametrize(
    ("bus_id", "folder", "content", "node"),
    [
        ("00000000:0A:00.0", "0000:0a:00.0", "3\n", 3),
        ("00008ED0:00:00.0", "8ed0:00:00.0", "0\n", 0),
        ("00010001:00:00.0", "10001:00:00.0", "1\n", 1),
        ("00000000:0A:00.0", "0000:0a:00.0", "-1\n", None),
        ("00000000:0A:00.0", "0000:0a:00.0", "many\n", None),
        ("00000000:0A:00.0", "0000:0b:00.0", "3\n", None),
        ("?", "0000:0a:00.0", "3\n", None),
    ],
)
def test_numa_node_is_what_linux_says(tmp_path: Path, bus_id: str, folder: str, content: str, node: int | None) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "numa_node").write_text(content)
    assert pci.numa_node(bus_id, str(tmp_path)) == node


def test_gpus_that_the_driver_is_bound_to_are_known_by_bus_id(tmp_path: Path) -> None:
    for bus_id in ("0000:0a:00.0", "0000:07:00.0"):
        (tmp_path / bus_id).mkdir()
    assert pci.bound(str(tmp_path)) == ["0000:07:00.0", "0000:0a:00.0"]
    assert pci.bound(str(tmp_path / "none")) == []
