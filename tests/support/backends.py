"""What tests of all backends say."""

import re
import time
from collections.abc import Callable

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import create
from externalresource_gpu.backends.simulated.backend import Simulated
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device

Written = Callable[[str], str]  # writes the description of a machine, and returns its path

#: Of simulated devices.
UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MIG_UUID = re.compile(UUID.pattern.replace("GPU", "MIG"))


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def simulated(what: str) -> list[Device]:
    backend = create("simulated", what)
    backend.start()
    return backend.devices(time.monotonic())


def links(what: str) -> Links:
    backend = Simulated(what, topology=True)
    backend.devices(time.monotonic())
    return backend.links(time.monotonic())


def message(error: pytest.ExceptionInfo[DiscoveryError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
