"""The processes of a demo, each with all that it starts: they end with the demo, however that happens."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping

from externalresource.errors import ExternalResourceError

_PATIENCE = 300.0  # seconds for each step, on a slow host
_TO_DIE = 5.0  # seconds
_GUARD = 'while read -r pid; do groups="$groups -$pid"; done; kill -s KILL -- $groups'
_GUARDED = 'echo "$$" >&0; exec "$@" </dev/null'  # it names itself: we may be interrupted before we know its pid
_PYTHON_ERROR = re.compile(r"(?!java\.|org\.)[\w.]+(Error|Exception): ")
_ERROR = re.compile(r"(?!at ).*(Error|Exception)\b")


class Process:
    """It is the first of a group, and writes into a file."""

    def __init__(self, name: str, output: str, process: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.pid = process.pid
        self._output = output
        self._process = process
        self._is_to_end = False

    @property
    def has_failed(self) -> bool:
        return self._process.poll() is not None and not self._is_to_end

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

    def end(self, by: signal.Signals) -> None:
        self._is_to_end = True
        self._process.send_signal(by)

    def wait(self) -> None:
        """Return when it is gone, and all that it started, which may still write into its folder."""
        deadline = time.monotonic() + _TO_DIE
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                self._process.poll()
                os.killpg(self.pid, 0)
                time.sleep(0.01)


class Processes:
    """Those of one demo. They are killed, and all that they have started, when it is closed or we end."""

    def __init__(self, folder: str, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**environment, "OMP_NUM_THREADS": "1"}  # several of them share the processors
        self.started: list[Process] = []
        # A JVM that is killed leaves its Python workers behind: a death signal for each JVM would not do.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
        )

    def begin(self, name: str, *command: str) -> Process:
        """Start a program, or a script that becomes one; no two have the same name."""
        output = os.path.join(self._folder, f"{name}.out")
        with open(output, "wb") as stream:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED, "sh", *command],  # which keeps the pid
                cwd=self._folder,
                env=self._environment,
                stdin=self._guard.stdin,
                stdout=stream,
                stderr=subprocess.STDOUT,
                process_group=0,  # a Ctrl-C is for us alone
            )
        self.started.append(Process(name, output, process))
        return self.started[-1]

    def line(self, process: Process, text: str) -> str:
        """Return the line with the text, once the process has written it; ExternalResourceError if one has failed."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            failed = [each for each in self.started if each.has_failed]
            if line := process.line(text):
                return line
            for each in failed:
                raise ExternalResourceError(f"{each.name} failed: {each.complaint}")
            if time.monotonic() > deadline:
                raise ExternalResourceError(f"{process.name} is stuck for {_PATIENCE:.0f} s: {process.complaint}")
            time.sleep(0.1)

    def close(self) -> None:
        self._guard.communicate()
        for process in self.started:
            process.wait()
