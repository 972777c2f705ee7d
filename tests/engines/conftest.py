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


#: What is tried of the older Flink, too, without --sweep: two TaskManagers of it, and what they say.
_ALWAYS = (
    "test_two_task_managers_hold_disjoint_devices",
    "test_the_logs_name_the_devices_where_the_page_looks_for_them",
    "test_a_claim_names_the_device_beyond_its_index",
    "test_flinks_own_script_honours_our_claims",
    "test_python_shares_the_configuration_with_flink",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the sweep what starts more of the older Flink than two TaskManagers: each start costs eight seconds."""
    for item in items:
        if f"[{_OLDER}]" in item.name and not item.name.startswith(_ALWAYS):
            item.add_marker(pytest.mark.sweep)


@pytest.fixture(scope="session", params=["2.3.0", _OLDER])
def flink(request: pytest.FixtureRequest) -> Path:
    """A Flink distribution: it has bin, conf, lib and plugins."""
    return next(environment("apache-flink", request.param).glob("lib/python3*/site-packages/pyflink"))


@pytest.fixture(scope="session")
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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    root = Path(__file__).parents[2]
    run(sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--wheel-dir", folder, root)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def ours(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our package and what it needs, for a Python that has only PyFlink."""
    folder = tmp_path_factory.mktemp("ours")
    run(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--target", folder, wheel)
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
