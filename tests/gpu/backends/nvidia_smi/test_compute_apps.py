import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvidia_smi import listing
from externalresource_gpu.device import Device, Process

GPUS = [Device(0, "GPU-0"), Device(1, "GPU-1"), Device(2)]


def processes(said: str | DiscoveryError) -> list[tuple[Process, ...] | None]:
    return [gpu.processes for gpu in listing.attach_processes(GPUS, said)]


def test_processes_are_those_of_their_gpu_by_pid() -> None:
    assert processes("GPU-0, 12, 300\nGPU-1, 7, 5\nGPU-0, 9, 200\n") == [
        (Process(9, 200), Process(12, 300)),
        (Process(7, 5),),
        None,
    ]


def test_gpu_without_a_row_has_none_and_one_without_a_uuid_is_unknown() -> None:
    assert processes("") == [(), (), None]


@pytest.mark.parametrize("cell", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]", "", "9" * 5000, "٣"])
def test_memory_that_is_not_told_is_unknown_and_the_process_known(cell: str) -> None:
    assert processes(f"GPU-0, 12, {cell}") == [(Process(12, None),), (), None]


@pytest.mark.parametrize(
    "rows", ["GPU-0, [Not Supported], 5", "GPU-0, 7, 5\nGPU-0, [N/A], 5\nGPU-0, 8, 5", "GPU-0, -7, 5"]
)
def test_process_without_a_pid_makes_those_of_its_gpu_unknown(rows: str) -> None:
    assert processes(rows) == [None, (), None]


@pytest.mark.parametrize("line", ["[Not Supported]", "GPU-0, 12", "GPU-0, 12, name, 5", "No devices were found"])
def test_line_of_another_kind_makes_all_unknown(line: str) -> None:
    assert processes(f"GPU-0, 12, 5\n{line}") == [None, None, None]


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: infoROM is corrupted at gpu 0008:00:00.0",
        "Unable to determine the device handle for GPU2: 0000:0F:00.0: GPU is lost",
    ],
)
def test_warning_and_lost_gpu_are_no_process_and_hide_none(line: str) -> None:
    assert processes(f"{line}\nGPU-0, 12, 5\n{line}\n") == [(Process(12, 5),), (), None]


def test_row_of_a_gpu_that_is_not_listed_is_ignored() -> None:
    assert processes("GPU-9, 12, 5") == [(), (), None]


def test_without_an_answer_all_are_unknown() -> None:
    assert processes(DiscoveryError("it failed")) == [None, None, None]
