import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.processes import Running, Start

R = TypeVar("R")


@pytest.fixture
def path() -> Iterator[str]:
    """Yield a coordination file that is not there yet, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:  # of a short name: a socket's is limited
        yield f"{folder}/gpus"


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as running:

        def start(function: Callable[[], R]) -> Running[R]:
            process = Running(function)
            running.callback(process.kill)
            return process

        yield start


@pytest.fixture
def shared() -> Iterator[Path]:
    """Yield a folder that another user can reach and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder
