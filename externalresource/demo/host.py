"""The processes of the demo: TaskManagers that share one configuration file and one coordination file."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from externalresource.demo.gpus import Gpus
from externalresource.errors import ExternalResourceError

_AMOUNT = "external-resource.gpu.amount"
_GRACE = 5.0  # seconds that a TaskManager has to end


@dataclass(frozen=True, slots=True)
class Report:
    """What a TaskManager says once it has read its digits, or was refused."""

    number: int
    pid: int
    refused: str | None = None
    devices: Sequence[str] = ()
    mask: str = ""
    library: str = ""
    accuracy: float = 0.0
    images: Sequence[Sequence[Sequence[float]]] = ()
    answers: Sequence[int] = ()


class Host:
    """What the TaskManagers of the demo share. `close` ends them all, whatever they are doing."""

    def __init__(self, folder: str, gpus: Gpus) -> None:
        self.gpus = gpus
        self.configuration = gpus.configuration()
        self._config = os.path.join(folder, "config.yaml")
        with open(self._config, "w", encoding="utf-8") as file:
            file.write(self.configuration)
        self._task_managers: list[_TaskManager] = []

    def start(self, count: int, *, amount: int = 1) -> list[Report]:
        """Start so many TaskManagers at once and return what they say."""
        first = len(self._task_managers) + 1
        for number in range(first, first + count):
            words = [self._config, str(number), self.gpus.libraries, f"{_AMOUNT}={amount}"]
            self._task_managers.append(_TaskManager(number, words))
        return [task_manager.report() for task_manager in self._task_managers[-count:]]

    def kill(self, number: int) -> None:
        self._task_managers[number - 1].kill()

    def end(self) -> None:
        for task_manager in self._task_managers:
            task_manager.end()
        for task_manager in self._task_managers:
            task_manager.wait()

    def close(self) -> None:
        for task_manager in self._task_managers:
            task_manager.kill()


class _TaskManager:
    """A TaskManager process. It ends when the pipe to its stdin does, and so with the process that started it."""

    def __init__(self, number: int, words: Sequence[str]) -> None:
        self._number = number
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "externalresource.demo.task_manager", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # several of them share the processors
        )

    def report(self) -> Report:
        """Wait for what it says."""
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise ExternalResourceError(f"TaskManager {self._number} failed: {self._last_words()}")
        return Report(number=self._number, pid=self._process.pid, **json.loads(line))

    def end(self) -> None:
        """Let it give back what it holds, and end."""
        _pipe(self._process.stdin).close()

    def wait(self) -> None:
        """Return when it has ended, or is stuck in its driver."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)

    def kill(self) -> None:
        self._process.kill()
        self.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            _pipe(stream).close()

    def _last_words(self) -> str:
        self.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process was started without this pipe")
    return stream
