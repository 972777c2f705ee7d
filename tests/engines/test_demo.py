"""The demo runs on a real Flink, and leaves nothing of it behind."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .environments import environment, lock, marks, run

VERSION = "2.3.0"

pytestmark = marks()


@pytest.fixture(scope="module")
def command(wheel: Path) -> Iterator[list[str | Path]]:
    """Our command where Flink is, with what the demo needs: nobody installs anything there meanwhile."""
    folder = environment("apache-flink", VERSION)
    python = folder / "bin" / "python"
    with lock(folder):
        run(python, "-m", "pip", "uninstall", "--yes", "externalresource")  # pip would keep one of the same version
        run(python, "-m", "pip", "install", "--disable-pip-version-check", f"{wheel}[demo]", f"apache-flink=={VERSION}")
        run(python, "-m", "pip", "check")
        yield [folder / "bin" / "externalresource", "demo", "--flink"]


@pytest.fixture(scope="module")
def shown(command: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the demo prints. It succeeded, and nothing is left of it."""
    folder = tmp_path_factory.mktemp("whole")
    with start(command, folder) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert left(folder) == []
    return out


def start(command: list[str | Path], folder: Path) -> "subprocess.Popen[str]":
    own = {name: value for name, value in os.environ.items() if not name.startswith("EXTERNALRESOURCE_")}
    settings = {"TMPDIR": str(folder), "PYTHONUTF8": "1", "EXTERNALRESOURCE_GPU_SIMULATE": "0"}
    return subprocess.Popen(
        command, env=own | settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def left(folder: Path) -> list[Path | str]:
    """What the demo has left: files, and the processes that have the folder in their environment."""
    return [*folder.iterdir(), *processes(folder)]


def processes(folder: Path) -> list[str]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if os.fsencode(folder) in environ.read_bytes():
                found.append((environ.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def rows(shown: str, *headings: str) -> list[list[str]]:
    """The cells of the table below these headings, in the order of its lines."""
    table = re.search(rf"^  {' +'.join(headings)}\n((?:  \S.*\n)+)", shown, re.MULTILINE)
    assert table, shown
    return [line.split() for line in table[1].splitlines()]


def test_two_task_managers_have_different_gpus(shown: str) -> None:
    members = rows(shown, "TaskManager", "PID", "GPU")
    assert [number for number, _, _ in members] == ["1", "2"]
    assert {gpu for _, _, gpu in members} == {"0", "1"}


def test_a_coordination_file_of_their_own_says_so_too(shown: str) -> None:
    assert re.search(r"^ +--coordination-file \S+/whole\S+/coordination$", shown, re.MULTILINE)
    claims = rows(shown, "GPU", "PID", "program", "since", "the process")
    assert sorted((pid, gpu) for gpu, pid, *_ in claims) == sorted(
        (pid, gpu) for _, pid, gpu in rows(shown, "TaskManager", "PID", "GPU")
    )


def test_each_part_is_read_on_the_gpu_of_its_task_manager(shown: str) -> None:
    subtasks = rows(shown, "subtask", "PID", "TaskManager", "GPU", "digits", "accuracy")
    gpus = {number: gpu for number, _, gpu in rows(shown, "TaskManager", "PID", "GPU")}
    assert {number: gpu for _, _, number, gpu, *_ in subtasks} == gpus
    assert sum(int(digits) for *_, digits, _ in subtasks) == 597
    assert all(float(accuracy.rstrip("%")) > 90 for *_, accuracy in subtasks)


def test_the_accuracy_of_the_whole_is_that_of_the_parts(shown: str) -> None:
    said = re.search(
        r"^With NumPy they read (\d+) of 597 digits correctly, an accuracy of ([\d.]+)%", shown, re.MULTILINE
    )
    assert said
    assert float(said[2]) == pytest.approx(100 * int(said[1]) / 597, abs=0.05)
    assert float(said[2]) > 90


@pytest.mark.sweep  # another whole cluster; tests/demo interrupts the demo at a stand-in for Flink
def test_interrupt_leaves_nothing_behind(command: list[str | Path], tmp_path: Path) -> None:
    with start(command, tmp_path) as process:
        assert process.stdout
        assert any("It is accepted." in line for line in process.stdout)
        deadline = time.monotonic() + 60
        while not any("pyflink-udf-runner" in words for words in processes(tmp_path)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert left(tmp_path) == []
