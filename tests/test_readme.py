"""The README's blocks are run, in order and in one folder, and print what stands below them."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from externalresource.flink import configuration

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files that the README shows under their names."""
    for language, text in BLOCKS:
        if named := language == "yaml" and re.match(r"# (\w+\.yaml)\n", text):
            (tmp_path / named.group(1)).write_text(text)
    return tmp_path


def run(folder: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "EXTERNALRESOURCE_GPU_SIMULATE": "2",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(folder / "coordination"),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout


def shape(text: str) -> list[str]:
    """Return the words of each line without what differs from run to run: numbers, and how wide they are."""
    return [" ".join(re.sub(r"\d+(\.\d+)?", "#", line).split()) for line in text.splitlines()]


def console() -> list[tuple[str, str]]:
    """Return each command with the output below it."""
    text = "".join(block for language, block in BLOCKS if language == "console")
    return [
        (command, output)
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
        if command != "scripts/test"  # it would run itself
    ]


@pytest.mark.parametrize(("command", "output"), console(), ids=lambda value: value[:40])
def test_a_command_prints_what_the_readme_shows(folder: Path, command: str, output: str) -> None:
    if command.startswith("scripts/"):
        command = f"externalresource {command.removeprefix('scripts/')}"  # as set up: the wheel that is tested here
    printed, start = shape(run(folder, "bash", "-c", command)), 0
    for part in "\n".join(shape(output)).split("..."):  # in the README three dots stand for lines left out
        lines = part.strip("\n").split("\n")
        places = [at for at in range(start, len(printed) + 1) if printed[at : at + len(lines)] == lines]
        assert places or not part.strip(), f"{lines} is not in {printed[start:]}"
        start = places[0] + len(lines) if places else start


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (text, BLOCKS[number + 1][1])
        for number, (language, text) in enumerate(BLOCKS)
        if language == "python" and BLOCKS[number + 1][0] == "text"
    ],
)
def test_python_code_prints_what_the_readme_shows(folder: Path, code: str, output: str) -> None:
    assert run(folder, sys.executable, "-c", code) == output


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "yaml"])
def test_a_configuration_is_read(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    (resource,) = configuration.load(folder)
    assert (resource.name, resource.amount) == ("gpu", 1)
    args = "--enable-coordination-mode" if resource.driver_factory == configuration.GPU_FACTORY else None
    assert resource.options.get("discovery-script.args") == args


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "python", "text", "yaml"}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
