"""Operators of real jobs, in Java and in Python, are told the GPUs that their TaskManager holds, and nobody else."""

import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from observer import doubles

from .conftest import python_of
from .environments import marks, run
from .reports import Observer, last, lives, read, told
from .rig import DOCUMENTATION, Cluster, TaskManager

HERE = Path(__file__).parent
PYTHON_JOB = HERE / "which_gpu.py"
ENDLESS = str(10**12)
PAGE = """\
import org.apache.flink.api.common.externalresource.ExternalResourceInfo;
import org.apache.flink.api.common.functions.*;

abstract class Page extends RichMapFunction<Long, Long> {{ {} }}
"""

pytestmark = marks("javac", "openjdk-17-jdk-headless")


@pytest.fixture(scope="module")
def java_job(flink: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The words that run WhichGpu.java, compiled against this Flink, as is what docs/flink.md shows."""
    folder = tmp_path_factory.mktemp("java")
    [shown] = re.findall(r"^```java\n(.*?)^```$", (DOCUMENTATION / "flink.md").read_text(), re.DOTALL | re.MULTILINE)
    page = folder / "Page.java"
    page.write_text(PAGE.format(shown))
    run("javac", "--class-path", f"{flink}/lib/*", "-d", folder / "classes", HERE / "WhichGpu.java", page)
    archive = shutil.make_archive(str(folder / "job"), "zip", folder / "classes")
    return ["--class", "WhichGpu", Path(archive).rename(folder / "job.jar")]


def test_java_operators_are_told_the_devices_of_their_task_manager(
    two_by_two: Cluster, java_job: list[str | Path], tmp_path: Path
) -> None:
    two_by_two.submit("--parallelism", "4", *java_job, tmp_path, "4")
    assert len([*tmp_path.iterdir()]) == 4
    assert told(read(tmp_path, "java")) == held(two_by_two)


def test_operators_are_told_the_devices_of_their_task_manager(two_by_two: Cluster, tmp_path: Path) -> None:
    two_by_two.submit("--parallelism", "2", "--python", PYTHON_JOB, "each", tmp_path, "40")
    for kind in ("stream", "table", "pandas"):
        assert told(read(tmp_path, kind)) == held(two_by_two)


def test_each_worker_has_a_share_of_its_own(two_by_two: Cluster, tmp_path: Path) -> None:
    two_by_two.submit("--parallelism", "4", "--python", PYTHON_JOB, "own", tmp_path, "40")
    shares = {(report.reporter, report.task_manager, report.devices) for report in read(tmp_path, "stream")}
    assert len({worker for worker, _, _ in shares}) == 4
    told = [(whose, device) for _, whose, device in shares]
    assert sorted(told) == sorted(
        (each.pid, device) for each in two_by_two.two_task_managers() for device in each.devices
    )


def test_operators_in_thread_mode_are_told_the_devices_of_their_task_manager(
    two_by_two: Cluster, tmp_path: Path
) -> None:
    mode = "-Dpython.execution-mode=thread"
    two_by_two.submit("--parallelism", "2", mode, "--python", PYTHON_JOB, "one", tmp_path, "40")
    for kind in ("stream", "table", "pandas"):
        assert told(read(tmp_path, kind)) == held(two_by_two)
    assert all(report.reporter == report.task_manager for report in read(tmp_path, "stream"))


def test_unmodified_operators_see_the_devices_of_their_task_manager(
    two_by_two: Cluster, flink: Path, tmp_path: Path
) -> None:
    executable = tmp_path / "externalresource-python"  # as it is installed beside PyFlink
    text = (HERE.parents[1] / "packaging" / executable.name).read_text()
    executable.write_text(text.replace("python", str(python_of(flink)), 1))
    executable.chmod(0o755)
    reports = tmp_path / "reports"
    reports.mkdir()
    two_by_two.submit(
        *("--parallelism", "2", "--pyExecutable", executable, "--python", PYTHON_JOB, "one", reports, "40"),
    )
    for kind in ("stream", "table", "pandas"):
        assert told(read(reports, kind)) == held(two_by_two, seen=True)


def test_no_device_is_in_two_hands_while_task_managers_are_killed_under_load(
    two_by_two: Cluster, java_job: list[str | Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rounds = 3 if request.node.get_closest_marker("sweep") else 1
    everybody = [*two_by_two.two_task_managers()]
    observer = Observer(two_by_two, everybody)
    submit_endless(two_by_two, tmp_path, java_job, ["--python", PYTHON_JOB, "stream"])
    for _ in range(rounds):
        replace_both(observer, tmp_path, *everybody[-2:])
    observer.until(lambda: busy(tmp_path, everybody[-2:]), "both TaskManagers work")
    expected = [(each.pid, ",".join(each.devices)) for each in everybody]
    assert [len(each.devices) for each in everybody] == [2] * (2 + 2 * rounds)
    reports = read(tmp_path, "*")
    assert {(report.task_manager, report.devices) for report in reports} == set(expected)
    assert doubles(lives(reports, observer.killed)) == []
    orphans = {report.reporter for report in read(tmp_path, "stream")} - {
        report.reporter for report in last(tmp_path, "stream") if report.task_manager in living(everybody)
    }
    assert orphans  # not one for each: Flink may give both slots of a TaskManager to the job in Java
    observer.until(lambda: not any(map(works, orphans)), "the workers of the killed ones have ended")


def held(cluster: Cluster, *, seen: bool = False) -> list[tuple[int, str, str]]:
    """What each TaskManager holds, by Flink's own word and by the coordination file; and what its operators see."""
    pair = cluster.two_task_managers()
    assert cluster.claims() == sorted((index, each.pid) for each in pair for index in each.devices)
    assert sorted(pair[0].devices + pair[1].devices) == ["0", "1", "2", "3"]
    return sorted((each.pid, ",".join(each.devices), mask_of(each) if seen else "unset") for each in pair)


def mask_of(task_manager: TaskManager) -> str:
    return ",".join(f"GPU-00000000-0000-4000-8000-00000000000{index}" for index in task_manager.devices)


def submit_endless(cluster: Cluster, folder: Path, *jobs: list[str | Path]) -> None:
    """Each job is on its way, on one slot of each TaskManager."""
    with ThreadPoolExecutor() as pool:
        words = [["--detached", "--parallelism", "2", *job, folder, ENDLESS] for job in jobs]
        for submitted in [pool.submit(cluster.submit, *each) for each in words]:
            submitted.result()


def living(task_managers: Sequence[TaskManager]) -> set[int]:
    return {each.pid for each in task_managers if each.lives}


def works(pid: int) -> bool:
    """There is such a process, and not only its last status for whoever started it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def busy(folder: Path, pair: Sequence[TaskManager]) -> bool:
    """Both have operators that work, and both jobs are at work; which one has got which slots is Flink's business."""
    pids = {each.pid for each in pair}
    java, python = ({report.task_manager for report in last(folder, kind)} & pids for kind in ("java", "stream"))
    return bool(java and python) and java | python == pids


def replace_both(observer: Observer, folder: Path, first: TaskManager, second: TaskManager) -> None:
    """Both are killed while they work: the second one before the cluster knows the heir of the first one."""
    observer.until(lambda: busy(folder, [first, second]), "both TaskManagers work")
    replace(observer, first)
    since = time.monotonic_ns()
    observer.until(
        lambda: any(report.when > since and report.task_manager == second.pid for report in last(folder, "*")),
        "the other one works on",
    )
    replace(observer, second)


def replace(observer: Observer, victim: TaskManager) -> None:
    """It is killed; another one has been told its devices, and is on its way to the cluster."""
    observer.killed[victim.pid] = time.monotonic_ns()
    victim.kill_alone()
    heir = observer.cluster.start_task_manager()
    observer.task_managers.append(heir)
    observer.until(lambda: heir.devices, f"the TaskManager that replaces pid {victim.pid} is told its devices")
