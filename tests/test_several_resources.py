"""A TaskManager with two resources, GPUs and boards: where it does not get one of them, nothing stays claimed."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from externalresource.api import API_VERSION
from externalresource.context import RuntimeContext, claim, runtime_context
from externalresource.coordination import Coordination
from externalresource.drivers.loading import create_driver
from externalresource.errors import (
    ConfigurationError,
    CoordinationError,
    DiscoveryError,
    ExternalResourceError,
    NotEnoughDevicesError,
    PluginError,
)

from .support.processes import Running, wait_until

COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")
BOARDS = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from externalresource.api import Device, driver, hookimpl
from externalresource.errors import DiscoveryError

@dataclass(frozen=True)
class Options:
    root: str

@driver("fpga", Options)
def fpga(options):
    root = Path(options.root)
    if (root / "raise").exists():
        raise DiscoveryError("the bus is down")
    if (root / "exit").exists():
        sys.exit("the bus is down")
    if (root / "die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (root / "hang").exists():
        time.sleep(600)
    for path in sorted(root.glob("fpga*")):
        yield Device(path.name, environment={"FPGA_DEVICES": str(path)})

class Generous:
    @hookimpl
    def create_external_resource_driver(self, options):
        made = fpga.create_external_resource_driver(options)
        retrieve = made.retrieve_resource_info
        made.retrieve_resource_info = lambda amount: retrieve(amount + 1)
        return made
"""
CONFIG = """
external-resources: gpu;fpga
external-resource:
  gpu:
    amount: 2
    driver-factory.class: gpu
    param:
      simulate: 2
      enable-coordination-mode: true
      coordination-file: {gpus}
  fpga:
    amount: {amount}
    driver-factory.class: {factory}
    param:
      root: {boards}
      coordination-file: {fpgas}
      timeout: {timeout}
      wait: {wait}
"""


class Host:
    """Two GPUs, two boards, a coordination file for each class, and the configuration of a TaskManager."""

    def __init__(self, folder: Path, first: str) -> None:
        self.boards = folder / "boards"
        self.boards.mkdir()
        for number in range(2):
            (self.boards / f"fpga{number}").touch()
        self.config = folder / "config.yaml"
        files = sorted((str(folder / letter) for letter in "ab"), key=lambda path: Coordination(path, "").identity())
        self.files = {name: files[name != first] for name in ("gpu", "fpga")}
        self.write()

    def write(self, **more: object) -> None:
        values = {"factory": "boards:fpga", "amount": 1, "timeout": 9, "wait": 0, "fpgas": self.files["fpga"]} | more
        self.config.write_text(CONFIG.format(gpus=self.files["gpu"], boards=self.boards, **values), encoding="utf-8")

    def break_with(self, what: str, **more: object) -> None:
        (self.boards / what).touch()
        self.write(**more)

    def repair(self) -> None:
        for path in self.boards.glob("[!f]*"):
            path.unlink()
        self.write()

    def held(self) -> list[str]:
        """Return who holds what now: `gpu 0`, `fpga fpga0`."""
        return sorted(
            f"{name} {claim.token}"
            for name, file in self.files.items()
            for claim in Coordination(file, name).held()
            if claim.living
        )

    def queued(self) -> str:
        return "".join(path.read_text() for path in self.boards.parent.glob("*.queue"))

    def all_boards(self) -> RuntimeContext:
        options = {"root": str(self.boards), "coordination-file": self.files["fpga"]}
        return claim("fpga", 2, driver_factory="boards:fpga", options=options)


GPUS = ["gpu 0", "gpu 1"]
BOARD, ALL_BOARDS = ["fpga fpga0"], ["fpga fpga0", "fpga fpga1"]


@pytest.fixture(params=["gpu", "fpga"])
def host(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Return a host on which the one or the other class comes first in the order of the files."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "boards.py").write_text(BOARDS, encoding="ascii")
    (plugins / "broken.py").write_text("raise ImportError('no such firmware')", encoding="ascii")
    (plugins / "older.py").write_text(f"api_version = {API_VERSION - 1}\n" + BOARDS, encoding="ascii")
    monkeypatch.syspath_prepend(str(plugins))
    for variable in [name for name in os.environ if name.startswith("EXTERNALRESOURCE_")]:
        monkeypatch.delenv(variable)
    yield Host(tmp_path, request.param)
    for name in ("boards", "broken", "older"):
        sys.modules.pop(name, None)


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], Any]], Running[Any]]]:
    running: list[Running[Any]] = []

    def start(function: Callable[[], Any]) -> Running[Any]:
        running.append(Running(function))
        return running[-1]

    yield start
    for process in running:
        process.kill()


