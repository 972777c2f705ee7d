import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.discovery_host import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.go.touch()  # whatever still waits for it shall end


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that lives."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture(params=["SIGTERM", "SIGINT", "SIGHUP"])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored by what is started here, as it is under nohup and in a shell's background."""
    number = signal.Signals[request.param]
    before = signal.signal(number, lambda *_: None)
    yield number
    signal.signal(number, before)
