"""The Python that a worker is started with has its mask set: the TaskManager's devices, or a share of them."""

import json
import signal
import subprocess
import sys

import pytest

from tests.support.flink.operators import GPUS, PYTHON, Cluster, outside

MASK = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('CUDA_DEVICE_ORDER'))"


BOARDS = """
from externalresource import Device, driver

@driver("fpga")
def boards():
    return [Device(str(index), environment={"FPGA": f"/dev/fpga{index}"}) for index in range(2)]
"""


def test_python_of_a_worker_sees_the_task_managers_devices(cluster: Cluster) -> None:
    said = cluster.ask("-c", ".", worker=MASK, PYTHON=PYTHON)
    assert said == f"{','.join(uuid for _, uuid in GPUS[:2])} PCI_BUS_ID"


def test_python_of_a_worker_sees_the_devices_of_any_driver(cluster: Cluster) -> None:
    (cluster.folder / "boards.py").write_text(BOARDS)
    (cluster.folder / "config.yaml").write_text(
        "external-resources: fpga\nexternal-resource.fpga.amount: 1\n"
        "external-resource.fpga.driver-factory.class: boards:boards\n"
        "external-resource.fpga.param.enable-coordination-mode: true\n"
        f"external-resource.fpga.param.coordination-file: {cluster.folder}/fpgas\n"
    )
    fpgas = {"FPGAS": f"{cluster.folder}/fpgas", "PYTHONPATH": str(cluster.folder)}
    worker = "import os; print(os.environ['FPGA'])"
    said = cluster.ask("-c", ".", claims=0, worker=worker, PYTHON=PYTHON, **fpgas)
    assert said == "/dev/fpga0"


def test_python_of_a_worker_whose_devices_nobody_can_tell_does_not_start(cluster: Cluster) -> None:
    said = cluster.ask("-c", ".", claims=0, worker=MASK, PYTHON=PYTHON)
    assert said.startswith("externalresource-python: the TaskManager (pid ")
    assert said.count("\n") == 0


def test_python_of_a_task_manager_without_resources_is_plain(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: none\n")
    assert cluster.ask("-c", ".", claims=0, worker=MASK, PYTHON=PYTHON) == "None None"


def test_outside_a_task_manager_it_is_plain_python() -> None:
    code = "import os, sys; print(sys.argv, sys.prefix, sys.stdin.read(), sorted(os.environ.items()))"
    words = ["-c", code, "a b", ""]
    plain = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True, input="said")
    assert outside(*words, input="said").stdout == plain.stdout
    assert outside("-c", "import sys; sys.exit(7)").returncode == 7
    assert outside("-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)").returncode == -signal.SIGTERM
    assert outside("-m", "pip", "--version").stdout.startswith("pip ")
    assert outside("--version").stdout == f"Python {sys.version.split()[0]}\n"


def test_outside_a_task_manager_nothing_that_costs_is_imported() -> None:
    code = "import sys; from externalresource.flink import task_manager; task_manager.find(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True).stdout.split())
    assert {module for module in loaded if module.startswith(b"externalresource")} == {
        b"externalresource",
        b"externalresource.faces",
        b"externalresource.flink",
        b"externalresource.flink.task_manager",
    }


def exclusive(cluster: Cluster, *words: str, **variables: str) -> str:
    """The masks of two Pythons that live side by side, one line each, as they are started by such words."""
    workers = """
import json, os, subprocess
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
workers = [subprocess.Popen(json.loads(os.environ["COMMAND"]), **pipes) for _ in range(2)]
for worker in workers: print(worker.stdout.readline(), end="")
"""
    masked = "import os, sys; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"
    command = json.dumps([PYTHON, *words, "-c", masked])
    return cluster.ask("-c", ".", claims=2, worker=workers, COMMAND=command, **variables)


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("--exclusive", "gpu=1"), {}),
        (("--exclusive=gpu=1",), {"EXTERNALRESOURCE_EXCLUSIVE": "gpu=2"}),
        ((), {"EXTERNALRESOURCE_EXCLUSIVE": "gpu=1"}),
    ],
    ids=["option", "option with =", "environment"],
)
def test_pythons_of_two_workers_see_a_device_each(
    words: tuple[str, ...], variables: dict[str, str], cluster: Cluster
) -> None:
    assert sorted(exclusive(cluster, *words, **variables).split()) == [uuid for _, uuid in GPUS[:2]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gpu", "EXTERNALRESOURCE_EXCLUSIVE: 'gpu' is not allowed: write it like gpu=1"),
        ("gpu=0", "EXTERNALRESOURCE_EXCLUSIVE: 'gpu=0' is not allowed: write it like gpu=1"),
        ("gpu=1,gpu=2", "EXTERNALRESOURCE_EXCLUSIVE: 'gpu' is given twice"),
        ("gpus=1", "has no resource 'gpus' (it has: gpu), did you mean 'gpu'?"),
    ],
)
def test_share_that_is_asked_for_wrongly_starts_no_python(asked: str, said: str, cluster: Cluster) -> None:
    told = exclusive(cluster, EXTERNALRESOURCE_EXCLUSIVE=asked).splitlines()
    assert [line.startswith("externalresource-python: ") and said in line for line in told] == [True, True]


def test_option_without_a_value_starts_no_python(cluster: Cluster) -> None:
    said = cluster.ask(
        "-c", ".", worker='import os; os.execv(os.environ["OURS"], ["python", "--exclusive"])', OURS=PYTHON
    )
    assert said == "externalresource-python: --exclusive: '' is not allowed: write it like gpu=1"


def test_outside_a_task_manager_a_share_is_none_of_its_business() -> None:
    assert outside("--exclusive", "gpu=1", "-c", "print(7)").stdout == "7\n"
