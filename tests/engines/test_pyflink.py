"""Python operators of a real Flink cluster are told the GPUs of their TaskManager."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .environments import run
from .rig import Cluster

JOB = Path(__file__).parent / "which_gpu.py"
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(900),  # the first run on a machine installs Flink
    pytest.mark.skipif(
        shutil.which("java") is None and "CI" not in os.environ,
        reason="needs java on PATH, for example openjdk-17-jre-headless",
    ),
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our package and what it needs, for a Python that has only PyFlink."""
    folder = tmp_path_factory.mktemp("ours")
    run(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--target", folder, ROOT)
    return folder


@pytest.fixture(scope="module", params=["process", "thread"])
def python_cluster(
    request: pytest.FixtureRequest, flink: Path, ours: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A host with two GPUs and two TaskManagers, whose Python operators run in this mode."""
    cluster = Cluster(flink, tmp_path_factory.mktemp(request.param), gpus=2)
    # In thread mode Flink finds the base interpreter's packages only, not those of its virtual environment.
    cluster.environment["PYTHONPATH"] = f"{ours}:{flink.parent}"
    cluster.configuration = cluster.configure(
        "python",
        args=cluster.coordinated,
        more={"python.execution-mode": request.param, "python.fn-execution.memory.managed": "false"},
    )
    try:
        cluster.start_job_manager()
        cluster.two_task_managers()
        yield cluster
    finally:
        cluster.close()


def test_operators_are_told_the_devices_of_their_task_manager(python_cluster: Cluster, flink: Path) -> None:
    said = python_cluster.submit(JOB, python_of(flink), python_cluster.configuration)
    assert told(said) == [[f"{one}:unset"] * 3 for one in held(python_cluster)]


# In thread mode the operators run in the TaskManager itself, and no Python is started.
@pytest.mark.parametrize("python_cluster", ["process"], indirect=True)
def test_unmodified_operators_see_the_devices_of_their_task_manager(
    python_cluster: Cluster, flink: Path, tmp_path: Path
) -> None:
    executable = tmp_path / "externalresource-python"  # as it is installed beside PyFlink
    executable.write_text(
        (ROOT / "packaging" / executable.name).read_text().replace("python", str(python_of(flink)), 1)
    )
    executable.chmod(0o755)
    said = python_cluster.submit(JOB, executable, python_cluster.configuration)
    uuid = "GPU-00000000-0000-4000-8000-00000000000"
    assert told(said) == [[f"{one}:{uuid}{one[-1]}"] * 3 for one in held(python_cluster)]


def python_of(flink: Path) -> Path:
    return flink.parents[3] / "bin" / "python"


def told(said: str) -> list[list[str]]:
    """What a DataStream function, a Table UDF and a pandas UDF were told, in each TaskManager."""
    return sorted(line.split()[1:] for line in said.splitlines() if line.startswith("told "))


def held(cluster: Cluster) -> list[str]:
    """The pid of each TaskManager and what it holds, by Flink's own word and by the coordination file."""
    pair = cluster.two_task_managers()
    found = sorted(f"{task_manager.pid}:{','.join(task_manager.devices)}" for task_manager in pair)
    assert found == sorted(f"{pid}:{index}" for index, pid in cluster.claims())
    return found
