"""What a person at a terminal sees of a command that waits."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from externalresource.cli.terminal import Progress, columns

PLUGIN = """
from externalresource.api import ExternalResourceDriver, hookimpl

class Info:
    def get_property(self, key):
        return None
    def get_keys(self):
        return ()

class Waiting(ExternalResourceDriver):
    def retrieve_resource_info(self, amount):
        if self.on_wait is not None:
            self.on_wait("another has it")
        return {Info()}
    def environment(self, infos):
        return {}

class Factory:
    @hookimpl
    def create_external_resource_driver(self, options):
        return Waiting()
"""


def shown_on(terminal: int) -> str:
    shown = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as file:  # EIO: nobody has it open any more
        while block := file.read(1024):
            shown += block
    return shown.decode()


def test_line_is_replaced_in_place_cut_to_the_width_and_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal, end = pty.openpty()
    with Progress(end) as progress:
        progress.show("a\x1bb")
        progress.show("a reason that is long")
    os.close(end)
    assert shown_on(terminal) == "\r\x1b[Kwaiting 0 s: a?b\r\x1b[Kwaiting 0 s: a reas\r\x1b[K"


def test_terminal_without_a_wait_shows_nothing() -> None:
    reading, writing = os.pipe()
    with Progress(writing):
        pass
    os.close(writing)
    assert shown_on(reading) == ""


@pytest.mark.parametrize(("told", "width"), [("40", 40), ("0", 80), ("wide", 80), (None, 80)])
def test_width_is_what_the_environment_says_else_eighty(
    told: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if told is not None:
        monkeypatch.setenv("COLUMNS", told)
    reading, writing = os.pipe()
    assert columns(writing) == width
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("at_terminal", [True, False])
def test_run_shows_for_whom_it_waits_where_somebody_looks(tmp_path: Path, *, at_terminal: bool) -> None:
    (tmp_path / "waiting.py").write_text(PLUGIN, encoding="ascii")
    terminal, end = pty.openpty() if at_terminal else os.pipe()
    command = [sys.executable, "-P", "-m", "externalresource", "run", "waiting:Factory=1", "--", "echo", "ran"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "80"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=end, text=True, check=False)
    os.close(end)
    assert shown_on(terminal) == ("\r\x1b[Kwaiting 0 s: another has it\r\x1b[K" if at_terminal else "")
    assert (done.returncode, done.stdout) == (0, "ran\n")
