"""What a number and the name of a machine stand for."""

import importlib.resources
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from externalresource.errors import ConfigurationError
from externalresource_gpu.backends import NAMES, create
from externalresource_gpu.backends.simulated import machine_file, made_up
from externalresource_gpu.backends.simulated.backend import Simulated
from externalresource_gpu.device import Device, Process
from tests.support.backends import MIG_UUID, UUID, links, simulated

ROOT = Path(__file__).parents[4]
RECORDED = ROOT.parent / "shared" / "data" / "nvidia-smi"
BUS_ID = re.compile(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0")


def gpus(machine: str) -> tuple[Device, ...]:
    """Return the GPUs of a machine, whatever its driver does."""
    return machine_file.read(made_up.path(machine), machine).devices


@pytest.mark.parametrize("name", NAMES)
def test_backend_is_created_by_its_name(name: str) -> None:
    assert create(name, "1" if name == "simulated" else None).name == name


@pytest.mark.parametrize("name", NAMES)
def test_simulation_implies_its_backend(name: str) -> None:
    assert create(name, "2").name == "simulated"


def test_unknown_backend_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match=r"one of auto, nvml, .* not 'nvidia_smi', did you mean 'nvidia-smi'"):
        create("nvidia_smi")


# A number


@pytest.mark.parametrize("number", [0, 1, 8, made_up.MOST])
def test_number_is_so_many_gpus(number: int) -> None:
    devices = simulated(str(number))
    assert [device.index for device in devices] == list(range(number))
    assert len({device.pci_bus_id for device in devices}) == number


def test_gpus_of_a_number_are_idle() -> None:
    assert {(device.memory_used, device.processes) for device in Simulated("2", processes=True).devices(0)} == {(0, ())}


def test_half_of_a_number_is_on_each_numa_node() -> None:
    assert [device.numa_node for device in simulated("4")] == [0, 0, 1, 1]


@pytest.mark.parametrize("what", ["-1", "+8", "8.0", "1_0", "²", "", " ", str(made_up.MOST + 1), "8" * 5000, "two"])
def test_what_is_no_number_is_an_error_that_names_what_is_allowed(what: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        create("simulated", what)
    assert f"a number of GPUs from 0 to {made_up.MOST}, a machine (a100-mig, " in str(error.value)
    assert f"not {what!r}" in str(error.value)


def test_simulation_of_nothing_in_particular_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="--simulate must be"):
        create("simulated")


# A machine


@pytest.mark.parametrize(
    ("machine", "boards"),
    [
        ("dgx-1", {"Tesla V100-SXM2-16GB": 8}),
        ("dgx-a100", {"NVIDIA A100-SXM4-40GB": 8}),
        ("dgx-h100", {"NVIDIA H100 80GB HBM3": 8}),
        ("gb10", {"NVIDIA GB10": 1}),
        ("gpus-16", {"Tesla V100-SXM3-32GB": 16}),
        ("mixed", {"NVIDIA A10": 2, "NVIDIA A100-PCIE-40GB": 2}),
        ("one-lost", {"NVIDIA A100-SXM4-40GB": 7, None: 1}),
        ("t4", {"Tesla T4": 1}),
    ],
)
def test_machine_has_its_boards(machine: str, boards: dict[str | None, int]) -> None:
    devices = simulated(machine)
    names = [device.name for device in devices]
    assert {name: names.count(name) for name in names} == boards
    assert [device.index for device in devices] == list(range(len(devices)))


@pytest.mark.parametrize("machine", made_up.names())
def test_machine_is_plausible(machine: str) -> None:
    devices = gpus(machine)
    buses = [device.pci_bus_id or "" for device in devices]
    assert all(BUS_ID.fullmatch(bus) for bus in buses)
    assert buses == sorted(set(buses))
    assert all(UUID.fullmatch(device.uuid or "") for device in devices if device.unusable != "GPU is lost")
    instances = [instance for device in devices for instance in device.instances]
    assert all(MIG_UUID.fullmatch(instance.uuid or "") for instance in instances)
    assert all((instance.memory_used or 0) < (instance.memory_total or 1) for instance in instances)


def test_no_uuid_is_on_two_simulated_machines() -> None:
    devices = [*simulated("64"), *(gpu for machine in made_up.names() for gpu in gpus(machine))]
    uuids = [known.uuid for device in devices for known in (device, *device.instances) if known.uuid]
    assert len(uuids) == len({uuid[4:] for uuid in uuids})
    assert all(uuid[4:8] == "5100" for uuid in uuids)


def test_uuids_are_the_same_in_each_process() -> None:
    code = (
        "from externalresource_gpu.backends import create; print(*[d.uuid for d in create('auto', 'dgx-1').devices(0)])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-Pc", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert answers == {" ".join(device.uuid or "" for device in simulated("dgx-1")) + "\n"}


def test_one_lost_has_one_that_tells_nothing_of_itself_as_a_real_one() -> None:
    assert [device for device in simulated("one-lost") if device.unusable] == [
        Device(3, pci_bus_id="00000000:4E:00.0", unusable="GPU is lost")
    ]


def test_unified_memory_is_unknown() -> None:
    assert [device.memory_total for device in simulated("gb10")] == [None]


def test_unknown_machine_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match="not 'dgx-h10', did you mean 'dgx-h100'"):
        create("simulated", "dgx-h10")


