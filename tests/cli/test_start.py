"""What a command imports: a room, and what costs, only where it is used."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from externalresource.cli.main import cli

COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")
#: What click does not bring, takes a millisecond or more, and is not needed to claim a device.
COSTLY = {"filelock", "importlib.metadata", "logging", "shutil", "subprocess", "tempfile", "urllib", "yaml"}


def imported(tmp_path: Path, *words: str) -> set[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")} | {
        "EXTERNALRESOURCE_GPU_SIMULATE": "2",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(tmp_path / "claims"),
        "PYTHONPROFILEIMPORTTIME": "1",
    }
    done = subprocess.run([COMMAND, *words], env=environment, capture_output=True, text=True, check=True)
    return set(re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.MULTILINE))


def test_help_of_a_command_enters_no_room_but_the_command_line(tmp_path: Path) -> None:
    ours = {name for name in imported(tmp_path, "discover", "--help") if name.startswith("externalresource")}
    rooms = {".".join(name.split(".")[:2]) for name in ours}
    assert rooms == {"externalresource", "externalresource.cli", "externalresource.errors", "externalresource.faces"}
    assert not {f"externalresource.cli.{other}" for other in ("demo", "flink", "holders", "plugins", "run")} & ours


@pytest.mark.parametrize("words", [("discover", "--help"), ("status",), ("run", "gpu=1", "--", "true")])
def test_command_imports_nothing_that_costs_and_is_not_needed(tmp_path: Path, words: tuple[str, ...]) -> None:
    found = imported(tmp_path, *words)
    assert COSTLY & found == set()
    assert not {name for name in found if name.startswith("externalresource.flink")}


def test_each_command_is_found_where_it_is_said_to_be() -> None:
    context = cli.make_context("externalresource", [], resilient_parsing=True)
    names = cli.list_commands(context)
    assert [command.name for name in names if (command := cli.get_command(context, name))] == names
