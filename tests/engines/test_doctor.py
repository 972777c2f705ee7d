"""A TaskManager of real Flink whose discovery failed advertises its GPU, and `doctor` sees that by the REST API."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from .environments import marks
from .rig import Cluster, TaskManager

pytestmark = marks()


def test_gpu_that_a_task_manager_advertises_and_did_not_find_is_the_only_problem(
    cluster: Cluster, pair: tuple[TaskManager, TaskManager], tmp_path: Path
) -> None:
    script = tmp_path / "fails.sh"
    script.write_text("#!/bin/sh\necho no GPU today >&2\nexit 3\n")
    script.chmod(0o755)
    with cluster.start_task_manager(cluster.configure("fails", args=None, script=script)) as blind:
        assert [each.wait().devices for each in (blind, *pair)] in ([[], ["0"], ["1"]], [[], ["1"], ["0"]])
        wait_for_members(cluster, 3)
        said = doctor(cluster)
    [found] = said["findings"]
    assert (found["check"], found["severity"]) == ("undiscovered", "error")
    assert found["evidence"].startswith(f"{rest(cluster)}/taskmanagers: TaskManager localhost:")
    assert f" (pid {blind.pid}): extendedResources gpu=1; " in found["evidence"]
    assert f"{cluster.coordination_file} has 0 of that pid; " in found["evidence"]
    assert "its log says: Discovery script exit with 3. | STDERR: no GPU today" in found["evidence"]
    assert {f"REST API {rest(cluster)}", f"plugins folder {plugins(cluster)}"} <= set(said["looked_at"])
    assert said["not_looked_at"] == []


def wait_for_members(cluster: Cluster, count: int) -> None:
    """Flink has forgotten the TaskManagers that other tests have ended."""
    deadline = time.monotonic() + 90
    while len(json.load(urllib.request.urlopen(f"{rest(cluster)}/taskmanagers"))["taskmanagers"]) != count:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def doctor(cluster: Cluster) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "externalresource",
        "doctor",
        str(cluster.configuration),
        "--format",
        "json",
    ]
    environment = cluster.environment | {"FLINK_PLUGINS_DIR": str(plugins(cluster))}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 1
    return said


def rest(cluster: Cluster) -> str:
    settings = cluster.configuration.read_text().splitlines()
    [port] = [line.removeprefix("rest.port: ") for line in settings if line.startswith("rest.port: ")]
    return f"http://localhost:{port}"


def plugins(cluster: Cluster) -> Path:
    return cluster.own_script.parents[1]
