"""What tests of all backends say."""

import re
import time

import pytest

from externalresource.errors import DiscoveryError

#: Of simulated devices.
UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MIG_UUID = re.compile(UUID.pattern.replace("GPU", "MIG"))


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def message(error: pytest.ExceptionInfo[DiscoveryError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
