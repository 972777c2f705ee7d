"""A machine as a file describes it."""

import re
import time
from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource.records import replace
from externalresource_gpu.backends import create
from externalresource_gpu.device import Device
from tests.support.backends import MIG_UUID, UUID, Written, links, simulated


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
        ("gpus: " + 2000 * "[", ": nested too deeply"),
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
