"""Resources are claimed in the order of their files, which two processes may have under swapped paths."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from externalresource.api import Device, ExternalResourceDriver, driver
from externalresource.context import RuntimeContext
from externalresource.errors import ConfigurationError
from tests.support.processes import NEW_MOUNTS, Running, in_namespaces, mount

NAMES = "gpu", "fpga"
WAIT = 30


def made(device_class: str, path: str, wait: float, devices: int = 1) -> ExternalResourceDriver:
    """Return the driver of a class, which has its file at that path."""
    options = {"enable-coordination-mode": "true", "coordination-file": path, "wait": str(wait)}
    factory = driver(device_class)(lambda: [Device(str(number)) for number in range(devices)])
    return factory.create_external_resource_driver(options)


def both(paths: Mapping[str, str], wait: float = WAIT) -> RuntimeContext:
    """Claim the only device of each class by the file at its path."""
    return RuntimeContext({name: (made(name, path, wait), 1) for name, path in paths.items()})


class Host:
    """Each class has its file in a folder of its own, which a process sees at one of two places."""

    def __init__(self, folder: Path) -> None:
        self.folders = {name: folder / name for name in NAMES}
        self.places = [folder / "x", folder / "y"]
        for directory in (*self.folders.values(), *self.places):
            directory.mkdir()

    def claim_as_mounted(self, *names: str) -> list[str]:
        """Claim both in a mount namespace in which the folders of these are at the two places, and give them back."""

        def claimed() -> list[str]:
            for name, place in zip(names, self.places, strict=True):
                mount(str(self.folders[name]), str(place))
            with both({name: f"{place}/ledger" for name, place in zip(names, self.places, strict=True)}):
                return [*names]

        return in_namespaces(claimed, NEW_MOUNTS)

    def waiting(self) -> int:
        queues = [folder / "ledger.queue" for folder in self.folders.values()]
        return sum(queue.read_text(encoding="ascii").count("\n") for queue in queues if queue.exists())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_two_that_wait_for_two_resources_under_swapped_paths_both_get_them(host: Host) -> None:
    holder = both({name: f"{folder}/ledger" for name, folder in host.folders.items()})
    processes = [Running(partial(host.claim_as_mounted, *names)) for names in (NAMES, NAMES[::-1])]
    try:
        deadline = time.monotonic() + WAIT
        while host.waiting() < len(processes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        holder.close()
        assert [process.result() for process in processes] == [[*NAMES], [*NAMES[::-1]]]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("waits", [(WAIT, WAIT), (WAIT, 0), (0, 0)], ids=["both wait", "one waits", "none waits"])
def test_one_file_under_two_paths_is_one_file(waits: tuple[float, float], host: Host) -> None:
    def claimed() -> str:
        for place in host.places:
            mount(str(host.folders["gpu"]), str(place))
        drivers = [
            made("gpu", f"{place}/ledger", wait, devices=2) for place, wait in zip(host.places, waits, strict=True)
        ]
        try:
            with RuntimeContext({name: (each, 1) for name, each in zip("ab", drivers, strict=True)}):
                return "claimed"
        except ConfigurationError as error:
            return str(error)

    said = in_namespaces(claimed, NEW_MOUNTS)
    x, y = map(str, host.places)
    if all(waits):
        assert said.startswith(f"resources 'a' and 'b' share one coordination file ({x}/ledger and {y}/ledger) and")
        assert "\n" not in said
    else:
        assert said == "claimed"


def test_file_of_another_class_is_told_under_any_path(host: Host) -> None:
    def refused() -> str:
        for place in host.places:
            mount(str(host.folders["gpu"]), str(place))
        with pytest.raises(Exception, match="one file serves one class of devices; choose another file") as caught:
            both({name: f"{place}/ledger" for name, place in zip(NAMES, host.places, strict=True)}, wait=0)
        return str(caught.value)

    assert "coordinates 'fpga', not 'gpu'" in in_namespaces(refused, NEW_MOUNTS)
