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
        yield cluster
    finally:
        cluster.close()


def test_operators_are_told_the_devices_of_their_task_manager(python_cluster: Cluster, flink: Path) -> None:
    pair = python_cluster.two_task_managers()
    said = python_cluster.submit(JOB, flink.parents[3] / "bin" / "python", python_cluster.configuration)
    told = sorted(line.split()[1:] for line in said.splitlines() if line.startswith("told "))
    expected = sorted(f"{task_manager.pid}:{','.join(task_manager.devices)}" for task_manager in pair)
    assert sorted(f"{pid}:{index}" for index, pid in python_cluster.claims()) == expected
    assert told == [[one] * 3 for one in expected]  # to a DataStream function, a Table UDF and a pandas UDF
