import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.errors import ConfigurationError, DiscoveryError
from externalresource_gpu.backends import NAMES, create, machines, simulated_machine
from externalresource_gpu.device import Device

UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BUS_ID = re.compile(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0")

Written = Callable[[str], str]


def simulated(what: str) -> list[Device]:
    backend = create("simulated", what)
    backend.start()
    return backend.devices(time.monotonic())


def gpus(machine: str) -> tuple[Device, ...]:
    """Return the GPUs of a machine, whatever its driver does."""
    return simulated_machine.read(machines.path(machine), machine).devices


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(text: str) -> str:
        path = tmp_path / "gpus.yaml"
        path.write_text(text)
        return str(path)

    return write


# create


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


@pytest.mark.parametrize("number", [0, 1, 8, machines.MOST])
def test_number_is_so_many_gpus(number: int) -> None:
    devices = simulated(str(number))
    assert [device.index for device in devices] == list(range(number))
    assert len({device.pci_bus_id for device in devices}) == number


def test_half_of_a_number_is_on_each_numa_node() -> None:
    assert [device.numa_node for device in simulated("4")] == [0, 0, 1, 1]


@pytest.mark.parametrize("what", ["-1", "+8", "8.0", "1_0", "²", "", " ", str(machines.MOST + 1), "two"])
def test_what_is_no_number_is_an_error_that_names_what_is_allowed(what: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        create("simulated", what)
    assert f"a number of GPUs from 0 to {machines.MOST}, a machine (a100-mig, " in str(error.value)
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
        ("one-lost", {"NVIDIA A100-SXM4-40GB": 8}),
        ("t4", {"Tesla T4": 1}),
    ],
)
def test_machine_has_its_boards(machine: str, boards: dict[str, int]) -> None:
    devices = simulated(machine)
    names = [device.name for device in devices]
    assert {name: names.count(name) for name in names} == boards
    assert [device.index for device in devices] == list(range(len(devices)))


@pytest.mark.parametrize("machine", machines.names())
def test_machine_is_plausible(machine: str) -> None:
    devices = gpus(machine)
    buses = [device.pci_bus_id or "" for device in devices]
    assert all(BUS_ID.fullmatch(bus) for bus in buses)
    assert buses == sorted(set(buses))
    assert all(UUID.fullmatch(device.uuid or "") for device in devices)


def test_no_uuid_is_on_two_simulated_machines() -> None:
    devices = [*simulated("64"), *(gpu for machine in machines.names() for gpu in gpus(machine))]
    uuids = [device.uuid for device in devices]
    assert len(uuids) == len(set(uuids))
    assert all((uuid or "").startswith("GPU-5100") for uuid in uuids)


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


def test_one_lost_has_one_that_must_not_be_handed_out() -> None:
    assert {device.index: device.unusable for device in simulated("one-lost") if device.unusable} == {3: "GPU is lost"}


def test_unified_memory_is_unknown() -> None:
    assert [device.memory_total for device in simulated("gb10")] == [None]


def test_unknown_machine_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match="not 'dgx-h10', did you mean 'dgx-h100'"):
        create("simulated", "dgx-h10")


def test_caller_cannot_change_the_next_answer() -> None:
    backend = create("simulated", "2")
    backend.devices(0).clear()
    assert len(backend.devices(0)) == 2


# A file


def test_file_describes_gpus_by_the_fields_of_a_device(written: Written) -> None:
    path = written("""
gpus:
  - index: 0
    uuid: GPU-1
    name: NVIDIA A100-SXM4-40GB
    memory_total: 40960
    memory_used: 7
    pci_bus_id: 00000000:10:00.0
    compute_mode: Exclusive_Process
    mig_mode: Disabled
    numa_node: 1
  - index: 2
    uuid: GPU-2
    unusable: GPU is lost
""")
    assert simulated(path) == [
        Device(
            index=0,
            uuid="GPU-1",
            name="NVIDIA A100-SXM4-40GB",
            memory_total=40960,
            memory_used=7,
            pci_bus_id="00000000:10:00.0",
            compute_mode="Exclusive_Process",
            mig_mode="Disabled",
            numa_node=1,
        ),
        Device(2, "GPU-2", unusable="GPU is lost"),
    ]


