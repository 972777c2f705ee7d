import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvidia_smi import mig_listing
from externalresource_gpu.backends.nvidia_smi.mig_listing import Detail
from externalresource_gpu.device import Device

GPU = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0)\n"
ENABLED = Device(0, "GPU-0", "NVIDIA A100-SXM4-40GB", mig_mode="Enabled")
NO_XML = DiscoveryError("no XML")


def instance(index: object, gpu_instance: object, compute_instance: object, total: str, used: str) -> str:
    return (
        f"<mig_device><index>{index}</index><gpu_instance_id>{gpu_instance}</gpu_instance_id>"
        f"<compute_instance_id>{compute_instance}</compute_instance_id>"
        f"<fb_memory_usage><total>{total}</total><reserved>0 MiB</reserved><used>{used}</used></fb_memory_usage>"
        "<bar1_memory_usage><total>9 MiB</total><used>9 MiB</used></bar1_memory_usage></mig_device>"
    )


def xml(*instances: str, uuid: str = "GPU-0") -> str:
    return f"<nvidia_smi_log>{gpu(*instances, uuid=uuid)}</nvidia_smi_log>"


def gpu(*instances: str, uuid: str) -> str:
    return (
        f"<gpu id='00000000:01:00.0'><mig_devices>{''.join(instances)}</mig_devices><uuid>{uuid}</uuid>"
        "<fb_memory_usage><total>40960 MiB</total></fb_memory_usage></gpu>"
    )


def divided(listed: str, detailed: str | DiscoveryError = NO_XML) -> Device:
    [found] = mig_listing.attach([ENABLED], listed, detailed)
    return found


@pytest.mark.parametrize(
    ("line", "index", "profile", "uuid"),
    [
        ("  MIG 3g.40gb     Device  0: (UUID: MIG-7089d0f3)", 0, "3g.40gb", "MIG-7089d0f3"),
        ("  MIG 1c.3g.71gb  Device  12: (UUID: MIG-a)", 12, "1c.3g.71gb", "MIG-a"),
        ("  MIG 1g.10gb+me  Device  1: (UUID: MIG-a)", 1, "1g.10gb+me", "MIG-a"),
        ("  MIG 1g.5gb Device 0: (UUID: MIG-GPU-0/7/0)", 0, "1g.5gb", "MIG-GPU-0/7/0"),
        ("  MIG Device 0: (UUID: MIG-GPU-0/1/0)", 0, None, "MIG-GPU-0/1/0"),
        ("\tMIG Device  3: (UUID: MIG-GPU-0/1/0)\r", 3, None, "MIG-GPU-0/1/0"),
    ],
)
def test_line_of_each_format_is_an_instance(line: str, index: int, profile: str | None, uuid: str) -> None:
    [found] = divided(f"{GPU}{line}\n").instances
    assert (found.mig_index, found.mig_profile, found.uuid) == (index, profile, uuid)
    assert found.name == f"NVIDIA A100-SXM4-40GB MIG{' ' + profile if profile else ''}"
    assert found.unusable is None


def test_instances_keep_the_order_and_the_holes_of_the_list() -> None:
    listed = GPU + "".join(f"  MIG 1g.5gb Device {index}: (UUID: MIG-{index})\n" for index in (6, 0, 3))
    detailed = xml(*(instance(index, 7 + index, 0, f"{index} MiB", "0 MiB") for index in (0, 3, 5, 6)))
    assert [
        (found.mig_index, found.gpu_instance, found.memory_total) for found in divided(listed, detailed).instances
    ] == [
        (6, 13, 6),
        (0, 7, 0),
        (3, 10, 3),
    ]


def test_compute_instances_of_one_slice_are_told_apart_and_share_its_memory() -> None:
    listed = GPU + "".join(f"  MIG 1c.3g.20gb  Device  {index}: (UUID: MIG-{index})\n" for index in range(3))
    detailed = xml(*(instance(index, 2, index, "20096 MiB", "17 MiB") for index in range(3)))
    found = divided(listed, detailed).instances
    assert [(of.uuid, of.gpu_instance, of.compute_instance) for of in found] == [
        ("MIG-0", 2, 0),
        ("MIG-1", 2, 1),
        ("MIG-2", 2, 2),
    ]
    assert {(of.memory_total, of.memory_used) for of in found} == {(20096, 17)}


def test_gpus_of_one_name_have_their_own_instances() -> None:
    gpus = [Device(index, f"GPU-{index}", "Board", mig_mode="Enabled") for index in (0, 1)]
    listed = "".join(f"GPU {n}: Board (UUID: GPU-{n})\n  MIG 1g.5gb Device 0: (UUID: MIG-{n})\n" for n in (1, 0))
    detailed = "".join(gpu(instance(0, 7 + n, 0, f"{n} MiB", "0 MiB"), uuid=f"GPU-{n}") for n in (0, 1))
    found = mig_listing.attach(gpus, listed, f"<nvidia_smi_log>{detailed}</nvidia_smi_log>")
    assert [[(of.uuid, of.parent_uuid, of.memory_total, of.gpu_instance) for of in gpu.instances] for gpu in found] == [
        [("MIG-0", "GPU-0", 0, 7)],
        [("MIG-1", "GPU-1", 1, 8)],
    ]


