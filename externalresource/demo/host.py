"""The processes of the demo: TaskManagers that share one configuration file and one coordination file."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from externalresource.demo.gpus import Gpus
from externalresource.demo.processes import Process, Processes

_AMOUNT = "external-resource.gpu.amount"


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
        self._processes = Processes(folder, os.environ)
        self._task_managers: list[Process] = []
        self.close = self._processes.close

    def start(self, count: int, *, amount: int = 1) -> list[Report]:
        """Start so many TaskManagers at once and return what they say."""
        program = [sys.executable, "-P", "-m", "externalresource.demo.task_manager", self._config]
        first = len(self._task_managers) + 1
        numbers = range(first, first + count)
        for number in numbers:
            words = [*program, str(number), self.gpus.libraries, f"{_AMOUNT}={amount}"]
            self._task_managers.append(self._processes.start(f"TaskManager {number}", *words))
        return [self._report(number) for number in numbers]

    def _report(self, number: int) -> Report:
        process = self._task_managers[number - 1]
        return Report(number, process.pid, **json.loads(self._processes.line(process, '"refused"')))

    def kill(self, number: int) -> None:
        process = self._task_managers[number - 1]
        process.end(signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """Let them give back what they hold, and end."""
        for process in self._task_managers:
            process.end(signal.SIGTERM)
        for process in self._task_managers:
            process.wait()
