"""An operator finds its TaskManager and what that holds: real processes, whose command lines are those of Flink's."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from externalresource import flink
from externalresource.errors import DiscoveryError

MAIN = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
SCRIPT = f"{sys.executable} -P -m externalresource_gpu.discovery"
# Lets the script claim as Flink does, as its child, and starts a worker two processes away, as PyFlink does.
TASK_MANAGER = """
import os, subprocess, sys
if os.environ.get("CLAIM"):
    subprocess.run(os.environ["CLAIM"].split(), check=True, stdout=subprocess.DEVNULL)
if os.environ.get("FPGAS"):
    import externalresource
    options = {"coordination-file": os.environ["FPGAS"]}
    held = externalresource.claim("fpga", driver_factory="boards:boards", options=options)
worker = f"cd /; '{os.environ.get('PYTHON', sys.executable)}' -c '{os.environ['WORKER']}' 2>&1; exit $?"
sys.exit(subprocess.run(["bash", "-c", worker]).returncode)
"""
WORKER = """
import json, sys
from externalresource.errors import ExternalResourceError
from externalresource.flink import get_external_resource_infos
try:
    infos = get_external_resource_infos("gpu")
except ExternalResourceError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps(sorted([info.get_property("index"), info.get_property("uuid")] for info in infos)))
"""
GPUS = [[str(index), f"GPU-5100000{index}-0000-5000-8000-000085d94462"] for index in range(4)]


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "gpus"
        self.args = f"--simulate=4 --enable-coordination-mode --coordination-file={self.ledger}"

    def configure(self, amount: int = 2, more: str = "") -> None:
        (self.folder / "config.yaml").write_text(
            f"external-resources: gpu\n"
            f"external-resource.gpu.amount: {amount}\n"
            f"external-resource.gpu.driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory\n"
            f'external-resource.gpu.param.discovery-script.args: "{self.args}"\n{more}'
        )

    def ask(self, *arguments: str, claims: int = 2, worker: str = WORKER, **variables: str) -> str:
        """Return what an operator of a TaskManager that claimed so many GPUs was told."""
        claim = f"{SCRIPT} {claims} {self.args}" if claims else ""
        done = subprocess.run(
            [sys.executable, "-c", TASK_MANAGER, MAIN, *arguments],
            cwd=self.folder,
            env=os.environ | {"CLAIM": claim, "WORKER": worker.replace("'", '"')} | variables,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout.strip()

    def infos(self, *arguments: str, claims: int = 2, **variables: str) -> object:
        return json.loads(self.ask(*arguments, claims=claims, **variables))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.configure()
    return made


def test_operator_is_told_what_its_task_manager_holds(cluster: Cluster) -> None:
    assert cluster.infos("--configDir", str(cluster.folder)) == GPUS[:2]


def test_operator_is_not_told_what_others_hold(cluster: Cluster) -> None:
    claim = f"{SCRIPT} 1 {cluster.args}".split()
    subprocess.run(claim, check=True, capture_output=True)  # by the process of this test
    assert cluster.infos("--configDir", str(cluster.folder)) == GPUS[2:]  # these are on one NUMA node


@pytest.mark.parametrize("folder", [".", "-c ."])
def test_configuration_is_relative_to_the_task_managers_folder(folder: str, cluster: Cluster) -> None:
    words = folder.split() if folder.startswith("-c") else ["--configDir", folder]
    assert cluster.infos(*words) == GPUS[:2]


def test_configuration_is_that_of_the_environment_if_the_task_manager_was_told_none(cluster: Cluster) -> None:
    assert cluster.infos(FLINK_CONF_DIR=str(cluster.folder)) == GPUS[:2]


@pytest.mark.parametrize("words", [("-D", "external-resource.gpu.amount=1"), ("-Dexternal-resource.gpu.amount=1",)])
def test_dynamic_properties_win(words: tuple[str, ...], cluster: Cluster) -> None:
    assert cluster.infos("--configDir", str(cluster.folder), *words, claims=1) == GPUS[:1]


def test_without_coordination_the_devices_are_those_that_the_driver_finds(cluster: Cluster) -> None:
    cluster.args = "--simulate=2"
    cluster.configure()
    assert [index for index, _ in json.loads(cluster.ask("-c", ".", claims=0))] == ["0", "1"]


def test_task_manager_that_holds_another_number_is_an_error_with_both(cluster: Cluster) -> None:
    said = cluster.ask("-c", ".", claims=0)
    assert said.startswith("DiscoveryError: the TaskManager (pid ")
    assert f" holds 0 devices of 'gpu' in {cluster.ledger}, not the 2 of its configuration" in said


def test_resource_that_is_not_configured_is_named_with_those_that_are(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: gpus\nexternal-resource.gpus.amount: 1\n")
    said = cluster.ask("-c", ".", claims=0)
    assert "has no resource 'gpu' (it has: gpus), did you mean 'gpus'?" in said


def test_resource_without_a_driver_is_an_error_that_names_the_key(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: gpu\nexternal-resource.gpu.amount: 1\n")
    said = cluster.ask("-c", ".", claims=0)
    assert said.startswith("ConfigurationError: external-resource.gpu.driver-factory.class is not set")


def test_process_that_works_for_no_task_manager_is_told_who_its_ancestors_are() -> None:
    with pytest.raises(DiscoveryError) as caught:
        flink.get_external_resource_infos("gpu")
    assert f"pid {os.getpid()} (" in str(caught.value)
    assert ", pid 1 (" in str(caught.value)
    assert "externalresource.claim" in str(caught.value)


BOARDS = """
from externalresource import Device, driver

@driver("fpga")
def boards():
    return [Device(str(index), environment={"FPGA": f"/dev/fpga{index}"}) for index in range(2)]
"""

# ---- the Python of a worker -----------------------------------------------------------------------

PYTHON = str(Path(sysconfig.get_path("scripts")) / "externalresource-python")
MASK = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('CUDA_DEVICE_ORDER'))"


def outside(*words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PYTHON, *words], check=False, capture_output=True, text=True, timeout=60, **more)


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
    code = "import sys; from externalresource import task_manager; task_manager.find(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True).stdout.split())
    assert {module for module in loaded if module.startswith(b"externalresource")} == {
        b"externalresource",
        b"externalresource.task_manager",
    }
