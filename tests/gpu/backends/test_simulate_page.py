"""What docs/simulate.md shows is so: its files are read, its commands print what stands below them, its test passes."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from externalresource_gpu.backends.simulated import machine_file, made_up

PAGE = (Path(__file__).parents[3] / "docs" / "simulate.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FILES = {text.split("\n")[0].removeprefix("# ").split(":")[0]: text for language, text in BLOCKS if language == "yaml"}
PYTHON = [text for language, text in BLOCKS if language == "python"]
CONSOLE = "".join(text for language, text in BLOCKS if language == "console")
COMMANDS = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)
ROWS = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(folder: Path, *command: str) -> str:
    ours = ("EXTERNALRESOURCE_", "CUDA_", "PYTEST_", "COVERAGE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PATH"] = f"{sysconfig.get_path('scripts')}:{environment['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout


def without_seconds(text: str) -> str:
    return re.sub(r"within \d+\.\d s", "within # s", text)


@pytest.mark.parametrize(("command", "output"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_prints_what_the_page_shows(folder: Path, command: str, output: str) -> None:
    assert without_seconds(run(folder, "bash", "-c", command)) == without_seconds(output)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read(folder: Path, name: str) -> None:
    machine_file.read(str(folder / name), name)


def test_one_file_uses_all_there_is(folder: Path) -> None:
    machine = machine_file.read(str(folder / "all.yaml"), "seed")
    assert [device.index for device in machine.devices] == [0, 2, 3]
    assert machine.links == {(0, 2): "NV12", (0, 3): "SYS"}
    assert machine.driver.seconds == 0.5
    keys = set(re.findall(r"(\w+):(?: |$)", FILES["all.yaml"], re.MULTILINE))
    assert machine_file.KEYS - {"fails", "says", "crashes"} <= keys


@pytest.mark.parametrize("text", PYTHON)
def test_the_test_of_the_page_passes(folder: Path, text: str) -> None:
    (folder / "test_page.py").write_text(text, encoding="utf-8")
    assert "1 passed" in run(folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py")


def test_every_machine_stands_in_the_table_with_what_it_has() -> None:
    found = []
    for name in made_up.names():
        devices = machine_file.read(made_up.path(name), name).devices
        found.append((name, str(len(devices)), str(sum(len(device.instances) for device in devices))))
    assert found == ROWS


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "python", "yaml"}
