import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .environments import environment, run
from .rig import OUR_SCRIPT, Cluster, Settings, TaskManager

OUR_SCRIPT_OF_THE_PAGES = "/opt/venv/bin/nvidia-gpu-discovery"

_OLDER = "1.20.1"
_UNDER_LOAD: Settings = {
    # Jobs are divided among the TaskManagers, and go on as soon as a dead one is replaced.
    "taskmanager.load-balance.mode": "SLOTS",
    "heartbeat.interval": "1 s",
    "heartbeat.timeout": "10 s",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": 1000,
    "restart-strategy.fixed-delay.delay": "100 ms",
    # Values reach Python soon, and a worker is soon through with them.
    "python.fn-execution.bundle.size": 50,
    "python.fn-execution.bundle.time": 200,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the jobs of the older Flink to the sweep: they take four minutes, and its TaskManagers are tried anyway."""
    for item in items:
        if item.path.name == "test_jobs.py" and f"[{_OLDER}" in item.name:
            item.add_marker(pytest.mark.sweep)


@pytest.fixture(scope="session", params=["2.3.0", _OLDER])
def flink(request: pytest.FixtureRequest) -> Path:
    """A Flink distribution: it has bin, conf, lib and plugins."""
    return next(environment("apache-flink", request.param).glob("lib/python3*/site-packages/pyflink"))


@pytest.fixture(scope="module")
def cluster(flink: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A host with two GPUs, and a JobManager on it; each TaskManager is configured as docs/flink.md says."""
    assert shutil.which("java"), "Flink needs java on PATH, for example openjdk-17-jre-headless"
    cluster = Cluster(flink, tmp_path_factory.mktemp("cluster"), gpus=2)
    cluster.configuration = cluster.configure_as("flink.md", {OUR_SCRIPT_OF_THE_PAGES: OUR_SCRIPT})
    try:
        cluster.start_job_manager()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def pair(cluster: Cluster) -> tuple[TaskManager, TaskManager]:
    return cluster.two_task_managers()


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our package and what it needs, for a Python that has only PyFlink."""
    folder = tmp_path_factory.mktemp("ours")
    root = Path(__file__).parents[2]
    run(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--target", folder, root)
    return folder


@pytest.fixture(scope="module")
def two_by_two(flink: Path, ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two TaskManagers with two slots and two of four GPUs each, for jobs in Java and in Python.

    They are configured as docs/pyflink.md says.
    """
    cluster = Cluster(flink, tmp_path_factory.mktemp("two_by_two"), gpus=4)
    # In thread mode Flink finds the base interpreter's packages only, not those of its virtual environment.
    cluster.environment["PYTHONPATH"] = f"{ours}:{flink.parent}"
    places = {OUR_SCRIPT_OF_THE_PAGES: OUR_SCRIPT, "/opt/venv/bin/python": python_of(flink)}
    cluster.configuration = cluster.configure_as("pyflink.md", places, _UNDER_LOAD)
    try:
        cluster.start_job_manager()
        cluster.two_task_managers()
        yield cluster
    finally:
        cluster.close()


def python_of(flink: Path) -> Path:
    return flink.parents[3] / "bin" / "python"
