import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .environments import environment
from .rig import Cluster, TaskManager


@pytest.fixture(scope="session", params=["2.3.0", "1.20.1"])
def flink(request: pytest.FixtureRequest) -> Path:
    """A Flink distribution: it has bin, conf, lib and plugins."""
    return next(environment("apache-flink", request.param).glob("lib/python3*/site-packages/pyflink"))


@pytest.fixture(scope="module")
def cluster(flink: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A host with two GPUs, and a JobManager on it."""
    assert shutil.which("java"), "Flink needs java on PATH, for example openjdk-17-jre-headless"
    cluster = Cluster(flink, tmp_path_factory.mktemp("cluster"), gpus=2)
    try:
        cluster.start_job_manager()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def pair(cluster: Cluster) -> tuple[TaskManager, TaskManager]:
    return cluster.two_task_managers()
