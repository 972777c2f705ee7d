import pytest

from tests.support.claiming import Asker, claim, gpus
from tests.support.devices import Device
from tests.support.processes import Start


def holder_of(device: Device, path: str, start: Start) -> Asker:
    holder = start(lambda: claim(path, 1, [device]))
    holder.result()
    return holder


@pytest.fixture
def holder(path: str, start: Start) -> Asker:
    """Return another process, which holds the first GPU; its claim is freed by killing it."""
    return holder_of(gpus(1)[0], path, start)


@pytest.fixture
def held(path: str, start: Start) -> Asker:
    """Return another process, which holds the only GPU that the script sees."""
    return holder_of(Device("0"), path, start)
