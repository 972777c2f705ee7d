"""The masks of whoever asks for AMD's GPUs, which the runtime reads, too."""

import json
from pathlib import Path

import pytest

from tests.support.amd_tools import (
    amd_smi,
    card,
    failure,
    listed,
    rocm_smi,
    static,
    tool,
    unusable,
    uuid,
)


@pytest.mark.parametrize(
    ("masks", "visible"),
    [
        ({}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "3,1"}, [1, 3]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": f"{uuid(2)}, 0x1"}, [1, 2]),
        ({"ROCR_VISIBLE_DEVICES": uuid(2).upper()}, [2]),
        ({"ROCR_VISIBLE_DEVICES": uuid(2)[:-1]}, []),  # is all of them
        ({"ROCR_VISIBLE_DEVICES": "1,9,2"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1,08,2"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1,1,2"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1,GPU-0,2"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1,x"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "2"}, [2]),
        ({"HIP_VISIBLE_DEVICES": ""}, [0, 1, 2, 3]),
        ({"HIP_VISIBLE_DEVICES": "2, 1"}, [2]),
        ({"HIP_VISIBLE_DEVICES": "01"}, []),
        ({"HIP_VISIBLE_DEVICES": f"{uuid(3)},-1,2"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": uuid(3), "HIP_VISIBLE_DEVICES": uuid(3)[:-1]}, []),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "2"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "0"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "2"}, []),
    ],
)
def test_masks_of_whoever_asks_bound_what_is_handed_out(
    four: str, monkeypatch: pytest.MonkeyPatch, masks: dict[str, str], visible: list[int]
) -> None:
    for name, value in masks.items():
        monkeypatch.setenv(name, value)
    reasons = unusable(four)
    assert [gpu for gpu, reason in enumerate(reasons) if reason is None] == visible
    assert {reason.partition("=")[0] for reason in reasons if reason} <= {f"hidden by {name}" for name in masks}
    assert unusable(four, ignore_mask="true") == [None] * 4


@pytest.mark.parametrize(("mask", "visible"), [("010", [8]), ("0x9", [9]), ("8", [8])])
def test_numbers_of_the_runtimes_mask_are_those_of_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, visible: list[int]
) -> None:
    command = amd_smi(tmp_path, [listed(gpu) for gpu in range(11)], [static(gpu) for gpu in range(11)])
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", mask)
    assert [gpu for gpu, reason in enumerate(unusable(command)) if reason is None] == visible


@pytest.mark.parametrize("mask", ["GPU-", "G", uuid(0) + "0"])
def test_uuid_that_is_too_short_or_too_long_names_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", mask)
    assert unusable(amd_smi(tmp_path, [listed(0)], [static(0)])) == [f"hidden by ROCR_VISIBLE_DEVICES={mask}"]


@pytest.mark.parametrize("mask", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_numbers_of_a_mask_count_in_the_order_of_the_kernels_topology(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    lists = [listed(0, node_id=7), listed(1, node_id=3), listed(2, node_id=5)]
    monkeypatch.setenv(mask, "0,1")
    assert [reason is None for reason in unusable(amd_smi(tmp_path, lists, [static(gpu) for gpu in range(3)]))] == [
        False,
        True,
        True,
    ]


def test_mask_that_hides_a_gpu_is_named(four: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "3,1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    assert unusable(four) == [
        "hidden by ROCR_VISIBLE_DEVICES=3,1",
        "hidden by HIP_VISIBLE_DEVICES=0",
        "hidden by ROCR_VISIBLE_DEVICES=3,1",
        None,
    ]


@pytest.mark.parametrize("mask", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_mask_of_numbers_is_refused_where_the_runtimes_order_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    command = rocm_smi(tmp_path, [card(0), card(1)])
    monkeypatch.setenv(mask, "1")
    assert failure(command) == (
        f"{mask}=1 counts devices in an order that is not known here: use UUIDs, or ignore-mask: true"
    )
    monkeypatch.setenv(mask, uuid(1))
    assert [reason is None for reason in unusable(command)] == [False, True]


def test_mask_inside_a_list_of_uuids_needs_no_order_of_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", f"{uuid(1)},{uuid(0)}")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    assert [reason is None for reason in unusable(rocm_smi(tmp_path, [card(0), card(1)]))] == [False, True]


def test_tool_is_asked_without_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", uuid(0))
    masked = 'test -z "$ROCR_VISIBLE_DEVICES" || exit 1'
    command = tool(tmp_path, "amd-smi", {"list": json.dumps([listed(0)]), "static": json.dumps([static(0)])})
    Path(command).write_text(Path(command).read_text().replace("\ncase", f"\n{masked}\ncase"))
    assert unusable(command) == [None]
