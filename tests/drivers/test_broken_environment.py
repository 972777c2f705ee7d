"""Drivers whose variables cannot be had, or are none: one line that says why, and 125 of `run`."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn

import pytest

from externalresource.api import Device, driver
from externalresource.context import RuntimeContext
from externalresource.errors import PluginError
from tests.support.plugins import NOISE, command

Run = Callable[..., CompletedProcess[str]]

FAULTS = {
    "raises": 'raise ValueError("no\\nname")',
    "exits": "import sys; sys.exit(0)",
    "returns None": "return None",
    "returns numbers": 'return {"CARDS": 3}',
    "returns a name that is none": 'return {"A=B": "3"}',
    "hangs": "import time; time.sleep(1000)",
}
SAID = {
    "raises": "the environment of {} failed: ValueError: no name",
    "exits": "the environment of {} failed: SystemExit: 0",
    "returns None": "the environment of {} must be texts by the name of a variable, not None",
    "returns numbers": "the environment of {} must be texts by the name of a variable, not with 3 for 'CARDS'",
    "returns a name that is none": (
        "the environment of {} must be texts by the name of a variable, not with the name 'A=B'"
    ),
    "hangs": "the environment of {} was not made within ",
}
DECORATED = """
from externalresource.api import Device, driver

def variables(joined):
    {fault}

@driver("card", environment=variables)
def card():
    return [Device("0", environment={{"CARDS": "0"}})]
"""
PLAIN = """
from externalresource.api import Device, hookimpl, info_of

class Plain:
    def retrieve_resource_info(self, amount):
        {retrieves}
        return {{info_of(Device("0"))}}

    def environment(self, infos):
        {fault}
        return {{"CARDS": "0"}}

    def keep_over_exec(self):
        {keeps}
        return ()

    def close(self):
        {closes}

class card:
    @hookimpl
    def create_external_resource_driver(self, options):
        return Plain()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with a card of a driver that this is the text of."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(text: str, *words: str) -> CompletedProcess[str]:
        (tmp_path / "cards.py").write_text(text)
        return command("run", "cards:card=1", *words, "--", "sh", "-c", "echo $CARDS")

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_variables_that_cannot_be_had_are_one_line_and_125(run: Run, fault: str, tmp_path: Path) -> None:
    file = f"--coordination-file={tmp_path}/cards"
    done = run(DECORATED.format(fault=FAULTS[fault]), file, "-o", "timeout=1")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"externalresource: {SAID[fault].format('the card driver')}")
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "cards").read_text() == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_plain_driver_whose_variables_cannot_be_had_is_one_line_and_125(run: Run, fault: str) -> None:
    done = run(PLAIN.format(fault=FAULTS[fault], retrieves="", keeps="", closes="pass"))
    assert (done.returncode, done.stdout) == (125, "")
    said = SAID[fault].format("the driver of 'cards:card'")
    assert done.stderr.startswith(f"externalresource: {said}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("method", ["retrieves", "keeps", "closes"])
@pytest.mark.parametrize("fault", ["raise ValueError('no')", "raise SystemExit(3)"])
def test_plain_driver_that_fails_or_exits_anywhere_is_one_line_and_125(run: Run, method: str, fault: str) -> None:
    does = {"retrieves": "", "keeps": "", "closes": "pass", method: fault}
    done = run(PLAIN.format(fault="raise OSError('no name')" if method == "closes" else "", **does))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (125, "", 1)


def test_what_a_driver_prints_is_not_in_the_output_of_the_command(run: Run, tmp_path: Path) -> None:
    noise = f"exec({NOISE!r})"
    decorated = DECORATED.format(fault=f"{noise}; return joined")
    plain = PLAIN.format(fault=noise, retrieves=noise, keeps=noise, closes="pass")
    for done in (run(decorated, f"--coordination-file={tmp_path}/cards"), run(plain)):
        assert (done.returncode, done.stdout) == (0, "0\n")
        assert "noise" in done.stderr


def test_command_that_cannot_be_executed_has_nothing_of_a_driver_in_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "cards.py").write_text(PLAIN.format(fault="", retrieves="", keeps="", closes="print('noise')"))
    done = command("run", "cards:card=1", "--", "/no/such/command")
    assert (done.returncode, done.stdout) == (127, "")


@pytest.mark.parametrize(("fault", "cause"), [(KeyError("A"), "KeyError: 'A'"), (SystemExit(3), "SystemExit: 3")])
def test_environment_that_fails_is_a_plugin_error(fault: BaseException, cause: str) -> None:
    def fail(_: Mapping[str, str]) -> NoReturn:
        raise fault

    made = driver("card", environment=fail)(lambda: [Device("0", environment={"A": "0"})])
    context = RuntimeContext({"card": (made.create_external_resource_driver({}), 1)})
    with context, pytest.raises(PluginError, match=f"^the environment of the card driver failed: {cause}$"):
        context.environment()


def test_driver_has_the_time_of_its_option_for_the_environment() -> None:
    def hang(joined: Mapping[str, str]) -> Mapping[str, str]:
        time.sleep(60)
        return joined

    made = driver("card", environment=hang)(lambda: [Device("0", environment={"A": "0"})])
    one = made.create_external_resource_driver({"timeout": "0.3"})
    with pytest.raises(PluginError, match=r"was not made within 0\.\d s; see its option timeout$"):
        one.environment(one.devices())