Start = Callable[[Callable[[], Any]], Running[Any]]
kept: list[RuntimeContext] = []


def task_manager(host: Host, *, lenient: bool = False) -> dict[str, list[str]]:
    """Take what the configuration says, and keep it as long as this process lives."""
    kept.append(runtime_context(host.config, lenient=lenient))
    return {
        name: sorted(info.get_property("index") or "" for info in kept[-1].get_external_resource_infos(name))
        for name in ("gpu", "fpga")
    }


Failure = tuple[Callable[[Host], object], type[ExternalResourceError], str]
FAILURES: dict[str, Failure] = {
    "its plugin is missing": (
        lambda host: host.write(factory="nobody"),
        PluginError,
        "no installed plugin is called 'nobody'",
    ),
    "its plugin does not load": (
        lambda host: host.write(factory="broken:fpga"),
        PluginError,
        "could not be loaded: ImportError: no such firmware",
    ),
    "its plugin is for another API": (
        lambda host: host.write(factory="older:fpga"),
        PluginError,
        "was written for version 0 of the driver API",
    ),
    "an option is wrong": (lambda host: host.write(timeout="soon"), ConfigurationError, "option 'timeout' must be"),
    "its enumeration fails": (
        lambda host: host.break_with("raise"),
        DiscoveryError,
        r"^resource 'fpga': the bus is down$",
    ),
    "its enumeration exits": (lambda host: host.break_with("exit"), DiscoveryError, "SystemExit: the bus is down"),
    "its enumeration hangs": (
        lambda host: host.break_with("hang", timeout=0.3),
        DiscoveryError,
        "did not enumerate its devices within",
    ),
    "the host has fewer": (lambda host: host.write(amount=3), NotEnoughDevicesError, "3 wanted, this host has 2"),
    "it returns too many": (
        lambda host: host.write(factory="boards:Generous"),
        PluginError,
        "returned 2 devices, not the 1 asked for",
    ),
    "its file is rubbish": (
        lambda host: Path(host.files["fpga"]).write_text("rubbish\n"),
        CoordinationError,
        "line 1: cannot read",
    ),
    "its file is that of the GPUs": (
        lambda host: host.write(fpgas=host.files["gpu"]),
        ExternalResourceError,
        "one file serves one class of devices; choose another file",
    ),
}


def held_after(host: Host) -> list[str]:
    file = Path(host.files["fpga"])
    if file.exists() and file.read_text() == "rubbish\n":
        file.write_text("")
    return host.held()


@pytest.mark.parametrize(("fail", "kind", "message"), FAILURES.values(), ids=FAILURES)
def test_task_manager_with_a_resource_that_fails_gets_the_error_and_holds_nothing(
    fail: Callable[[Host], object], kind: type[ExternalResourceError], message: str, host: Host, start: Start
) -> None:
    fail(host)
    living = start(lambda: task_manager(host))
    with pytest.raises(kind) as caught:
        living.result()
    assert re.search(message, str(caught.value))
    assert held_after(host) == []
    host.repair()
    assert start(lambda: task_manager(host)).result() == {"gpu": ["0", "1"], "fpga": ["fpga0"]}


@pytest.mark.parametrize("failure", [name for name in FAILURES if name != "its file is that of the GPUs"])
def test_lenient_task_manager_with_a_resource_that_fails_has_the_other_one(
    failure: str, host: Host, start: Start
) -> None:
    FAILURES[failure][0](host)
    assert start(lambda: task_manager(host, lenient=True)).result() == {"gpu": ["0", "1"], "fpga": []}
    assert held_after(host) == GPUS


def test_of_two_classes_with_one_file_a_lenient_task_manager_has_one(host: Host, start: Start) -> None:
    host.write(fpgas=host.files["gpu"])
    found = start(lambda: task_manager(host, lenient=True)).result()
    assert sorted(map(len, found.values())) in ([0, 1], [0, 2])
    assert host.queued() == ""