def test_caller_cannot_change_the_next_answer() -> None:
    backend = create("simulated", "2")
    backend.devices(0).clear()
    assert len(backend.devices(0)) == 2


def test_package_carries_its_machines() -> None:
    carried = importlib.resources.files("externalresource_gpu").joinpath("backends/simulated/machines")
    written = {path.name for path in (ROOT / "plugins" / "externalresource_gpu/backends/simulated/machines").iterdir()}
    assert {path.name for path in carried.iterdir()} == written
    assert made_up.names() == sorted(name.removesuffix(".yaml") for name in written)


@pytest.mark.parametrize("machine", made_up.names())
def test_machine_says_what_it_follows(machine: str) -> None:
    assert Path(made_up.path(machine)).read_text().startswith("# ")


@pytest.mark.parametrize(
    ("machine", "nvlinks"), [("dgx-1", 6), ("dgx-a100", 7 * 12), ("dgx-h100", 7 * 18), ("gpus-16", 15 * 6)]
)
def test_each_gpu_of_a_dgx_uses_all_its_nvlinks(machine: str, nvlinks: int) -> None:
    found = links(machine)
    for gpu in simulated(machine):
        ours = [link for pair, link in found.items() if gpu.index in pair]
        assert len(ours) == len(simulated(machine)) - 1
        assert sum(int(link.removeprefix("NV")) for link in ours if link.startswith("NV")) == nvlinks


def test_links_of_dgx_1_are_those_that_were_printed() -> None:
    printed = """
        X NV1 NV1 NV2 NV2 SYS SYS SYS
        NV1 X NV2 NV1 SYS NV2 SYS SYS
        NV1 NV2 X NV2 SYS SYS NV1 SYS
        NV2 NV1 NV2 X SYS SYS SYS NV1
        NV2 SYS SYS SYS X NV1 NV1 NV2
        SYS NV2 SYS SYS NV1 X NV2 NV1
        SYS SYS NV1 SYS NV1 NV2 X NV2
        SYS SYS SYS NV1 NV2 NV1 NV2 X
    """
    rows = [line.split() for line in printed.split("\n") if line.strip()]
    assert links("dgx-1") == {(one, other): rows[one][other] for other in range(8) for one in range(other)}


def test_lost_gpu_has_no_links() -> None:
    found = links("one-lost")
    assert len(found) == 7 * 6 / 2
    assert not [pair for pair in found if 3 in pair]


def test_h100_mig_is_the_machine_that_was_recorded() -> None:
    file = RECORDED / "list" / "uo-linux-x86_64_nvidia-h100-mig_590.48.01.L.txt"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    [gpu] = simulated("h100-mig")
    assert re.findall(r"MIG (\S+) +Device +(\d+)", file.read_text()) == [
        (instance.mig_profile, str(instance.mig_index)) for instance in gpu.instances
    ]


def test_mixed_mig_machine_has_each_kind_of_gpu() -> None:
    whole, shared, holes, empty = simulated("a100-mig-mixed")
    assert (whole.mig_mode, whole.instances) == ("Disabled", ())
    slices = [(instance.gpu_instance, instance.compute_instance) for instance in shared.instances]
    assert slices == [(2, 0), (3, 0), (3, 1), (9, 0)]
    assert [instance.mig_index for instance in holes.instances] == [0, 2, 5]
    assert (empty.mig_mode, empty.instances, empty.unusable) == ("Enabled", (), None)


def test_machine_in_use_has_processes_that_are_known_and_one_gpu_of_which_they_are_not() -> None:
    devices = Simulated("in-use", processes=True).devices(time.monotonic())
    assert [device.processes for device in devices] == [
        (),
        (Process(4194305, 538), Process(4194306, 681)),
        (),
        None,
    ]
    assert [device.memory_used for device in devices] == [0, 1235, 1235, 0]


@pytest.mark.parametrize("what", ["8", "in-use"])
def test_processes_and_links_are_told_only_if_they_were_asked_for(what: str) -> None:
    backend = Simulated(what)
    assert {device.processes for device in backend.devices(time.monotonic())} == {None}
    assert backend.links(time.monotonic()) == {}
    asked = Simulated(what, topology=True, processes=True)
    assert any(device.processes is not None for device in asked.devices(time.monotonic()))
    assert asked.links(time.monotonic())


def test_more_gpus_than_one_machine_connects_have_no_links() -> None:
    assert set(links("16").values()) == {"NV12"}
    assert len(links("16")) == 16 * 15 / 2
    assert links("17") == {}


@pytest.mark.parametrize(("name", "number"), [("2", 2), ("gb10", 1)])
def test_number_or_machine_goes_before_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    (tmp_path / name).write_text("gpus: [{}, {}, {}]")
    monkeypatch.chdir(tmp_path)
    assert len(simulated(name)) == number
    assert len(simulated(f"./{name}")) == 3