def test_file_may_leave_out_everything(written: Written) -> None:
    first, second = simulated(written("gpus: [{}, {}]"))
    assert (first.index, second.index) == (0, 1)
    assert (first.name, first.memory_total, first.numa_node, first.unusable) == (None, None, None, None)
    assert first.uuid != second.uuid
    assert UUID.fullmatch(first.uuid or "")


def test_file_may_describe_a_host_without_gpus(written: Written) -> None:
    assert simulated(written("gpus: []")) == []


def test_gpu_of_a_file_is_judged_as_any_other(written: Written) -> None:
    [device] = simulated(written("gpus: [{compute_mode: Prohibited}]"))
    assert device.unusable == "compute mode is Prohibited"


def test_made_up_uuids_do_not_depend_on_how_the_file_is_named(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("gpus: [{}]")
    monkeypatch.chdir(tmp_path)
    assert simulated("gpus.yaml") == simulated(path)


def test_existing_file_needs_no_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two-gpus").write_text("gpus: [{}, {}]")
    monkeypatch.chdir(tmp_path)
    assert len(simulated("two-gpus")) == 2


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("gpus:\n- memori_total: 1", 2, "'memori_total' is none of index, uuid, .*, did you mean 'memory_total'"),
        ("gpu: []", 1, "'gpu' is none of gpus, .*, did you mean 'gpus'"),
        ("gpus:\n- index: 1\n  index: 2", 3, "'index' is given twice"),
        ("gpus:\n- memory_total: 40 GiB", 2, "memory_total must be a number from 0 on, not '40 GiB'"),
        ("gpus:\n- index: -1", 2, "index must be a number from 0 on, not '-1'"),
        ("gpus:\n- index: [1]", 2, "index must be a number"),
        ("gpus:\n- numa_node:", 2, "numa_node must be a number from 0 on, not ''"),
        ("gpus:\n- compute_mode: default", 2, "compute_mode must be Default or .*, not 'default'"),
        ("gpus:\n- mig_mode: 'on'", 2, "mig_mode must be Enabled or Disabled, not 'on'"),
        ("gpus:\n- name:", 2, "name must be a text, not ''"),
        ("gpus:\n- name: {a: b}", 2, "name must be a text"),
        ("gpus:\n- 8", 2, "must be a mapping with index, uuid"),
        ("gpus: 8", 1, "`gpus:` must be a list of mappings"),
        ("\n- name: T4", 2, "must be a mapping with gpus"),
        ("{}", 1, "`gpus:` must be a list of mappings"),
    ],
)
def test_mistake_in_a_file_is_an_error_with_its_line(written: Written, text: str, line: int, reason: str) -> None:
    path = written(text)
    with pytest.raises(DiscoveryError, match=f"^{re.escape(path)}:{line}: {reason}") as error:
        simulated(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("gpus: [", "is no YAML: .* line 1"),
        ("gpus:\n- index: 1\n- index: 1", "two GPUs have the index 1"),
        ("gpus: [{uuid: GPU-1}, {uuid: GPU-1}]", "two GPUs have the UUID GPU-1"),
    ],
)
def test_file_that_describes_no_machine_is_an_error_that_names_it(written: Written, text: str, reason: str) -> None:
    path = written(text)
    with pytest.raises(DiscoveryError, match=reason) as error:
        simulated(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_bytes(b"gpus: [\xff]")
    with pytest.raises(DiscoveryError, match="is no YAML"):
        simulated(str(path))


@pytest.mark.parametrize("name", ["gone.yaml", "gone.yml", "./gone", "/"])
def test_file_that_cannot_be_read_is_an_error_of_devices(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = create("simulated", name)
    backend.start()
    with pytest.raises(DiscoveryError, match=f"^{re.escape(name)} cannot be read: "):
        backend.devices(0)


def test_yaml_is_imported_for_a_file_alone() -> None:
    ask = "from externalresource_gpu.backends import create; create('auto', '8').devices(0)"
    code = f"import sys; {ask}; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-Pc", code], check=True, capture_output=True, text=True)
    assert "yaml" not in answer.stdout.split()
