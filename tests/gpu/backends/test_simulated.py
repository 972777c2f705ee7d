import importlib.resources
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.errors import ConfigurationError, DiscoveryError
from externalresource.records import replace
from externalresource_gpu.backends import NAMES, create
from externalresource_gpu.backends.simulated import machine_file, made_up
from externalresource_gpu.backends.simulated.backend import Simulated
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device, Process

ROOT = Path(__file__).parents[3]
RECORDED = ROOT.parent / "shared" / "data" / "nvidia-smi"
UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MIG_UUID = re.compile(UUID.pattern.replace("GPU", "MIG"))
BUS_ID = re.compile(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0")

Written = Callable[[str], str]


def simulated(what: str) -> list[Device]:
    backend = create("simulated", what)
    backend.start()
    return backend.devices(time.monotonic())


def links(what: str) -> Links:
    backend = Simulated(what, topology=True)
    backend.devices(time.monotonic())
    return backend.links(time.monotonic())


def gpus(machine: str) -> tuple[Device, ...]:
    """Return the GPUs of a machine, whatever its driver does."""
    return machine_file.read(made_up.path(machine), machine).devices


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
        ("gpus:\n- index: -1", 2, "index must be a number from 0 to 65535, not '-1'"),
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
        ("? [gpus]\n: []", 1, "a list or a mapping is none of gpus, "),
    ],
)
def test_mistake_in_a_file_is_an_error_with_its_line(written: Written, text: str, line: int, reason: str) -> None:
    path = written(text)
    with pytest.raises(DiscoveryError, match=f"^{re.escape(path)}:{line}: {reason}") as error:
        simulated(path)
    assert "\n" not in str(error.value)


def test_each_is_what_all_have_that_do_not_say_otherwise(written: Written) -> None:
    path = written("""
each: {name: NVIDIA A10, memory_total: 23028, mig_mode: Disabled}
gpus: [{}, {name: Tesla T4, memory_total: unknown}, {name: "unknown"}]
""")
    assert [(device.name, device.memory_total, device.mig_mode) for device in simulated(path)] == [
        ("NVIDIA A10", 23028, "Disabled"),
        ("Tesla T4", None, "Disabled"),
        ("unknown", 23028, "Disabled"),
    ]


def test_uuid_may_be_unknown(written: Written) -> None:
    path = written("gpus: [{uuid: unknown}, {uuid: unknown, mig_mode: Enabled, instances: [{uuid: unknown}]}]")
    first, second = simulated(path)
    assert (first.uuid, second.uuid, second.instances[0].uuid) == (None, None, None)


def test_bus_id_is_what_todays_drivers_print(written: Written) -> None:
    [device] = simulated(written("gpus: [{pci_bus_id: 0000:0a:00.0}]"))
    assert device.pci_bus_id == "00000000:0A:00.0"


def test_instances_are_those_of_their_gpu(written: Written) -> None:
    path = written("""
gpus:
  - name: NVIDIA A100-SXM4-40GB
    uuid: GPU-1
    pci_bus_id: 00000000:10:00.0
    compute_mode: Default
    mig_mode: Enabled
    numa_node: 1
    unusable: GPU requires reset
    instances:
      - {mig_index: 4, uuid: MIG-2}
      - profile: 1c.3g.20gb
        mig_index: 2
        gpu_instance: 1
        compute_instance: 3
        memory_total: 20096
        memory_used: 11
        unusable: being reset
""")
    [gpu] = simulated(path)
    first, second = gpu.instances
    assert first == Device(
        index=0,
        uuid=first.uuid,
        name="NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb",
        memory_total=20096,
        memory_used=11,
        pci_bus_id="00000000:10:00.0",
        numa_node=1,
        unusable="being reset",
        mig_profile="1c.3g.20gb",
        mig_index=2,
        gpu_instance=1,
        compute_instance=3,
        parent_uuid="GPU-1",
    )
    assert second == replace(
        Device(0, uuid="MIG-2", name="NVIDIA A100-SXM4-40GB MIG", pci_bus_id="00000000:10:00.0", numa_node=1),
        mig_index=4,
        parent_uuid="GPU-1",
    )
    assert MIG_UUID.fullmatch(first.uuid or "")


def test_instance_of_a_gpu_without_a_name_has_none(written: Written) -> None:
    [gpu] = simulated(written("gpus: [{mig_mode: Enabled, instances: [{profile: 1g.5gb}, {}]}]"))
    assert [instance.name for instance in gpu.instances] == [None, None]
    assert [instance.mig_index for instance in gpu.instances] == [0, 1]


def test_list_of_no_instances_is_right_on_any_gpu(written: Written) -> None:
    assert [device.instances for device in simulated(written("gpus: [{mig_mode: Disabled, instances: []}]"))] == [()]


def test_links_are_a_matrix_or_the_same_for_all(written: Written) -> None:
    listed = "gpus: [{index: 7}, {index: 10}, {index: 0}]\n"
    assert links(written(listed + "links: NV4")) == {(0, 7): "NV4", (0, 10): "NV4", (7, 10): "NV4"}
    rows = "links:\n  GPU10: X NV2 N/A\n  GPU7: NV2 X PIX\n  GPU0: N/A PIX X"
    assert links(written(listed + rows)) == {(7, 10): "NV2", (0, 7): "PIX"}
    assert links(written(listed + "links:\n  GPU0: X SYS\n  GPU10: SYS X")) == {(0, 10): "SYS"}
    assert links(written(listed)) == {}


