"""What a terminal shows of one that waits."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sysconfig
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.claiming import (
    LONG,
    Asker,
    claim,
    script,
)
from tests.support.devices import Device
from tests.support.processes import Start


def on_a_terminal(path: str, columns: int, held: Asker, command: Sequence[str] = ()) -> tuple[list[str], str]:
    """Return what the script, or another command, shows on a terminal until it has the device, and its answer."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    shown = b""
    with subprocess.Popen(
        command or script(path, 1, f"--wait={LONG:g}"), stdout=subprocess.PIPE, stderr=end, text=True
    ) as process:
        os.close(end)
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while block := os.read(terminal, 1024):
                shown += block
                held.kill()
        assert process.stdout
        answer = process.stdout.read()
    os.close(terminal)
    return shown.decode().split("\r\x1b[K"), answer


@pytest.mark.parametrize("columns", [30, 200])
def test_terminal_shows_one_line_that_is_replaced_and_cleared(path: str, held: Asker, columns: int) -> None:
    lines, answer = on_a_terminal(path, columns, held)
    assert answer == "0\n"
    assert (lines[0], lines[-1]) == ("", "")
    expected = rf"waiting 0 s: 1 wanted, 0 of 1 free; held by pid {held.pid} \(.*\), since \S+: 0"
    for line in lines[1:-1]:
        assert len(line) < columns
        assert "\n" not in line
    if columns == 200:
        assert re.fullmatch(expected, lines[1])


def test_run_shows_on_its_terminal_that_its_script_waits(path: str, held: Asker) -> None:
    options = ["--simulate", "1", "--coordination-file", path, "--wait", "60"]
    run = [str(Path(sysconfig.get_path("scripts")) / "externalresource"), "run", "gpu=1", *options]
    lines, answer = on_a_terminal(path, 200, held, [*run, "--", "echo", "x"])
    assert answer == "x\n"
    assert lines[1].startswith(f"waiting 0 s: 1 wanted, 0 of 1 free; held by pid {held.pid} ")
    assert lines[-1] == ""


def test_name_of_a_program_does_not_control_the_terminal(path: str, start: Start) -> None:
    def renamed() -> list[Device]:
        Path("/proc/self/comm").write_bytes(b"\x1b[31m\nred")
        return claim(path, 1, [Device("0")])

    holder = start(renamed)
    holder.result()
    lines, _ = on_a_terminal(path, 200, holder)
    assert "(?[31m?red)" in lines[1]
