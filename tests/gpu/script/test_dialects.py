import json
import shlex

import pytest

from externalresource_gpu.device import Device
from externalresource_gpu.script.dialects import environment, render
from externalresource_gpu.script.options import FORMATS

WHOLE = Device(3, "GPU-a", name="NVIDIA A100, 40GB", memory_total=40960, pci_bus_id="00000000:07:00.0", numa_node=0)
BARE = Device(11)
INSTANCE = Device(3, "MIG-b", mig_profile="1g.5gb", mig_index=2, parent_uuid="GPU-a")


@pytest.mark.parametrize(
    ("dialect", "devices", "answer"),
    [
        ("flink", [WHOLE], "3\n"),
        ("flink", [WHOLE, BARE], "3,11\n"),
        ("flink", [BARE, WHOLE], "11,3\n"),
        ("flink", [], ""),
        ("uuid", [WHOLE, BARE], "GPU-a,11\n"),
        ("uuid", [], ""),
        ("spark", [WHOLE, BARE], '{"name": "gpu", "addresses": ["3", "11"]}\n'),
        ("spark", [INSTANCE], '{"name": "gpu", "addresses": ["MIG-b"]}\n'),
        ("spark", [], '{"name": "gpu", "addresses": []}\n'),
        ("json", [], "[]\n"),
        (
            "env",
            [WHOLE, BARE],
            "CUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES=GPU-a,11\nNVIDIA_VISIBLE_DEVICES=GPU-a,11\n",
        ),
        ("env", [], "CUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES=\nNVIDIA_VISIBLE_DEVICES=void\n"),
    ],
)
def test_answer_is_what_each_reader_expects(dialect: str, devices: list[Device], answer: str) -> None:
    assert render(dialect, devices) == answer


def test_json_is_one_line_of_what_is_known_of_each_device() -> None:
    answer = render("json", [WHOLE, BARE])
    assert answer.count("\n") == 1
    assert json.loads(answer) == [
        {
            "index": "3",
            "uuid": "GPU-a",
            "name": "NVIDIA A100, 40GB",
            "memory.total": "40960",
            "pci.bus_id": "00000000:07:00.0",
            "numa_node": "0",
        },
        {"index": "11"},
    ]


def test_json_says_why_a_device_is_not_handed_out() -> None:
    assert json.loads(render("json", [Device(0, unusable="GPU is lost")])) == [
        {"index": "0", "unusable": "GPU is lost"}
    ]


def test_every_format_has_a_dialect() -> None:
    assert all(render(dialect, [WHOLE]) for dialect in FORMATS if dialect != "yaml")  # which is of the host


def test_a_shell_reads_the_variables_as_they_are() -> None:
    lines = render("env", [WHOLE, BARE]).splitlines()
    assert [shlex.split(line) for line in lines] == [[line] for line in lines]


def test_process_without_devices_sees_none() -> None:
    assert environment([]) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "",
        "NVIDIA_VISIBLE_DEVICES": "void",
    }