def test_file_is_read_at_each_look(written: Written) -> None:
    backend = create("simulated", written("gpus: [{unusable: GPU is lost}]"))
    assert [device.unusable for device in backend.devices(time.monotonic())] == ["GPU is lost"]
    written("gpus: [{}]")
    assert [device.unusable for device in backend.devices(time.monotonic())] == [None]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("each: {index: 1}\ngpus: []", 1, "'index' is none of name, memory_total, "),
        ("gpus:\n- memory_used: -1", 2, "memory_used must be a number from 0 on, not '-1'"),
        ("gpus:\n- pci_bus_id: 10:00.0", 2, "pci_bus_id must be like 00000000:1B:00.0, not '10:00.0'"),
        ("gpus:\n- index: 65536", 2, "index must be a number from 0 to 65535, not '65536'"),
        ("gpus:\n- memory_total: 99999999999999999999", 2, "memory_total must be a number from 0 on"),
        ("gpus:\n- compute_mode: Exclusive_Proces", 2, ".* did you mean 'Exclusive_Process'"),
        ("gpus:\n- processes: 8", 2, "`processes:` must be a list of mappings"),
        ("gpus:\n- processes:\n  - memory: 8", 3, "a process must have a pid"),
        ("gpus:\n- processes: [{pid: 0}]", 2, "pid must be a number from 1 on, not '0'"),
        ("gpus:\n- processes: [{pid: 1, memori: 1}]", 2, "'memori' is none of pid, memory, did you mean 'memory'"),
        ("gpus:\n- instances: [{}]", 2, "GPU 0 has instances, which needs `mig_mode: Enabled`"),
        ("gpus:\n- mig_mode: Enabled\n  instances: {}", 3, "`instances:` must be a list of mappings"),
        ("gpus:\n- mig_mode: Enabled\n  instances: [{profil: 1g.5gb}]", 3, ".* did you mean 'profile'"),
        ("gpus:\n- mig_mode: Enabled\n  instances: [{profile: 1g}]", 3, "profile must be like 3g.20gb or .* '1g'"),
        ("gpus:\n- mig_mode: Enabled\n  instances: [{uuid: GPU-1}]", 3, "uuid of a MIG instance must begin with MIG-"),
        (
            "gpus:\n- mig_mode: Enabled\n  instances:\n  - {}\n  - {mig_index: 0}",
            5,
            "two .* GPU 0 have the mig_index 0",
        ),
        (
            "gpus:\n- mig_mode: Enabled\n  instances:\n  - &a {gpu_instance: 1, compute_instance: 2}\n  - *a",
            4,
            "two MIG instances of GPU 0 are 1/2",
        ),
        (
            "each: {mig_mode: Enabled}\ngpus:\n- instances: [{uuid: MIG-1}]\n- instances: [{uuid: MIG-1}]",
            4,
            "two MIG instances have the UUID MIG-1",
        ),
        ("gpus:\n- index: 1\n- index: 1", 3, "two GPUs have the index 1"),
        ("gpus:\n- uuid: GPU-1\n- uuid: GPU-1", 3, "two GPUs have the UUID GPU-1"),
        ("gpus: [{}, {}]\nlinks: NVLINK", 2, "a link must be NV1, NV2, .* not 'NVLINK'"),
        ("gpus: [{}, {}]\nlinks: NV0", 2, "a link must be NV1, NV2, .* not 'NV0'"),
        ("gpus: [{}, {}]\nlinks: []", 2, "must be a mapping with GPU0, GPU1"),
        ("gpus: [{}, {}]\nlinks:\n  GPU0: X SYS\n  GPU2: SYS X", 4, "'GPU2' is none of GPU0, GPU1"),
        ("gpus: [{}, {}]\nlinks:\n  GPU0: X SYS\n  GPU1: SYS", 4, "GPU1 must have 2 links, one for each row, not 1"),
        ("gpus: [{}, {}]\nlinks:\n  GPU0: X SYS\n  GPU1: [SYS]", 4, "GPU1 must have 2 links, one for each row, not 0"),
        ("gpus: [{}, {}]\nlinks:\n  GPU0: X SYS\n  GPU1: X SYS", 4, "GPU1 must have X, .* in column 2 alone"),
        ("gpus: [{}, {}]\nlinks:\n  GPU0: X SYS\n  GPU1: NV1 X", 4, "GPU1 to GPU0 is NV1 here, and SYS the other way"),
        ("gpus: [{}, {}]\nlinks:\n  GPU0: X ABC\n  GPU1: ABC X", 3, "a link must be NV1"),
        ("gpus: []\ndriver: hang", 2, "driver must be healthy or hangs or crashes, not 'hang', did you mean 'hangs'"),
        ("gpus: []\ndriver: {slow: 3 s}", 2, "slow must be seconds, like 2.5, not '3 s'"),
        ("gpus: []\ndriver: {fails: 256}", 2, "fails must be a number from 1 to 255, not '256'"),
        ("gpus: []\ndriver: {says: no}", 2, "`says` needs `fails`"),
        ("gpus: []\ndriver: {crashes: SIGSEV}", 2, "crashes must be SIGSEGV or .*, did you mean 'SIGSEGV'"),
        ("gpus: []\ndriver: {crashes: SIGSEGV, fails: 9}", 2, "a driver crashes or fails, not both"),
        ("gpus: []\ndriver: []", 2, "must be a mapping with fails, says, crashes, slow"),
    ],
)
def test_mistake_in_the_rest_of_a_file_is_an_error_with_its_line(
    written: Written, text: str, line: int, reason: str
) -> None:
    test_mistake_in_a_file_is_an_error_with_its_line(written, text, line, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("gpus: [", ":1: not YAML: "),
        ("gpus: " + 9999 * "[", ": nested too deeply"),
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
    with pytest.raises(DiscoveryError, match=":1: not UTF-8: byte 0xff"):
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
