"""The options of the GPU driver: what it takes, what it refuses, which time it has."""

import fcntl
from pathlib import Path

import pytest

from externalresource.errors import ConfigurationError
from externalresource_gpu.driver import GPUDriver, GPUDriverFactory
from tests.support.gpu_drivers import COORDINATED, Scripts, claimed, created, failure, refusal

pytestmark = pytest.mark.usefixtures("ledger")


@pytest.mark.parametrize("amount", [0, -1])
def test_amount_is_positive(amount: int) -> None:
    with pytest.raises(ConfigurationError, match=f"must be a positive integer, not {amount}"):
        created({}).retrieve_resource_info(amount)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("simulat", "simulate"),
        ("discovery-script.pth", "discovery-script.path"),
        ("enable-coordination", "enable-coordination-mode"),
        ("coordination_file", "coordination-file"),
    ],
)
def test_unknown_option_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    message = refusal({name: "1"})
    assert message.startswith(f"the GPU driver has no option {name!r} (allowed: discovery-script.path, ")
    assert message.endswith(f", did you mean {nearest!r}?")


@pytest.mark.parametrize("name", ["list", "format", "owner-pid", "amount"])
def test_what_the_driver_itself_decides_is_no_option(name: str) -> None:
    assert refusal({name: "1"}).startswith(f"the GPU driver has no option {name!r}")


@pytest.mark.parametrize("text", ["0", "-1", "soon", "", "nan", "inf", "86401", "10 s"])
def test_timeout_is_a_number_of_seconds_up_to_a_day(text: str) -> None:
    assert refusal({"discovery-script.timeout": text}) == (
        f"discovery-script.timeout must be a number of seconds, above 0 and at most 86400, not {text!r}"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"discovery-script.args": "--simulat 2"}, "unknown option '--simulat', did you mean '--simulate'?"),
        ({"discovery-script.args": "3"}, "unexpected argument '3': one amount is allowed, then options"),
        ({"timeout": "never"}, "option --timeout must be a number of seconds, above 0 and at most 86400, not 'never'"),
        ({"enable-coordination-mode": "yes"}, "option --enable-coordination-mode must be true or false, not 'yes'"),
        (
            {"discovery-script.args": "--simulate '2"},
            "discovery-script.args cannot be split as a shell would (No closing quotation): --simulate '2",
        ),
    ],
)
def test_arguments_that_our_script_would_refuse_are_refused_at_once(options: dict[str, str], reason: str) -> None:
    assert refusal(options) == reason


@pytest.mark.parametrize("word", ["--list", "--format json", "--format=json", "--owner-pid 1", "--help", "-h"])
def test_argument_that_concerns_the_answer_or_the_owner_is_refused_by_name(word: str) -> None:
    name = word.partition(" ")[0].partition("=")[0]
    assert refusal({"discovery-script.args": f"--simulate 2 {word}"}) == (
        f"option {name} is for the script only: the driver decides itself what the answer is and who owns the devices; "
        "remove it"
    )


def test_variable_that_would_change_the_answer_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_LIST", "true")
    assert refusal({}).startswith("option EXTERNALRESOURCE_GPU_LIST is for the script only")


def test_driver_that_does_not_answer_is_named(tmp_path: Path, script: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    script("exec sleep 600", "nvidia-smi")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    driver = created({"backend": "nvidia-smi", "discovery-script.timeout": "1"})
    assert failure(driver).startswith("nvidia-smi did not answer within")


def test_lock_that_is_held_is_given_up(ledger: Path) -> None:
    with open(f"{ledger}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = failure(created(COORDINATED | {"timeout": "1"}))
    assert message.startswith(f"timed out waiting for the lock {ledger}.lock, ")
    assert claimed(ledger) == []


@pytest.mark.parametrize(
    ("options", "variable", "seconds"),
    [
        ({}, None, 9.0),
        ({"discovery-script.timeout": "0.5"}, None, 0.5),
        ({"timeout": "60"}, None, 60.0),
        ({"timeout": "60", "discovery-script.timeout": "20"}, None, 60.0),
        ({"discovery-script.args": "--timeout 60"}, None, 60.0),
        ({}, "60", 60.0),
        ({"discovery-script.timeout": "20"}, "60", 20.0),
    ],
)
def test_time_is_what_the_nearest_says(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], variable: str | None, seconds: float
) -> None:
    if variable:
        monkeypatch.setenv("EXTERNALRESOURCE_GPU_TIMEOUT", variable)
    driver = created(options)
    assert isinstance(driver, GPUDriver)
    assert driver._options.timeout == seconds


def test_options_are_shown_with_their_defaults() -> None:
    shown = {option.name: (option.kind, option.default) for option in GPUDriverFactory().options}
    assert list(shown)[:3] == ["discovery-script.path", "discovery-script.args", "discovery-script.timeout"]
    assert shown["policy"] == ("first|connected|pack|spread", "connected")
    assert shown["min-memory"] == ("a whole number", None)
    assert {"list", "format", "owner-pid"}.isdisjoint(shown)
