"""What docs/discovery.md shows is so: its commands print what stands below them."""

import re
from pathlib import Path

import pytest

from externalresource_gpu.choosing import policies
from externalresource_gpu.script.options import OPTIONS
from tests.gpu.backends.test_simulate_page import run

PAGE = (Path(__file__).parents[3] / "docs" / "discovery.md").read_text(encoding="utf-8")
CONSOLE = "".join(re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_prints_what_the_page_of_discovery_shows(tmp_path: Path, command: str, output: str) -> None:
    assert run(tmp_path, "bash", "-c", command) == output


def test_every_policy_stands_in_the_table() -> None:
    assert {*re.findall(r"^\| `(\w+)` \| th", PAGE, re.MULTILINE)} == {*OPTIONS["policy"].words} == {*policies.POLICIES}


def test_use_begins_where_the_page_says() -> None:
    assert f"({policies.USED} MiB and more are use" in PAGE
