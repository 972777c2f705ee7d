"""A process of the demo on real Flink: a JVM that one of Flink's scripts became, and all that this one starts."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

_TO_DIE = 5.0  # seconds
_GUARD = 'while read -r pid; do groups="$groups -$pid"; done; kill -s KILL -- $groups'
_GUARDED = 'echo "$$" >&0; exec "$@" </dev/null'  # it names itself: we may be interrupted before we know its pid
_PYTHON_ERROR = re.compile(r"(?!java\.|org\.)[\w.]+(Error|Exception): ")
_ERROR = re.compile(r"(?!at ).*(Error|Exception)\b")


class Guard:
    """Kills processes, and all that they have started, when it is closed or we end, however that happens."""

    def __init__(self) -> None:
        # A JVM that is killed leaves its Python workers behind: a death signal for each JVM would not do.
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
        )

    @property
    def pipe(self) -> IO[bytes]:
        """Where a process that is to be killed then writes its pid."""
        if self._shell.stdin is None:
            raise ValueError("the shell was started without this pipe")
        return self._shell.stdin

    def close(self) -> None:
        self.pipe.close()
        self._shell.wait()


class Process:
    """It is the first of a group, and writes into a file."""

    def __init__(
        self, name: str, command: Sequence[str], output: str, environment: Mapping[str, str], guard: Guard
    ) -> None:
        self.name = name
        self._output = output
        with open(output, "wb") as stream:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED, "sh", *command],  # which become java, and keep the pid
                cwd=os.path.dirname(output),
                env=environment,
                stdin=guard.pipe,
                stdout=stream,
                stderr=subprocess.STDOUT,
                process_group=0,  # a Ctrl-C is for us alone
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
        """The last error of Python that it wrote of, else of Java, else just what it said last."""
        lines = [line.removeprefix("Caused by: ") for line in self._lines() if line]
        kinds = [list(filter(_PYTHON_ERROR.match, lines)), list(filter(_ERROR.match, lines)), lines]
        return next((kind[-1] for kind in kinds if kind), "it said nothing")

    def _lines(self) -> list[str]:
        with open(self._output, encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file if line.endswith("\n")]

    def wait(self) -> None:
        """Return when it is gone, and all that it started, which may still write into its folder."""
        deadline = time.monotonic() + _TO_DIE
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                self._process.poll()
                os.killpg(self.pid, 0)
                time.sleep(0.01)
