"""Real workers of a standalone Spark ask our discovery script for their GPUs, configured as docs/spark.md shows."""

import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .environments import environment, marks
from .rig import OUR_SCRIPT
from .spark import Cluster, Worker

JOB = Path(__file__).parent / "which_gpu_of_spark.py"
PAGE = (Path(__file__).parents[2] / "docs" / "spark.md").read_text().replace("/opt/venv/bin", str(OUR_SCRIPT.parent))
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))

pytestmark = marks()


class Host:
    """Two GPUs, a master, and what our script writes."""

    def __init__(self, folder: Path) -> None:
        self._ledger = folder / "coordination"
        self._log = folder / "decisions"
        self._page = folder / "embed.py"
        self._page.write_text(BLOCKS["python"])
        more = {
            "EXTERNALRESOURCE_GPU_SIMULATE": "2",
            "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(self._ledger),
            "EXTERNALRESOURCE_GPU_LOG_FILE": str(self._log),
        }
        # With a script for executors, too: they must not run it.
        defaults = f"{BLOCKS['properties']}spark.executor.resource.gpu.discoveryScript {OUR_SCRIPT}\n"
        self.cluster = Cluster(environment("pyspark", "4.3.0"), folder, BLOCKS["sh"], defaults, more)

    def claims(self) -> list[tuple[str, int]]:
        rows = [line.split()[:2] for line in self._ledger.read_text().splitlines()]
        return sorted((index, int(pid)) for index, pid in rows)

    def submit(self, *words: str, **more: str) -> Any:
        """What our job was told."""
        said = self.cluster.submit(*words, "--py-files", self._page, JOB, **more)
        *of_the_page, told = said.splitlines()
        assert [re.sub(r"\d$", "N", line) for line in of_the_page] == [f"row {row} on cuda:N" for row in range(8)]
        return json.loads(told)

    def wait_for_queue(self) -> None:
        """Somebody waits for devices that others hold."""
        queue = self._ledger.with_name("coordination.queue")
        deadline = time.monotonic() + 90
        while not (queue.exists() and queue.read_text()):
            assert time.monotonic() < deadline, "nobody waits after 90 s"
            time.sleep(0.1)

    def askers(self) -> set[int]:
        """The pids of all that ever started our script, which are its parents."""
        return {int(pid) for pid in re.findall(r"asked by pid (\d+)", self._log.read_text())}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("spark"))
    try:
        host.cluster.start_master()
        yield host
    finally:
        host.cluster.close()


@pytest.fixture
def pair(host: Host) -> list[Worker]:
    return host.cluster.workers()


@pytest.fixture(scope="module")
def told(host: Host) -> Any:
    """What a job was told whose driver asks for GPUs, too, on a host that has four by now."""
    host.cluster.workers()
    words = shlex.split(BLOCKS["console"])[2:-1]  # what follows spark-submit before the job
    return host.submit(*words, EXTERNALRESOURCE_GPU_SIMULATE="4", EXTERNALRESOURCE_GPU_AMOUNT="2")


def test_two_workers_hold_disjoint_devices(host: Host, pair: list[Worker]) -> None:
    assert sorted(pair[0].devices + pair[1].devices) == ["0", "1"]
    assert host.claims() == held_by(*pair)


def test_tasks_are_told_the_devices_of_their_worker(host: Host, pair: list[Worker], told: Any) -> None:
    assert by_worker(told["tasks"], pair) == {worker.pid: worker.devices for worker in pair}
    assert {task["order"] for task in told["tasks"]} == {"PCI_BUS_ID"}


def test_driver_is_told_devices_of_its_own_and_executors_ask_for_none(host: Host, told: Any) -> None:
    [driver] = host.askers() & set(told["ancestors"])
    assert told["driver"] == {"gpu": ["2", "3"]}
    assert [index for index, pid in host.claims() if pid == driver] == ["2", "3"]
    for task in told["tasks"]:
        [_worker] = host.askers() & set(task["ancestors"])  # and not the executor between them


def test_a_third_worker_is_refused_with_the_reason_in_its_log(host: Host, pair: list[Worker]) -> None:
    before = host.claims()
    with host.cluster.start_worker() as third:
        third.wait_for("1 wanted, 0 of 2 free; held by pid")
        third.wait_for("Failed to setup worker resources")
        [reason] = re.findall(r"nvidia-gpu-discovery: (.*)", third.log)
    assert {str(worker.pid) for worker in pair} <= set(re.findall(r"\d+", reason))
    assert host.claims() == before


def test_devices_of_a_killed_worker_go_to_one_that_waits(host: Host, pair: list[Worker]) -> None:
    victim, survivor = pair
    heir = host.cluster.start_worker(EXTERNALRESOURCE_GPU_WAIT="100")
    host.wait_for_queue()
    victim.kill()
    assert heir.wait().devices == victim.devices
    assert set(held_by(survivor, heir)) <= set(host.claims())


def test_a_script_that_names_all_gives_both_workers_the_same(host: Host, pair: list[Worker], tmp_path: Path) -> None:
    for worker in pair:
        worker.kill()
    script = tmp_path / "getGpusResources.sh"  # prints what Spark's of this name prints here
    script.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses":["0","1"]}'\n""")
    script.chmod(0o755)
    (tmp_path / "defaults").write_text(BLOCKS["properties"].replace(str(OUR_SCRIPT), str(script)))
    words = ("--properties-file", str(tmp_path / "defaults"))
    with host.cluster.start_worker(*words) as one, host.cluster.start_worker(*words) as two:
        assert [worker.wait().devices for worker in (one, two)] == [["0", "1"], ["0", "1"]]
        assert by_worker(host.submit()["tasks"], [one, two]) == {one.pid: ["0"], two.pid: ["0"]}


def held_by(*workers: Worker) -> list[tuple[str, int]]:
    """What the coordination file must say, by what Spark's logs say."""
    return sorted((index, worker.pid) for worker in workers for index in worker.devices)


def by_worker(tasks: list[Any], pair: list[Worker]) -> dict[int, list[str]]:
    """The GPUs that the tasks were told of, by the pid of the worker for which they ran."""
    told: dict[int, list[str]] = {}
    for task in tasks:
        [worker] = {worker.pid for worker in pair} & set(task["ancestors"])
        told.setdefault(worker, []).extend(re.findall(r"on cuda:(\d+)", task["said"][0]))
    return told
