"""Whether a process that names a driver in a configuration shares its devices, where the configuration says nothing."""

import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from externalresource import runtime_context
from externalresource.api import ExternalResourceDriver, Option, hookimpl
from externalresource.errors import NotEnoughDevicesError
from externalresource.flink.configuration import GPU_FACTORY
from tests.support.fpga import Driver

PLUGINS = """
from externalresource.api import Device, driver

@driver("board")
def boards():
    return [Device("0", "BOARD-0")]
"""
HOLD = """
import sys
from externalresource import runtime_context
with runtime_context(dict(pair.split("=", 1) for pair in sys.argv[1:])) as context:
    print(*sorted(info.get_property("index") for info in context.get_external_resource_infos("x")), flush=True)
    sys.stdin.read()
"""


class Listed:
    """A stranger's factory, without `@driver`, that lists what it takes; remembers what it was given."""

    seen: list[dict[str, str]] = []  # noqa: RUF012 - emptied for each test
    options: object = [Option("enable-coordination-mode", "true or false", "false", required=False)]

    @hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> ExternalResourceDriver:
        Listed.seen.append(dict(options))
        return Driver()


class Silent(Listed):
    """One that does not say what it takes."""

    options = None


class Other(Listed):
    """One that takes other options."""

    options = (Option("board", "a text", None, required=False),)


class Named(Listed):
    """One that has something else of that name."""

    options = "enable-coordination-mode"


@pytest.fixture(autouse=True)
def _unseen() -> None:
    Listed.seen.clear()


