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
