"""A process of its own in which the conformance tests use a driver, from both of its ends.

Started as `python -m externalresource.testing.process FACTORY OPTIONS DESCRIPTOR`. It reads one JSON list a line from
stdin, what to do and its arguments, and answers one JSON object a line on the descriptor: stdout is the driver's.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from externalresource import errors
from externalresource.drivers import ExternalResourceDriver, NotOfferedError, create_driver, properties
from externalresource.errors import ExternalResourceError

Properties = Mapping[str, str]


class Process:
    """A process that makes a driver, does with it what it is asked to, and ends when it is closed."""

    def __init__(self, factory: str, options: Mapping[str, str], patience: float) -> None:
        self._patience = patience
        answers, end = os.pipe()
        self._answers = os.fdopen(answers, encoding="utf-8")
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, factory, json.dumps(dict(options)), str(end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[end],
            )
        finally:
            os.close(end)
        self.pid = self._child.pid

    def begin(self, *words: object) -> None:
        if self._child.stdin is not None:
            print(json.dumps(words), file=self._child.stdin, flush=True)

    def busy(self, seconds: float) -> bool:
        """Wait for the answer for so long; True if there is none."""
        return not select.select([self._answers], [], [], seconds)[0]

    def answer(self) -> Any:
        """Return what was asked for, or raise the driver's error. RuntimeError for one that is none of ours."""
        if self.busy(self._patience):
            raise RuntimeError(f"the driver is still busy after {self._patience:g} s")
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the driver ended its process with {self._child.wait()}")
        answer = json.loads(line)
        if "raised" not in answer:
            return answer["done"]
        kind = getattr(errors, answer["raised"], None)
        if kind is None:
            raise RuntimeError(f"the driver raised {answer['raised']}, none of our errors: {answer['said']}")
        raise kind(answer["said"])

    def ask(self, *words: object) -> Any:
        self.begin(*words)
        return self.answer()

    def retrieve(self, amount: int) -> list[Properties]:
        """Return the properties of so many devices, which it holds from now on."""
        found: list[Properties] = self.ask("retrieve", amount)
        return found

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def output(self) -> str:
        """Let it end, and return what it has printed."""
        return self._child.communicate(timeout=self._patience)[0]

    def close(self) -> None:
        self.kill()
        self._child.communicate()
        self._answers.close()


def main() -> None:
    factory, options, descriptor = sys.argv[1:]
    driver: ExternalResourceDriver | None = None
    os.set_inheritable(int(descriptor), False)  # or a child of the driver would hold it open
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            word, *arguments = json.loads(line)
            try:
                driver = create_driver(factory, json.loads(options)) if driver is None else driver
                answer = {"done": _ACTIONS[word](driver, *arguments)}
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised at the other end
                answer = {"raised": _kind(error), "said": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


def _all(driver: ExternalResourceDriver) -> None:
    infos = driver.retrieve_resource_info(1)
    for use in (driver.devices, driver.held, lambda: driver.environment(infos)):
        with suppress(NotOfferedError):
            use()
    driver.close()


def _fork(driver: ExternalResourceDriver) -> int:
    """Return the exit status of a forked child that closes the driver, and ends as a program of Python does."""
    child = os.fork()
    if child == 0:
        try:
            driver.close()
        except BaseException:  # noqa: BLE001 - the status tells of it: the parent's answers are not to be written here
            os._exit(1)
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


_ACTIONS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "retrieve": lambda driver, amount: [properties(info) for info in driver.retrieve_resource_info(amount)],
        "close": lambda driver: driver.close(),
        "all": _all,
        "fork": _fork,
    }
)


def _kind(error: Exception) -> str:
    """Return the name of our kind of errors that this one is of, else its own."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == ExternalResourceError.__module__]
    return kinds[0] if kinds else type(error).__name__


if __name__ == "__main__":
    main()