def test_instances_below_a_line_that_is_no_gpu_belong_to_none() -> None:
    listed = f"{GPU}GPU 1: what is this\n  MIG 1g.5gb Device 0: (UUID: MIG-0)\n"
    assert divided(listed).instances == ()


def test_ids_of_an_old_uuid_need_no_xml() -> None:
    [found] = divided(f"{GPU}  MIG 1g.5gb Device 0: (UUID: MIG-GPU-0/13/2)\n").instances
    assert (found.gpu_instance, found.compute_instance, found.memory_total) == (13, 2, None)


@pytest.mark.parametrize(("gpu_instance", "total"), [(13, 4864), (7, None)])
def test_memory_of_another_instance_than_the_uuid_says_is_not_taken(gpu_instance: int, total: int | None) -> None:
    listed = f"{GPU}  MIG 1g.5gb Device 0: (UUID: MIG-GPU-0/13/0)\n"
    [found] = divided(listed, xml(instance(0, gpu_instance, 0, "4864 MiB", "3 MiB"))).instances
    assert (found.gpu_instance, found.compute_instance, found.memory_total) == (13, 0, total)


def test_instance_without_a_uuid_is_unusable_and_no_other() -> None:
    lines = "  MIG 1g.5gb Device 0: (UUID: [Unknown Error])\n  MIG 1g.5gb Device 1: (UUID: MIG-1)\n"
    broken, healthy = divided(GPU + lines).instances
    assert (broken.uuid, broken.unusable) == (None, "it has no UUID, but '[Unknown Error]'")
    assert (healthy.uuid, healthy.unusable) == ("MIG-1", None)


def test_gpu_without_a_known_uuid_is_found_by_its_index() -> None:
    listed = f"{GPU}  MIG 1g.5gb Device 0: (UUID: MIG-0)\n"
    [found] = mig_listing.attach([Device(0, mig_mode="Enabled")], listed, xml(instance(0, 7, 0, "1 MiB", "1 MiB")))
    [of] = found.instances
    assert (of.uuid, of.name, of.parent_uuid, of.gpu_instance) == ("MIG-0", None, None, None)


@pytest.mark.parametrize("mode", ["Disabled", None])
def test_gpu_that_is_not_in_mig_mode_is_left_alone(mode: str | None) -> None:
    device = Device(0, "GPU-0", mig_mode=mode)
    assert mig_listing.attach([device], "", "") == [device]


@pytest.mark.parametrize(
    "cell", ["N/A", "", "12", "12 KiB", "Not Supported", "1 MiB free", "-1 MiB", "9" * 5000 + " MiB"]
)
def test_memory_that_is_no_number_of_mib_is_unknown(cell: str) -> None:
    assert mig_listing.parse_xml(xml(instance(0, 7, 1, cell, cell))) == {"GPU-0": {0: Detail(7, 1)}}


def test_id_that_is_no_number_is_unknown() -> None:
    assert mig_listing.parse_xml(xml(instance(0, "N/A", "", "1 MiB", "0 MiB"))) == {
        "GPU-0": {0: Detail(total=1, used=0)}
    }


def test_instance_without_a_number_is_left_out() -> None:
    found = mig_listing.parse_xml(xml(instance("N/A", 7, 0, "1 MiB", "0 MiB"), instance(2, 8, 0, "1 MiB", "0 MiB")))
    assert found == {"GPU-0": {2: Detail(8, 0, 1, 0)}}


def test_xml_that_is_cut_off_tells_of_the_gpus_before() -> None:
    whole = gpu(instance(0, 7, 0, "1 MiB", "0 MiB"), uuid="GPU-0")
    cut = f"<nvidia_smi_log>{whole}{gpu(uuid='GPU-1')}"[:-20]
    assert mig_listing.parse_xml(cut) == {"GPU-0": {0: Detail(7, 0, 1, 0)}}


def test_xml_that_declares_entities_is_not_read() -> None:
    doctype = "<!DOCTYPE nvidia_smi_log [<!ENTITY a '7'>]>"
    assert mig_listing.parse_xml(doctype + xml(instance(0, "&a;", 0, "1 MiB", "0 MiB"))) == {}


def test_doctype_that_names_a_file_is_not_followed() -> None:
    found = mig_listing.parse_xml(f'<?xml version="1.0" ?><!DOCTYPE nvidia_smi_log SYSTEM "/nowhere.dtd">{xml()}')
    assert found == {"GPU-0": {}}


@pytest.mark.parametrize(
    "text", ["", "\x00", "<", "<a/>", "\udc80<gpu/>", "<a>" * 50_000, "<gpu/>", "No devices were found"]
)
def test_text_that_is_no_such_xml_tells_nothing(text: str) -> None:
    assert mig_listing.parse_xml(text) == {}
