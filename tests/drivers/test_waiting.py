"""Devices that are renumbered, replaced, added or lost while processes wait for them: what each of these is granted."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from externalresource.api import Device, ExternalResourceDriver, driver
from externalresource.coordination import Coordination
from externalresource.drivers.loading import create_driver
from externalresource.errors import DiscoveryError, NotEnoughDevicesError
from tests.support.claiming import LONG, places
from tests.support.processes import Running, wait_until

Granted = list[tuple[str | None, str | None]]


@dataclass(frozen=True)
class Options:
    machine: str


@driver("board", Options)
def board(options: Options) -> Iterator[Device]:
    for line in Path(options.machine).read_text().splitlines():
        if line == "broken":
            raise DiscoveryError("the bus does not answer")
        yield Device(**json.loads(line))


class Host:
    """A host whose devices change, and processes that ask for one of them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind, self.running = folder, kind, list[Running[tuple[float, Granted]]]()
        self.ledger, self.machine = str(folder / "claims"), folder / "machine"
        script = folder / "board.sh"
        script.write_text(f"#!/bin/sh\n! grep -q broken {self.machine} && cat {self.machine}\n")
        script.chmod(0o755)

    def has(self, *devices: str, **more: object) -> None:
        """Have these devices, written `INDEX:UUID`, the last of them with `more`."""
        named = [dict(zip(("index", "uuid"), device.split(":"), strict=False)) for device in devices]
        self.write(*named[:-1], named[-1] | more)

    def write(self, *devices: object) -> None:
        new = self.folder / "new"
        new.write_text("".join(f"{json.dumps(device)}\n" for device in devices))
        new.replace(self.machine)

    def driver(self, wait: float = 0) -> ExternalResourceDriver:
        own = {"machine": str(self.machine)}
        if self.kind == "script":
            own = {"discovery-script.path": str(self.folder / "board.sh")}
        given = {"enable-coordination-mode": "true", "coordination-file": self.ledger, "wait": f"{wait:g}"}
        factory = "script" if self.kind == "script" else f"{__name__}:board"
        return create_driver(factory, own | given)

    def ask(self, wait: float = 0) -> tuple[float, Granted]:
        """Return when one device was granted, and what it is called."""
        infos = self.driver(wait).retrieve_resource_info(1)
        return time.monotonic(), [(info.get_property("index"), info.get_property("uuid")) for info in infos]

    def process(self, wait: float = 0) -> Running[tuple[float, Granted]]:
        started = Running(lambda: self.ask(wait))
        self.running.append(started)
        return started

    def waiting(self, wait: float = LONG) -> Running[tuple[float, Granted]]:
        """Return a process that has its place in the queue."""
        before = places(self.ledger)
        started = self.process(wait)
        wait_until(lambda: places(self.ledger) > before)
        return started

    def held(self) -> list[tuple[str, str | None]]:
        return sorted((claim.token, claim.uuid) for claim in Coordination(self.ledger, "board").held())


@pytest.fixture(params=["driver", "script"])
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    made = Host(tmp_path, request.param)
    yield made
    for process in made.running:
        process.kill()


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(NotEnoughDevicesError) as caught:
        act()
    return str(caught.value)


def test_device_that_took_the_index_of_another_is_not_granted_in_its_place(host: Host) -> None:
    host.has("0:U0", "1:U1")
    gone = host.process()
    assert gone.result()[1] == [("0", "U0")]
    other = host.process()
    assert other.result()[1] == [("1", "U1")]
    impatient, waiting = host.waiting(5), host.waiting()
    host.has("0:U1")
    time.sleep(1.5)
    gone.kill()
    with pytest.raises(NotEnoughDevicesError, match="it is not there any more"):
        impatient.result()
    assert "0 of 1 free" in refusal(host.ask)
    other.kill()
    assert waiting.result()[1] == [("0", "U1")]
    assert host.held() == [("0", "U1")]
    assert "0 of 1 free" in refusal(host.ask)


def test_device_that_broke_is_found_under_its_new_index_once_it_works(host: Host) -> None:
    host.has("0:U0")
    owner = host.process()
    owner.result()
    waiting = host.waiting()
    host.has("7:U0", unusable="it is reset")
    time.sleep(2)  # for a second what was seen counts
    owner.kill()
    time.sleep(0.5)
    assert places(host.ledger) == 1
    host.has("3:U0")
    assert waiting.result()[1] == [("3", "U0")]


def test_devices_that_appear_go_to_those_who_wait_in_their_order(host: Host) -> None:
    host.has("0:U0")
    host.process().result()
    first, second = host.waiting(), host.waiting()
    for waiting, machine in ((first, ["0:U0", "1:U1"]), (second, ["0:U0", "1:U1", "2:U2"])):
        time.sleep(1.2)  # for a second nobody looks again
        appeared = time.monotonic()
        host.has(*machine)
        when, granted = waiting.result()
        assert granted == [tuple(machine[-1].split(":"))]
        assert when - appeared < 2 or os.getloadavg()[0] > 4  # a busy machine is slow


def test_device_that_is_usable_again_goes_to_the_first_that_waits(host: Host) -> None:
    host.has("0:U0", "1:U1", unusable="it is mounted")
    host.process().result()
    first, second = host.waiting(), host.waiting()
    time.sleep(1.2)
    host.has("0:U0", "1:U1")
    assert first.result()[1] == [("1", "U1")]
    assert places(host.ledger) == 1
    second.kill()


def test_part_that_appears_is_excluded_by_what_its_whole_is_a_part_of(host: Host) -> None:
    host.has("b:B")
    host.process().result()
    waiting = host.waiting(4)
    host.write(
        {"index": "b", "uuid": "B"},
        {"index": "h", "uuid": "H", "parent_uuid": "B"},
        {"index": "q", "uuid": "Q", "parent_uuid": "H"},
    )
    with pytest.raises(NotEnoughDevicesError, match="1 wanted, 0 of 3 free"):
        waiting.result()


def test_enumeration_that_fails_meanwhile_ends_no_wait(host: Host) -> None:
    host.has("0:U0")
    owner = host.process()
    owner.result()
    waiting = host.waiting()
    host.machine.write_text("broken\n")
    time.sleep(1.5)
    owner.kill()
    time.sleep(1.5)
    assert places(host.ledger) == 1
    host.has("0:U0")
    assert waiting.result()[1] == [("0", "U0")]


def test_device_without_a_uuid_is_known_by_its_index(host: Host) -> None:
    host.has("0", "1")
    host.process().result()
    owner = host.process()
    owner.result()
    waiting = host.waiting()
    host.has("1")
    owner.kill()
    assert waiting.result()[1] == [("1", None)]
