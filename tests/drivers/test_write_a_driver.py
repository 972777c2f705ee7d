"""What docs/write-a-driver.md shows is so: a stranger who types it in, in this order, has these files and sees this."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.support.plugins import Once

PAGE = (Path(__file__).parents[2] / "docs" / "write-a-driver.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FILES = {text.split()[1].strip(";"): text for language, text in BLOCKS if language in ("python", "toml")}
CONSOLE = "".join(text for language, text in BLOCKS if language == "console")
COMMANDS = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)


def fill(folder: Path) -> None:
    """Type in the files, then the commands in turn; keep what these print."""
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    printed = [run(folder, "bash", "-c", tried(command, folder)) for command, _ in COMMANDS]
    (folder / "printed").write_text(json.dumps(printed), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(once: Once) -> Path:
    return once("page", fill)


@pytest.fixture(scope="module")
def printed(folder: Path) -> list[str]:
    """Return what each command printed."""
    printed: list[str] = json.loads((folder / "printed").read_text(encoding="utf-8"))
    return printed


def tried(command: str, folder: Path) -> str:
    """Return the command with the places where a test may leave something."""
    kind = "fpga" if "fpga" in command else "card"
    command = re.sub(r"^(externalresource \w+)", rf"\1 --coordination-file {folder}/{kind}-claims", command)
    here = f"{sys.executable} -m pip install --no-deps --disable-pip-version-check --target {folder}/installed"
    return command.replace("pip install", here)


def run(folder: Path, *command: str) -> str:
    ours = ("EXTERNALRESOURCE_", "PYTEST_", "COVERAGE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PATH"] = f"{sysconfig.get_path('scripts')}:{environment['PATH']}"
    environment["PYTHONPATH"] = f".:{folder}/installed"
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[command for command, _ in COMMANDS])
def test_command_prints_what_the_page_shows(number: int, printed: list[str]) -> None:
    assert printed[number] == COMMANDS[number][1]


def test_suite_passes_on_the_example(folder: Path) -> None:
    said = run(folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_fpga.py").splitlines()[-1]
    assert re.match(r"\d+ passed, \d skipped", said), said


def test_hook_has_the_coordination_in_one_call(folder: Path) -> None:
    code = f"""
import externalresource
options = {{"coordination-file": "{folder}/board-claims"}}
for _ in range(3):
    context = externalresource.claim("board", driver_factory="boards:", options=options)
    print([board.get_property("index") for board in context.get_external_resource_infos("board")], flush=True)
"""
    lines = run(folder, sys.executable, "-c", code).splitlines()
    assert lines[:2] == ["['board0']", "['board1']"]
    assert "NotEnoughDevicesError: 1 wanted, 0 of 2 free" in lines[-1]


def test_wrong_option_is_refused_as_the_page_says(folder: Path) -> None:
    said = run(folder, "externalresource", "discover", "externalresource_fpga:fpga", "-o", "rot=boards")
    (shown,) = re.findall(r"All others are refused, with `(.*?)`", PAGE)
    assert said.endswith(f"{shown}\n")


def test_program_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cards.py").write_text(FILES["cards.py"], encoding="utf-8")
    said = run(tmp_path, "externalresource", "discover", "cards:card")
    assert said == "externalresource: the cards could not be listed: cat: cards.txt: No such file or directory\n"


def test_first_driver_has_at_most_15_lines() -> None:
    assert len(FILES["externalresource_fpga.py"].splitlines()) - 1 <= 15  # the first is its name


def test_entry_point_is_the_driver_of_the_page() -> None:
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    assert project["entry-points"]["externalresource"] == {"fpga": "externalresource_fpga:fpga"}
    assert "def fpga(" in FILES["externalresource_fpga.py"]


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "python", "toml"}
    assert set(FILES) == {"externalresource_fpga.py", "cards.py", "boards.py", "test_fpga.py", "pyproject.toml"}


def test_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 150
