"""A process of the demo on real Flink: a JVM that one of Flink's scripts became, and all that this one starts."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

_TO_DIE = 5.0  # seconds


class Process:
    """It is dead at the latest when the process that started it is, and writes into a file."""

    def __init__(self, name: str, command: Sequence[str], output: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._output = output
        # `close` ends it; this is for when we are killed ourselves. The scripts become java, and keep the pid.
        bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with open(output, "wb") as stream:
            self._process = subprocess.Popen(
                [*bound, *command],
                cwd=os.path.dirname(output),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                process_group=0,  # a Ctrl-C is for us alone, and what it starts can be killed with it
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def line(self, text: str) -> str | None:
        """Return the first whole line of what it said that contains the text."""
        return next((line for line in self._lines() if text in line), None)

    @property
    def complaint(self) -> str:
        """The last line that tells of an error, else the last one."""
        lines = [line for line in self._lines() if line]
        errors = [line for line in lines if re.search(r"(Error|Exception)\b", line) and not line.startswith("at ")]
        return next(reversed(errors or lines), "it said nothing")

    def _lines(self) -> list[str]:
        with open(self._output, encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file if line.endswith("\n")]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Return when it is gone, and with it what it started and what may still write into its folder."""
        self._process.wait()
        deadline = time.monotonic() + _TO_DIE
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(0.01)
