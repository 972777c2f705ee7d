"""AMD's GPUs: what their tools tell, which are handed out, and how a process is told."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from externalresource.coordination import Coordination
from externalresource.drivers.loading import create_driver
from externalresource.errors import ConfigurationError, NotEnoughDevicesError
from tests.support.amd_tools import (
    amd,
    amd_smi,
    card,
    failure,
    listed,
    rocm_smi,
    shown,
    static,
    tool,
    unusable,
    uuid,
    variables,
)

NOTHING = {
    "asic": {"market_name": "N/A", "asic_serial": "N/A", "target_graphics_version": "N/A"},
    "bus": "N/A",
    "vram": {"size": "N/A"},
    "partition": {"compute_partition": "N/A", "memory_partition": "N/A"},
    "numa": {"node": -1, "affinity": "N/A"},
}
NO_DRIVER = (
    "the amdgpu driver is not loaded (try: modprobe amdgpu): "
    "'ERROR:root:Driver not initialized (amdgpu not found in modules)'"
)
NO_PERMISSION = (
    "this user may not look at the GPUs (it should be in the groups render and video): "
    "'RuntimeError: WARNING: User is missing the following required groups: render, video.'"
)


def cpx(**other: Any) -> tuple[list[Any], list[Any]]:
    """Return a whole GPU, and one in CPX mode: of its partitions only the first is described in full."""
    lists = [listed(0)] + [
        listed(1 + part, bdf=f"0000:1c:00.{part}", node_id=3 + part, partition_id=part, **other) for part in range(3)
    ]
    mode = {"accelerator_partition": "CPX", "memory_partition": "NPS1", "partition_id": 0}
    return lists, [static(0), static(1, partition=mode), static(2, **NOTHING), static(3, **NOTHING)]


def test_gpu_is_described_by_two_answers_of_amd_smi(tmp_path: Path) -> None:
    assert shown(amd_smi(tmp_path, [listed(1)], [static(1)])) == [
        {
            "index": "1",
            "uuid": "GPU-de8287300da37c01",
            "name": "AMD Instinct MI300X",
            "memory.total": "196592",
            "pci.bus_id": "0000:1c:00.0",
            "numa_node": "1",
            "compute_partition": "SPX",
            "memory_partition": "NPS1",
            "target": "gfx942",
        }
    ]


@pytest.mark.parametrize("size", [{"value": 0, "unit": "MB"}, {"value": "N/A", "unit": "MB"}, "9" * 400, None, [], {}])
def test_what_is_missing_is_left_out_and_never_0(tmp_path: Path, size: Any) -> None:
    described = static(0, **NOTHING | {"vram": {"size": size}})
    command = amd_smi(tmp_path, [listed(0, bdf="N/A", node_id="N/A", partition_id="N/A")], [described])
    assert shown(command) == [{"index": "0"}]


@pytest.mark.parametrize("number", ["0x0", "0x0000000000000000", "", "N/A", None, "no serial", "0x1234567890ABCDEF0"])
def test_serial_number_that_is_none_makes_no_uuid(tmp_path: Path, number: str | None) -> None:
    [found] = shown(amd_smi(tmp_path, [listed(0)], [static(0, asic={"asic_serial": number})]))
    assert "uuid" not in found


@pytest.mark.parametrize("number", ["0xDE8287300DA37", "de8287300da37", "0x000DE8287300DA37"])
def test_uuid_has_16_digits_as_for_the_runtime(tmp_path: Path, number: str) -> None:
    [found] = shown(amd_smi(tmp_path, [listed(0)], [static(0, asic={"asic_serial": number})]))
    assert found["uuid"] == "GPU-000de8287300da37"


@pytest.mark.parametrize(
    ("vram", "memory"),
    [
        ({"vram_size_mb": 65520}, "65520"),
        ({"size": "65520 MB"}, "65520"),
        ({"size": {"value": 192, "unit": "GB"}}, "196608"),
    ],
)
def test_memory_is_read_in_each_releases_way(tmp_path: Path, vram: Any, memory: str) -> None:
    [found] = shown(amd_smi(tmp_path, [listed(0)], [static(0, vram=vram)]))
    assert found["memory.total"] == memory


@pytest.mark.parametrize("wrapped", [False, True])
def test_newer_releases_have_the_list_in_an_object(tmp_path: Path, wrapped: bool) -> None:  # noqa: FBT001 - a parameter
    lists, statics = [listed(0), listed(1)], [static(0), static(1)]
    command = amd_smi(tmp_path, lists, {"gpu_data": statics, "cpu_data": []} if wrapped else statics)
    assert [device["uuid"] for device in shown(command)] == [uuid(0), uuid(1)]


def test_older_releases_print_one_gpu_without_a_list(tmp_path: Path) -> None:
    assert [device["uuid"] for device in shown(amd_smi(tmp_path, listed(0), static(0)))] == [uuid(0)]


def test_what_one_answer_lacks_may_stand_in_the_other(tmp_path: Path) -> None:
    lists = [{"gpu": 0}, {"cpu": 0}]
    mode = {"compute_partition": "SPX", "memory_partition": "NPS4", "partition_id": 0}
    [found] = shown(amd_smi(tmp_path, lists, [static(0, partition=mode)]))
    assert (found["pci.bus_id"], found["compute_partition"], found["memory_partition"]) == (
        "0000:0c:00.0",
        "SPX",
        "NPS4",
    )


def test_numbers_that_stand_for_none_are_none(tmp_path: Path) -> None:
    lists = [listed(0, node_id=0xFFFFFFFF, partition_id=0xFFFFFFFF), listed(1)]
    command = amd_smi(tmp_path, lists, [static(0, numa={"node": 0xFFFFFFFF}), static(1)])
    assert "numa_node" not in shown(command)[0]
    assert unusable(command) == ["the kernel's compute driver (KFD) has no node for it", None]


def test_cards_of_rocm_smi_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    cards = {
        f"card{number}": card(number, **{"Card series": "N/A", "Device Name": f"MI{number}"}) for number in (10, 2)
    }
    command = tool(tmp_path, "rocm-smi", {"--showuniqueid": json.dumps(cards)})
    assert [(device["index"], device["name"]) for device in shown(command)] == [("2", "MI2"), ("10", "MI10")]


def test_host_without_gpus_has_none(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughDevicesError, match="1 wanted, this host has 0"):
        amd(amd_smi(tmp_path, [], [])).retrieve_resource_info(1)


def test_gpu_whose_memory_fails_is_not_handed_out(tmp_path: Path) -> None:
    bad = static(0, ras={"bad_page_threshold_exceeded": "True"})
    command = amd_smi(tmp_path, [listed(0), listed(1)], [bad, static(1)])
    assert unusable(command) == ["more pages of its memory are bad than its threshold allows", None]
    assert variables(command, 1) == {"ROCR_VISIBLE_DEVICES": uuid(1), "HIP_VISIBLE_DEVICES": "0"}


def test_gpu_of_which_nothing_is_told_is_not_handed_out(tmp_path: Path) -> None:
    command = amd_smi(tmp_path, [listed(0), listed(1)], [static(1)])
    assert unusable(command) == ["amd-smi lists it and tells nothing else of it", None]


def test_hip_counts_inside_what_the_runtime_is_left(four: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,3")
    assert variables(four, 2) == {
        "ROCR_VISIBLE_DEVICES": f"{uuid(2)},{uuid(3)}",
        "HIP_VISIBLE_DEVICES": "0,1",  # 2,3 would be none of the two
    }


def test_gpu_without_a_uuid_is_named_by_its_place_in_the_kernels_topology(tmp_path: Path) -> None:
    nameless = static(0, asic={"market_name": "AMD Radeon Graphics", "asic_serial": "N/A"})
    command = amd_smi(
        tmp_path, [listed(0, node_id=7), listed(1, node_id=3), listed(2, node_id=5)], [nameless, static(1), static(2)]
    )
    assert variables(command, 3) == {
        "ROCR_VISIBLE_DEVICES": f"2,{uuid(1)},{uuid(2)}",
        "HIP_VISIBLE_DEVICES": "0,1,2",
    }


def test_gpu_that_the_compute_driver_does_not_know_is_not_handed_out(tmp_path: Path) -> None:
    command = amd_smi(tmp_path, [listed(0, node_id="N/A"), listed(1)], [static(0), static(1)])
    assert unusable(command) == ["the kernel's compute driver (KFD) has no node for it", None]


def test_gpus_of_which_the_runtimes_names_are_not_known_are_not_handed_out(tmp_path: Path) -> None:
    older = [{key: listed(gpu)[key] for key in ("gpu", "bdf", "uuid")} for gpu in range(3)]
    same = static(2, asic=static(1)["asic"])
    assert unusable(amd_smi(tmp_path, older, [static(0, **NOTHING), static(1), same])) == [
        "ROCm's runtime has no name for it: it has no UUID, and no node id is told",
        f"ROCm's runtime has no name for it: {uuid(1)} is that of others, too, and no node id is told",
        f"ROCm's runtime has no name for it: {uuid(1)} is that of others, too, and no node id is told",
    ]


def test_only_gpu_is_number_0_whatever_is_told_of_it(tmp_path: Path) -> None:
    alone = {"gpu": 0, "bdf": "0000:0c:00.0", "uuid": "N/A"}
    command = amd_smi(tmp_path, [alone], [static(0, **NOTHING)])
    assert variables(command, 1) == {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}


def test_node_of_two_gpus_tells_the_place_of_none(tmp_path: Path) -> None:
    twice = [listed(0, node_id=2), listed(1, node_id=2)]
    assert (
        variables(amd_smi(tmp_path, twice, [static(0), static(1)]), 2)["ROCR_VISIBLE_DEVICES"] == f"{uuid(0)},{uuid(1)}"
    )
    assert None not in unusable(amd_smi(tmp_path, twice, [static(0, **NOTHING), static(1, **NOTHING)]))


def test_partitions_are_devices_and_named_by_number(tmp_path: Path) -> None:
    command = amd_smi(tmp_path, *cpx())
    assert [
        (device["uuid"], device.get("partition_id"), device.get("parent.uuid"), device["name"])
        for device in shown(command)
    ] == [
        (uuid(0), None, None, "AMD Instinct MI300X"),
        *((f"{uuid(1)}/{part}", f"{part}", uuid(1), "AMD Instinct MI300X") for part in range(3)),
    ]
    assert variables(command, 4) == {
        "ROCR_VISIBLE_DEVICES": f"{uuid(0)},1,2,3",
        "HIP_VISIBLE_DEVICES": "0,1,2,3",
    }


def test_partitions_have_the_uuid_of_their_gpu_whatever_each_says_of_itself(tmp_path: Path) -> None:
    lists, statics = cpx()
    statics[3]["asic"] = {"market_name": "AMD Instinct MI300X VF", "asic_serial": "0x1234"}
    command = amd_smi(tmp_path, lists[::-1], statics)
    assert [device["uuid"] for device in shown(command)][:3] == [f"{uuid(1)}/{part}" for part in (2, 1, 0)]
    assert shown(command)[0]["name"] == "AMD Instinct MI300X VF"
    assert variables(command, 4)["ROCR_VISIBLE_DEVICES"] == f"{uuid(0)},1,2,3"


def test_partition_that_is_alone_in_a_container_is_none_of_a_whole_gpu(tmp_path: Path) -> None:
    lists, statics = cpx()
    command = amd_smi(tmp_path, lists[1:2], statics[1:2])
    assert [(device["uuid"], device["parent.uuid"]) for device in shown(command)] == [(f"{uuid(1)}/0", uuid(1))]
    assert variables(command, 1) == {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}


def test_whole_gpu_and_its_partitions_exclude_each_other(tmp_path: Path) -> None:
    shared = {"enable_coordination_mode": "true", "coordination_file": str(tmp_path / "ledger")}
    partitioned = amd(amd_smi(tmp_path / "cpx", *cpx()), **shared)
    partitioned.retrieve_resource_info(2)
    whole = amd_smi(tmp_path / "spx", [listed(0), listed(1)], [static(0), static(1)])
    with pytest.raises(NotEnoughDevicesError):
        amd(whole, **shared).retrieve_resource_info(1)
    held = Coordination(shared["coordination_file"], "amd").held()
    assert [claim.uuid for claim in held] == [uuid(0), f"{uuid(1)}/0"]
    partitioned.close()


def test_older_installations_are_asked_by_rocm_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rocm_smi(tmp_path, [card(0), card(1, **{"Unique ID": "N/A", "VRAM Total Memory (B)": "N/A"})])
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert shown(None) == [
        {
            "index": "0",
            "uuid": uuid(0),
            "name": "Instinct MI210",
            "memory.total": "65520",
            "pci.bus_id": "0000:c1:00.0",
            "numa_node": "1",
        },
        {
            "index": "1",
            "unusable": "ROCm's runtime has no name for it: it has no UUID, and no node id is told",
            "name": "Instinct MI210",
            "pci.bus_id": "0000:c2:00.0",
            "numa_node": "1",
        },
    ]


def test_rocm_smi_answers_where_amd_smi_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "amd-smi", {}, then="echo 'ModuleNotFoundError: amdsmi' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert failure(None) == ("amd-smi list --json failed (exit status 1): 'ModuleNotFoundError: amdsmi'")
    rocm_smi(tmp_path, [card(0)])
    assert [device["uuid"] for device in shown(None)] == [uuid(0)]


def test_host_without_the_tools_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert failure(None) == (
        "amd-smi cannot be started: No such file or directory; rocm-smi cannot be started: No such file or directory "
        "(option 'command' takes a path)"
    )
    assert failure(f"{tmp_path}/amd-smi") == f"{tmp_path}/amd-smi cannot be started: No such file or directory"


@pytest.mark.parametrize(
    "before",
    ["", "WARNING: User is missing the following required groups: render, video.\n", "[WARN] slow\n[1] 4711\n"],
)
def test_warnings_before_the_answer_are_no_part_of_it(tmp_path: Path, before: str) -> None:
    assert unusable(amd_smi(tmp_path, [listed(0)], [static(0)], before=before)) == [None]
    assert unusable(rocm_smi(tmp_path, [card(0)], before=before)) == [None]


def test_whole_answer_counts_whatever_the_status_is(tmp_path: Path) -> None:
    assert unusable(amd_smi(tmp_path, [listed(0)], [static(0)], then="exit 139")) == [None]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'oops'", "printed no JSON but 'oops'"),
        ("true", "failed: it said nothing"),
        ("echo '[{\"gpu\": 0},'", """printed no JSON but '[{"gpu": 0},'"""),
        ("printf '[\\n    {\\n        \"gpu\": 0\\n    },\\n'", "printed no JSON but '[ { \"gpu\": 0 },'"),
        ("echo '[][]'", "printed no JSON but '[][]'"),
        ("head -c 100000 /dev/zero | tr '\\0' '['", f"printed no JSON but '{'[' * 200}...'"),
        ('echo \'{"error": "Command is invalid", "code": -1}\'', "failed: 'Command is invalid'"),
        ("kill -9 $$", "failed (killed by signal 9): it said nothing"),
        (
            "echo 'Traceback (most recent call last):' >&2; echo ' File' >&2; echo 'KeyError: 1' >&2; exit 1",
            "failed (exit status 1): 'KeyError: 1'",
        ),
        (
            "echo 'ERROR:root:Driver not initialized (amdgpu not found in modules)' >&2; exit 255",
            f"failed (exit status 255): {NO_DRIVER}",
        ),
        (
            "echo 'RuntimeError: WARNING: User is missing the following required groups: render, video.'; exit 1",
            f"failed (exit status 1): {NO_PERMISSION}",
        ),
        (
            "echo 'ERROR:root:Driver not initialized (amdgpu not found in modules)' >&2; echo 'No JSON data to report'",
            f"failed: {NO_DRIVER}",
        ),
    ],
)
def test_each_failure_is_one_line_that_says_what_happened(tmp_path: Path, script: str, said: str) -> None:
    command = tool(tmp_path, "amd-smi", {}, then=script)
    assert failure(command) == f"{command} list --json {said}"


@pytest.mark.parametrize(
    ("lists", "statics", "said"),
    [
        ({"cpu_data": []}, [], "no list of GPUs"),
        (["gpu"], [], "no list of GPUs"),
        ([{"gpu": "first"}], [], "a GPU whose number is 'first'"),
        ([{"gpu": 10**400}], [], f"a GPU whose number is 1{'0' * 59}"),
    ],
)
def test_json_of_another_kind_is_refused(tmp_path: Path, lists: Any, statics: Any, said: str) -> None:
    command = amd_smi(tmp_path, lists, statics)
    assert failure(command) == f"{command} printed JSON that is not what was asked for: {said}"


def test_json_of_rocm_smi_that_is_a_list_is_refused(tmp_path: Path) -> None:
    command = tool(tmp_path, "rocm-smi", {"--showuniqueid": "[]"})
    assert failure(command).endswith("is not what was asked for: no object with cards")


def test_command_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    command = tmp_path / "amd-smi"
    command.touch(0o600)
    assert failure(str(command)) == f"{command} cannot be started: Permission denied"


def test_tool_that_hangs_is_ended_at_the_deadline(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = tool(tmp_path, "amd-smi", {}, then=f"echo $$ >> {pid}; exec sleep 600")
    said = failure(command, timeout="2")
    assert said.startswith(f"{command} did not answer within ")
    assert said.endswith(" s; see the option timeout")
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in pid.read_text().split()):
        assert time.monotonic() < end, "a child is still there"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"command": " "}, "the amd driver: option 'command' must be a command or its path, not ''"),
        ({"comand": "amd-smi"}, "did you mean 'command'"),
        ({"ignore-mask": "yes"}, "true or false"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        create_driver("externalresource_amd.driver:amd", options)