def resource(factory: str, **params: object) -> dict[str, str]:
    """Return a configuration with one device of that driver, called x."""
    keys = {f"param.{name.replace('__', '.').replace('_', '-')}": str(value) for name, value in params.items()}
    own = {"amount": "1", "driver-factory.class": factory, **keys}
    return {"external-resources": "x"} | {f"external-resource.x.{key}": value for key, value in own.items()}


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a driver for one board, and a script that finds one."""
    (tmp_path / "some_boards.py").write_text(PLUGINS)
    (tmp_path / "boards.sh").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "boards.sh").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def holding() -> Iterator[list["subprocess.Popen[str]"]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.communicate("")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def hold(holding: list["subprocess.Popen[str]"], config: Mapping[str, str]) -> str:
    """Start another process with that configuration; return what it has."""
    words: Sequence[str] = [sys.executable, "-c", HOLD, *(f"{key}={value}" for key, value in config.items())]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holding.append(process)
    assert process.stdout is not None
    return process.stdout.readline().strip()


def params(driver: str, folder: Path) -> dict[str, object]:
    more = {"discovery_script__path": folder / "boards.sh"} if driver == "script" else {}
    return {"coordination_file": folder / "ledger", **more}


@pytest.mark.parametrize("driver", ["some_boards:boards", "script"])
def test_two_processes_never_have_one_device_unless_they_say_so(
    boards: Path, holding: list["subprocess.Popen[str]"], driver: str
) -> None:
    plain = resource(driver, **params(driver, boards))
    assert hold(holding, plain) == "0"
    with pytest.raises(NotEnoughDevicesError, match="1 wanted, 0 of 1 free; held by pid"):
        runtime_context(plain)
    with runtime_context(plain | resource(driver, enable_coordination_mode="false", **params(driver, boards))) as own:
        assert len(own.get_external_resource_infos("x")) == 1


@pytest.mark.parametrize(("factory", "given"), [("Listed", "true"), ("Silent", None), ("Other", None), ("Named", None)])
def test_a_strangers_driver_is_told_to_coordinate_if_it_lists_that_option(factory: str, given: str | None) -> None:
    runtime_context(resource(f"{__name__}:{factory}")).close()
    runtime_context(resource(f"{__name__}:{factory}", enable_coordination_mode="false")).close()
    first = {} if given is None else {"enable-coordination-mode": given}
    assert Listed.seen == [first, {"enable-coordination-mode": "false"}]


@pytest.mark.parametrize(
    ("factory", "said", "has"),
    [
        (GPU_FACTORY, {}, ["0", "0"]),
        (GPU_FACTORY, {"enable_coordination_mode": "true"}, ["0", "1"]),
        ("gpu", {}, ["0", "1"]),
        ("gpu", {"enable_coordination_mode": "false"}, ["0", "0"]),
        ("externalresource_gpu.driver:GPUDriverFactory", {}, ["0", "1"]),
    ],
)
def test_only_flinks_own_class_coordinates_only_if_it_is_told_to_as_in_flink(
    tmp_path: Path, holding: list["subprocess.Popen[str]"], factory: str, said: dict[str, str], has: list[str]
) -> None:
    config = resource(factory, simulate=2, coordination_file=tmp_path / "ledger", **said)
    assert [hold(holding, config), hold(holding, config)] == has


def told(caplog: pytest.LogCaptureFixture) -> str:
    """Return the one warning, or nothing if there was none."""
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) <= 1
    return "".join(warnings)


@pytest.mark.parametrize("gpus", ["simulated", "found by a script"])
def test_without_coordination_one_warning_tells_who_else_holds_the_devices(
    tmp_path: Path, holding: list["subprocess.Popen[str]"], caplog: pytest.LogCaptureFixture, gpus: str
) -> None:
    (tmp_path / "gpus.sh").write_text("#!/bin/sh\necho 0,1,2\n")
    (tmp_path / "gpus.sh").chmod(0o755)
    ledger = tmp_path / "ledger"
    for _ in range(2):
        hold(holding, resource("gpu", simulate=4, coordination_file=ledger, enable_coordination_mode="true"))
    plain = resource(GPU_FACTORY, discovery_script__path=tmp_path / "gpus.sh", coordination_file=ledger)
    if gpus == "simulated":
        plain = resource(GPU_FACTORY, simulate=4, policy="first", coordination_file=ledger)
    with runtime_context(plain | {"external-resource.x.amount": "3"}) as context:
        assert len(context.get_external_resource_infos("x")) == 3
    owners = [f"pid {process.pid}, {Path(f'/proc/{process.pid}/comm').read_text().strip()}" for process in holding]
    assert told(caplog) == (
        f"coordination is off, so this process has devices that others hold by {ledger}: device 0 ({owners[0]}), "
        f"device 1 ({owners[1]}); set enable-coordination-mode to get free ones"
    )


def test_a_part_of_what_another_process_holds_is_held_by_it(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_text(f"0 {sleeper.pid}\n")  # as Flink's own script writes it
    with runtime_context(resource(GPU_FACTORY, simulate="a100-mig", coordination_file=ledger)) as context:
        [instance] = context.get_external_resource_infos("x")
    assert f"device {instance.get_property('index')} (pid {sleeper.pid}, sleep)" in told(caplog)


def test_what_has_a_part_that_another_process_holds_is_held_by_it(
    tmp_path: Path, holding: list["subprocess.Popen[str]"], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gpus.sh").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "gpus.sh").chmod(0o755)
    ledger = tmp_path / "ledger"
    told_to = {"coordination_file": ledger, "enable_coordination_mode": "true"}
    assert hold(holding, resource(GPU_FACTORY, simulate="a100-mig", **told_to)).startswith("MIG-")
    runtime_context(
        resource(GPU_FACTORY, discovery_script__path=tmp_path / "gpus.sh", coordination_file=ledger)
    ).close()
    assert f"device 0 (pid {holding[0].pid}, " in told(caplog)


def test_inside_of_a_run_the_devices_of_that_are_no_other_processs(tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")
    config = [f"{key}={value}" for key, value in resource(GPU_FACTORY, simulate=2, coordination_file=ledger).items()]
    run = [sys.executable, "-m", "externalresource", "run", "gpu=1", "--simulate=2", "--coordination-file", ledger]
    words = [*run, "--", "sh", "-c", '"$@"; true', "sh", sys.executable, "-c", HOLD, *config]
    done = subprocess.run(words, check=True, capture_output=True, text=True, input="")
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_what_nobody_else_holds_is_given_without_a_warning(
    tmp_path: Path, holding: list["subprocess.Popen[str]"], caplog: pytest.LogCaptureFixture
) -> None:
    ledger = tmp_path / "ledger"
    plain = resource(GPU_FACTORY, simulate=2, coordination_file=ledger)
    own = {"enable_coordination_mode": "true", "coordination_file": ledger}
    runtime_context(plain).close()
    with runtime_context(resource(GPU_FACTORY, simulate=1, **own)):
        runtime_context(plain).close()  # it is this process that holds it
    hold(holding, resource(GPU_FACTORY, simulate=2, **own))
    hold(holding, resource(GPU_FACTORY, simulate=2, **own))
    holding[0].communicate("")
    runtime_context(plain).close()  # 0 was given back
    holding[1].communicate("")
    hold(holding, resource(GPU_FACTORY, simulate=2, **own))
    holding[2].kill()
    holding[2].communicate()
    runtime_context(plain).close()  # its line stands, and it does not live
    ledger.write_text("no line\n")
    runtime_context(plain).close()  # who does not coordinate does not need the file
    assert told(caplog) == ""
