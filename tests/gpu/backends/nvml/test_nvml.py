"""NVML through the real pynvml, on a library that stands in."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvml import answer
from externalresource_gpu.backends.nvml.backend import Nvml
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device, Process
from tests.support.backends import message, soon
from tests.support.nvml_stub import Stub, compiled, device


def test_healthy_gpus_are_known_by_all_that_nvml_tells(stub: Stub) -> None:
    assert stub().devices(soon()) == [device(0), device(1)]


@pytest.mark.parametrize(
    ("mode", "broken"),
    [
        ("lost:1", Device(1, unusable="GPU is lost")),
        ("forbidden:1", Device(1, unusable="Insufficient Permissions")),
        ("reset:1", device(1, unusable="GPU requires reset")),
        ("cold:1", device(1, unusable="GPU requires reset")),
        ("recovery:1", device(1, unusable="recovery action is Reset")),
        ("drain:1", device(1)),
        ("driver of 2023:1", device(1)),
        ("no uuid:1", device(1, uuid=None, unusable="Unknown Error")),
        ("no text:1", device(1, name=None)),
        ("unified:1", device(1, memory_total=None, memory_used=None, mig_mode=None)),
        ("container:1", device(1, memory_total=None, memory_used=None, unusable="Insufficient Permissions")),
        ("no memory:1", device(1, memory_total=None, memory_used=None, unusable="Unknown Error")),
    ],
)
def test_state_of_one_gpu_is_its_own(stub: Stub, mode: str, broken: Device) -> None:
    assert stub(mode, count=3).devices(soon()) == [device(0), broken, device(2)]


@pytest.mark.parametrize(
    ("mode", "differing"),
    [
        ("unified", {"memory_total": None, "memory_used": None, "mig_mode": None}),
        ("exclusive", {"compute_mode": "Exclusive_Process"}),
        ("prohibited", {"compute_mode": "Prohibited", "unusable": "compute mode is Prohibited"}),
        ("crash late", {}),
        ("chatty", {}),
    ],
)
def test_gpu_is_described_as_nvidia_smi_does(stub: Stub, mode: str, differing: dict[str, Any]) -> None:
    assert stub(mode, count=1).devices(soon()) == [device(0, **differing)]


def test_driver_before_510_counts_what_it_reserves_as_used(stub: Stub, tmp_path: Path) -> None:
    assert stub(count=1, library=compiled(tmp_path, "-DOLD")).devices(soon()) == [device(0, memory_used=801)]


def test_function_that_an_old_driver_lacks_leaves_its_value_unknown(stub: Stub, tmp_path: Path) -> None:
    library = compiled(tmp_path, "-DOLD", "-DOLDEST")
    expected = [device(0, mig_mode=None, memory_used=801)]
    assert stub("busy", count=1, library=library, processes=True).devices(soon()) == expected


def test_lost_gpu_has_the_bus_id_that_the_driver_still_lists_for_it(stub: Stub) -> None:
    for bus in ("f002:0a:00.0", "f001:0a:00.0", "f000:0a:00.0"):
        (stub.bound / bus).mkdir(parents=True)
    lost = Device(1, pci_bus_id="0000F001:0A:00.0", unusable="GPU is lost")
    assert stub("lost:1", count=3).devices(soon()) == [device(0), lost, device(2)]


def test_driver_lists_gpus_by_text_and_nvml_by_number() -> None:
    first, second = "00009000:01:00.0", "00010000:01:00.0"
    assert answer.placed([Device(0, pci_bus_id=first), Device(1)], ["10000:01:00.0", "9000:01:00.0"]) == [
        Device(0, pci_bus_id=first),
        Device(1, pci_bus_id=second),
    ]


def test_two_gpus_of_one_uuid_are_an_error_as_claims_go_by_it(stub: Stub) -> None:
    with pytest.raises(DiscoveryError, match="NVML: two GPUs have the UUID GPU-00000000-0000-0000-0000-000000000000"):
        stub("twin:1").devices(soon())


@pytest.mark.parametrize("buses", [["f000:0a:00.0", "f002:0a:00.0"], ["f000:0a:00.0", "f001:0a:00.0", "f009:0a:00.0"]])
def test_lost_gpu_has_no_bus_id_where_the_driver_lists_others(stub: Stub, buses: list[str]) -> None:
    for bus in buses:
        (stub.bound / bus).mkdir(parents=True)
    assert stub("lost:1", count=3).devices(soon())[1] == Device(1, unusable="GPU is lost")


@pytest.mark.parametrize(
    ("mode", "what", "todo"),
    [
        ("permission", "nvmlInit: Insufficient Permissions (4)", "SELinux"),
        ("blocked", "nvmlInit: GPU access blocked by the operating system (17)", "wsl --shutdown"),
        ("driver", "nvmlInit: Driver Not Loaded (9)", "modprobe nvidia"),
        ("mismatch", "nvmlInit: Driver/library version mismatch (18)", "reload"),
        ("unknown", "nvmlInit: Unknown Error (999)", "recreated"),
        ("no count", "nvmlDeviceGetCount: Unknown Error (999)", "dmesg"),
        ("crash", "NVML was ended by SIGSEGV", "reinstall"),
    ],
)
def test_failure_tells_the_call_the_reason_and_a_remedy(stub: Stub, mode: str, what: str, todo: str) -> None:
    with pytest.raises(DiscoveryError) as error:
        stub(mode).devices(soon())
    assert what in message(error)
    assert todo in message(error)


def test_container_without_devices_is_told_so_and_not_to_load_a_driver(stub: Stub) -> None:
    (stub.bound / "0000:01:00.0").mkdir(parents=True)
    with pytest.raises(DiscoveryError) as error:
        stub("driver").devices(soon())
    assert "nvidia.com/gpu" in message(error)
    assert "modprobe nvidia" not in message(error)


def test_each_failure_has_a_remedy_of_its_own(stub: Stub) -> None:
    remedies = set()
    words = ["permission", "driver", "mismatch", "blocked", "unknown", "crash"]
    for word in words:
        with pytest.raises(DiscoveryError) as error:
            stub(word).devices(soon())
        remedies.add(message(error).partition("): ")[2] or message(error))
    (stub.bound / "0000:01:00.0").mkdir(parents=True)
    for word in ("driver", "ok"):
        with pytest.raises(DiscoveryError) as error:
            stub(word, count=0).devices(soon())
        remedies.add(message(error).partition("): ")[2])
    assert len(remedies) == len(words) + 2


@pytest.mark.parametrize("mode", ["hang", "stuck:1"])
def test_hang_inside_the_library_ends_at_the_deadline(stub: Stub, mode: str) -> None:
    with pytest.raises(DiscoveryError, match="NVML did not answer within"):
        stub(mode).devices(soon(1))


def test_slow_library_is_served(stub: Stub) -> None:
    assert stub("slow").devices(soon()) == [device(0), device(1)]


def test_missing_library_is_an_error(stub: Stub, tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has NVML")
    with pytest.raises(DiscoveryError, match=r"NVML Shared Library Not Found \(12\)"):
        stub(library=tmp_path).devices(soon())


@pytest.mark.parametrize(("mode", "count"), [("nogpu", 0), ("ok", 0)])
def test_host_without_gpus_has_none(stub: Stub, mode: str, count: int) -> None:
    assert stub(mode, count=count).devices(soon()) == []


def test_gpu_that_only_the_driver_knows_is_not_no_gpu(stub: Stub) -> None:
    (stub.bound / "0000:01:00.0").mkdir(parents=True)
    with pytest.raises(DiscoveryError, match="NVML finds no GPU, but the driver is bound to 1"):
        stub(count=0).devices(soon())


def test_python_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(DiscoveryError, match="NVML: '/no/such/python' cannot be run: No such file or directory"):
        Nvml("/no/such/python").devices(soon())


# MIG


def instance(gpu: int, number: int, gi: int, ci: int, profile: str, memory: tuple[int, int]) -> Device:
    return Device(
        index=gpu,
        uuid=f"MIG-{number:08}-0000-0000-0000-{gpu:012}",
        name=f"NVIDIA A100-SXM4-40GB MIG {profile}",
        memory_total=memory[0],
        memory_used=memory[1],
        pci_bus_id=f"0000F00{gpu}:0A:00.0",
        mig_profile=profile,
        mig_index=number,
        gpu_instance=gi,
        compute_instance=ci,
        parent_uuid=f"GPU-00000000-0000-0000-0000-{gpu:012}",
    )


def instances(gpu: int) -> tuple[Device, ...]:
    return (
        instance(gpu, 0, 1, 0, "1c.3g.20gb", (19968, 26)),
        instance(gpu, 1, 1, 1, "1c.3g.20gb", (19968, 26)),
        instance(gpu, 3, 9, 0, "1g.5gb", (4864, 9)),
        instance(gpu, 5, 3, 0, "2g.10gb", (9856, 0)),
    )


def mig(gpu: int, **differing: Any) -> Device:
    return device(gpu, **{"mig_mode": "Enabled", "instances": instances(gpu)} | differing)


def test_mixed_machine_has_instances_where_mig_is_on(stub: Stub) -> None:
    assert stub("mig:1", count=3).devices(soon()) == [device(0), mig(1), device(2)]


def test_gpu_without_instances_has_none(stub: Stub) -> None:
    expected = [mig(0, instances=(), compute_mode=None)]  # which only an instance could tell
    assert stub("mig", "no instances", count=1).devices(soon()) == expected


@pytest.mark.parametrize("words", [("no profile",), ("no profile", "no attributes")])
def test_profile_that_no_name_tells_is_made_of_the_attributes(stub: Stub, words: tuple[str, ...]) -> None:
    [gpu] = stub("mig", *words, count=1).devices(soon())
    if len(words) == 1:
        assert gpu == mig(0)
    else:
        assert {(found.name, found.mig_profile) for found in gpu.instances} == {("NVIDIA A100-SXM4-40GB MIG", None)}


def test_bad_instance_is_listed_with_the_reason_and_hides_no_other(stub: Stub) -> None:
    [gpu] = stub("mig", "bad slot", count=1).devices(soon())
    good = instances(0)
    assert (gpu.unusable, gpu.instances[0], gpu.instances[1], gpu.instances[3]) == (None, good[0], good[1], good[3])
    assert (gpu.instances[2].place, gpu.instances[2].unusable) == ("0:3", "Unknown Error")


@pytest.mark.parametrize(
    ("word", "reason"), [("instance destroyed", "Invalid Argument"), ("no instance uuid", "its UUID is unknown")]
)
def test_instance_that_has_no_uuid_is_not_handed_out(stub: Stub, word: str, reason: str) -> None:
    [gpu] = stub("mig", word, count=1).devices(soon())
    assert [(found.mig_index, found.unusable) for found in gpu.instances] == [
        (0, None),
        (1, None),
        (3, reason),
        (5, None),
    ]


@pytest.mark.parametrize("word", ["no slots", "bad slots"])
def test_gpu_whose_instances_cannot_be_listed_is_unusable(stub: Stub, word: str) -> None:
    reason = "its MIG instances cannot be listed: Unknown Error"
    expected = mig(0, instances=(), unusable=reason, compute_mode=None)
    assert stub("mig:0", f"{word}:0").devices(soon()) == [expected, device(1)]


def test_container_that_may_use_instances_may_not_know_their_gpus_memory(stub: Stub) -> None:
    assert stub("mig", "container", count=1).devices(soon()) == [mig(0, memory_total=None, memory_used=None)]


def test_gpu_with_instances_may_be_broken_itself(stub: Stub) -> None:
    assert stub("mig", "reset", count=1).devices(soon()) == [mig(0, unusable="GPU requires reset")]


# Processes


def test_processes_are_known_only_if_asked_for(stub: Stub) -> None:
    assert [gpu.processes for gpu in stub("busy:1").devices(soon())] == [None, None]
    found = [gpu.processes for gpu in stub("busy:1", processes=True).devices(soon())]
    assert found == [(), (Process(4711, 2566), Process(4712, None))]


@pytest.mark.parametrize("word", ["no processes", "private"])
def test_processes_that_are_not_told_are_unknown_and_no_fault_of_the_gpu(stub: Stub, word: str) -> None:
    assert stub("busy", f"{word}:0", processes=True).devices(soon())[0] == device(0)


def test_processes_are_read_from_drivers_of_each_age(stub: Stub, tmp_path: Path) -> None:
    library = compiled(tmp_path, "-DOLD")
    [gpu] = stub("busy", count=1, library=library, driver="470.82.01", processes=True).devices(soon())
    assert gpu.processes == (Process(4711, 2566), Process(4712, None))


@pytest.mark.parametrize(("word", "processes"), [("busy", None), ("idle", ())])
def test_processes_of_the_driver_that_pynvml_misreads_are_unknown(
    stub: Stub, word: str, processes: tuple[Process, ...] | None
) -> None:
    [gpu] = stub(word, count=1, driver="535.54.03", processes=True).devices(soon())
    assert gpu.processes == processes


def test_processes_are_known_of_a_driver_that_hides_its_version(stub: Stub) -> None:
    [gpu] = stub("busy", "no version", count=1, processes=True).devices(soon())
    assert gpu.processes


# Links


def linked(backend: Nvml) -> Links:
    backend.devices(soon())
    return backend.links(soon())


def test_links_are_known_only_if_asked_for_and_after_the_devices(stub: Stub) -> None:
    assert linked(stub()) == {}
    assert stub(topology=True).links(soon()) == {}


def test_links_by_pcie_have_the_words_of_nvidia_smi(stub: Stub) -> None:
    found = linked(stub(count=7, topology=True))
    assert [found[0, other] for other in range(1, 7)] == ["PIX", "PIX", "PXB", "PHB", "NODE", "SYS"]
    assert len(found) == 21


def test_links_by_nvlink_are_counted_and_win(stub: Stub) -> None:
    found = linked(stub("nvlink", count=4, topology=True))
    assert found == {
        (0, 1): "NV2",
        (2, 3): "NV2",
        (0, 2): "NV1",
        (1, 3): "NV1",
        (0, 3): "PXB",
        (1, 2): "PIX",
    }


def test_links_by_switch_are_as_many_as_both_gpus_have(stub: Stub) -> None:
    found = linked(stub("nvswitch", "few links:1", count=3, topology=True))
    assert found == {(0, 1): "NV10", (0, 2): "NV12", (1, 2): "NV10"}


def test_links_to_a_processor_connect_no_gpus(stub: Stub) -> None:
    assert linked(stub("power", topology=True)) == {(0, 1): "PIX"}


def test_links_of_a_lost_or_silent_gpu_are_unknown(stub: Stub) -> None:
    found = linked(stub("lost:1", "no topology:3", count=4, topology=True))
    assert found == {(0, 2): "PIX"}


def test_each_look_is_a_new_one(stub: Stub) -> None:
    backend = stub("lost:1")
    backend.start()
    assert backend.devices(soon())[1].unusable
    stub.behave()
    assert backend.devices(soon()) == [device(0), device(1)]


def test_links_are_those_of_the_last_answer(stub: Stub) -> None:
    backend = stub("nvlink", topology=True)
    assert linked(backend) == {(0, 1): "NV2"}
    stub.behave("unknown")
    with pytest.raises(DiscoveryError):
        backend.devices(soon())
    assert backend.links(soon()) == {}
