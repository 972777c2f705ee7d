import subprocess
from collections.abc import Iterator

import pytest

from tests.support.processes import end


@pytest.fixture
def living() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    end(process)