@pytest.mark.parametrize("wait", [0, 0.2])
def test_task_manager_that_does_not_get_one_of_its_resources_holds_nothing(
    wait: float, host: Host, start: Start
) -> None:
    host.write(wait=wait)
    with host.all_boards():
        with pytest.raises(NotEnoughDevicesError, match=r"^resource 'fpga': 1 wanted, 0 of 2 free"):
            start(lambda: task_manager(host)).result()
        assert (host.held(), host.queued()) == (ALL_BOARDS, "")
        assert start(lambda: task_manager(host, lenient=True)).result() == {"gpu": ["0", "1"], "fpga": []}
        assert (host.held(), host.queued()) == (ALL_BOARDS + GPUS, "")


def test_task_manager_that_is_killed_between_two_resources_leaves_nothing(host: Host, start: Start) -> None:
    host.break_with("die")
    killed = start(lambda: task_manager(host))
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    assert host.held() == []
    host.repair()
    assert start(lambda: task_manager(host)).result() == {"gpu": ["0", "1"], "fpga": ["fpga0"]}


def test_task_manager_that_is_killed_while_it_waits_for_the_second_leaves_nothing(host: Host, start: Start) -> None:
    host.write(wait=600)
    with host.all_boards():
        waiting = start(lambda: task_manager(host))
        wait_until(host.queued)
        waiting.kill()
        assert host.held() == ALL_BOARDS
    host.write()
    assert start(lambda: task_manager(host)).result() == {"gpu": ["0", "1"], "fpga": ["fpga0"]}
    assert host.held() == BOARD + GPUS


def test_task_manager_that_is_interrupted_while_it_waits_holds_nothing(host: Host, start: Start) -> None:
    def interrupted() -> str:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            task_manager(host)
        except KeyboardInterrupt:
            return "interrupted"
        return "not interrupted"

    host.write(wait=600)
    with host.all_boards():
        waiting = start(interrupted)
        wait_until(host.queued)
        os.kill(waiting.pid, signal.SIGINT)
        assert waiting.result() == "interrupted"
        assert (host.held(), host.queued()) == (ALL_BOARDS, "")


def test_task_manager_that_waits_gets_both_as_soon_as_it_can(host: Host, start: Start) -> None:
    host.write(wait=600)
    with host.all_boards():
        waiting = start(lambda: task_manager(host))
        wait_until(host.queued)
    assert waiting.result() == {"gpu": ["0", "1"], "fpga": ["fpga0"]}
    assert (host.held(), host.queued()) == (BOARD + GPUS, "")


def test_each_class_has_a_default_file_of_its_own(host: Host) -> None:
    coordinated = {"enable-coordination-mode": "true"}
    gpus: Any = create_driver("gpu", {"simulate": "2"} | coordinated)
    boards: Any = create_driver("boards:fpga", {"root": str(host.boards)} | coordinated)
    assert gpus.coordination_file == "/var/tmp/flink-gpu-coordination"
    assert boards.coordination_file == "/var/tmp/externalresource-fpga-coordination"


def run(host: Host, *words: str) -> "subprocess.CompletedProcess[str]":
    options = {
        "gpu.simulate": "2",
        "gpu.coordination-file": host.files["gpu"],
        "boards:fpga.root": str(host.boards),
        "boards:fpga.coordination-file": host.files["fpga"],
    }
    command = [COMMAND, "run", *(f"-o{key}={value}" for key, value in options.items()), *words]
    environment = os.environ | {"PYTHONPATH": str(host.boards.parent / "plugins")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_command_has_both_resources_each_with_its_own_options(host: Host) -> None:
    done = run(host, "gpu=1", "boards:fpga=1", "--", "sh", "-c", "echo ${CUDA_VISIBLE_DEVICES%%-*} $FPGA_DEVICES")
    assert (done.stdout, done.stderr) == (f"GPU {host.boards}/fpga0\n", "")


def test_option_of_one_resource_wins_over_that_of_all(host: Host) -> None:
    done = run(host, "gpu=1", "boards:fpga=2", "-oboards:fpga.timeout=soon", "-otimeout=9", "--", "true")
    assert (done.returncode, "the fpga driver: option 'timeout'" in done.stderr) == (125, True)


def test_command_with_a_resource_that_fails_does_not_start_and_holds_nothing(host: Host) -> None:
    done = run(host, "gpu=1", "boards:fpga=3", "--", "echo", "started")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "externalresource: resource 'boards:fpga': 3 wanted, this host has 2\n"
    assert [line for name in host.files for line in Coordination(host.files[name], name).held()] == []
