"""The driver of somebody's script: a shell script for each test, and all else as for any other driver."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

import externalresource
from externalresource.api import ExternalResourceInfo
from externalresource.coordination import identify
from externalresource.drivers.loading import create_driver
from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError, NotEnoughDevicesError
from externalresource_script.driver import ScriptDriverFactory, class_of

ALLOWED = "must name a device by letters, digits and ._:/@+=#~- without blanks"

NOT_TOLD = "a process could not tell which of the two is its own"

Script = Callable[..., str]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLINK_HOME", "FLINK_PLUGINS_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write somebody's discovery script; what it returns is the script's path."""

    def write(text: str, name: str = "fpga.sh", first: str = "#!/bin/sh", mode: int = 0o755) -> str:
        path = tmp_path / name
        path.write_text(f"{first}\n{text}\n")
        path.chmod(mode)
        return str(path)

    return write


def options(path: str, **more: str) -> dict[str, str]:
    return {"discovery-script.path": path} | {name.replace("_", "-"): text for name, text in more.items()}


def driver(path: str, **more: str) -> "externalresource.ExternalResourceDriver":
    return create_driver("script", options(path, **more))


def indices(infos: Collection[ExternalResourceInfo]) -> list[str]:
    return sorted(info.get_property("index") or "" for info in infos)


def failure(path: str, **more: str) -> str:
    """Return the one line that is said of a script, with its path left out."""
    with pytest.raises(ExternalResourceError) as caught:
        driver(path, **more).retrieve_resource_info(1)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(path, "SCRIPT")


def configured(path: str, **more: str) -> dict[str, object]:
    """Return the configuration of a Flink whose resource `fpga` has two devices of this script."""
    keys = {f"external-resource.fpga.param.{name}": text for name, text in options(path, **more).items()}
    return {
        "external-resources": "fpga",
        "external-resource.fpga.amount": 2,
        "external-resource.fpga.driver-factory.class": "script",
        **keys,
    }


@pytest.mark.parametrize(
    "out", ["echo 0; echo 1; echo 2", "echo 0,1,2", 'for i in 0 1 2; do echo {\\"index\\":$i}; done']
)
def test_any_resource_has_the_devices_that_a_script_prints(script: Script, tmp_path: Path, out: str) -> None:
    path = script(out)
    ledger = {"enable_coordination_mode": "true", "coordination_file": str(tmp_path / "ledger")}
    with externalresource.runtime_context(configured(path, **ledger)) as context:
        assert indices(context.get_external_resource_infos("fpga")) == ["0", "1"]
        assert context.environment() == {"FPGA_DEVICES": "0,1"}
        with pytest.raises(NotEnoughDevicesError, match=r"^2 wanted, 1 of 3 free; held by pid "):
            externalresource.runtime_context(configured(path, **ledger))
    with externalresource.runtime_context(configured(path, **ledger)) as context:
        assert indices(context.get_external_resource_infos("fpga")) == ["0", "1"]


def test_script_may_be_in_any_language(script: Script) -> None:
    text = "import json\nfor i in range(2):\n    print(json.dumps({'index': i, 'properties': {'size': i * 10}}))"
    found = driver(script(text, name="fpga.py", first=f"#!{sys.executable}")).retrieve_resource_info(2)
    assert {(info.get_property("index"), info.get_property("size")) for info in found} == {("0", "0"), ("1", "10")}


def test_two_processes_never_hold_the_same_device(script: Script, tmp_path: Path) -> None:
    path, ledger = script("echo a; echo b"), str(tmp_path / "ledger")
    given = options(path, coordination_file=ledger)
    code = f"""
        import externalresource
        with externalresource.claim("fpga", driver_factory="script", options={given!r}) as context:
            print(context.environment()["FPGA_DEVICES"])
    """
    with externalresource.claim("fpga", driver_factory="script", options=given) as context:
        other = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
        ).stdout.strip()
        assert {context.environment()["FPGA_DEVICES"], other} == {"a", "b"}


def test_device_that_the_script_calls_unusable_is_not_handed_out(script: Script) -> None:
    path = script("""echo '{"index": 0, "unusable": "too hot"}'; echo '{"index": 1}'""")
    assert indices(driver(path).retrieve_resource_info(1)) == ["1"]
    with pytest.raises(NotEnoughDevicesError) as caught:
        driver(path).retrieve_resource_info(2)
    assert str(caught.value) == "2 wanted, only 1 of 2 are usable (fpga 0: too hot)"


def test_claimed_device_is_recorded_under_its_uuid(script: Script, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    path = script("""echo '{"index": 0, "uuid": "u-0"}'""")
    given = options(path, coordination_file=str(ledger))
    with externalresource.claim("fpga", driver_factory="script", options=given):
        token, pid, details = ledger.read_text().split(" ", 2)
        assert (token, int(pid), json.loads(details)["uuid"]) == ("0", os.getpid(), "u-0")
        assert json.loads(details)["class"] == "fpga"
    assert ledger.read_text() == ""


def test_script_says_itself_by_which_variables_a_process_knows_its_devices(script: Script) -> None:
    path = script(
        """echo '{"index":0,"environment":{"XCL":"b0","X":"1"}}'; echo '{"index":1,"environment":{"XCL":"b1"}}'"""
    )
    made = driver(path)
    assert made.environment(made.retrieve_resource_info(2)) == {"XCL": "b0,b1", "X": "1"}


@pytest.mark.parametrize(
    ("name", "more", "variable"),
    [
        ("fpga.sh", {}, "FPGA_DEVICES"),
        ("find-fpga.v2.sh", {}, "FIND_FPGA_V2_DEVICES"),
        ("list.sh", {"device_class": "tpu"}, "TPU_DEVICES"),
        ("list.sh", {"device_class": "tpu", "environment_variable": "TPU_VISIBLE"}, "TPU_VISIBLE"),
    ],
)
def test_variable_is_named_after_the_class(script: Script, name: str, more: dict[str, str], variable: str) -> None:
    made = driver(script("echo 0; echo 1", name=name), **more)
    assert made.environment(made.retrieve_resource_info(2)) == {variable: "0,1"}


@pytest.mark.parametrize(
    ("path", "given", "device_class"),
    [
        ("/opt/fpga.sh", None, "fpga"),
        ("plugins/find-fpga.v2.py", None, "find-fpga.v2"),
        ("/opt/fpga", None, "fpga"),
        ("/opt/fpga.sh", "ssd", "ssd"),
        ("", None, "script"),
    ],
)
def test_class_is_the_name_of_the_scripts_file_unless_it_is_given(
    path: str, given: str | None, device_class: str
) -> None:
    assert class_of(path, given) == device_class


@pytest.mark.parametrize(
    ("more", "ledger"),
    [
        ({}, "/var/tmp/externalresource-fpga-coordination"),
        ({"device_class": "tpu"}, "/var/tmp/externalresource-tpu-coordination"),
    ],
)
def test_each_class_has_a_coordination_file_of_its_own(script: Script, more: dict[str, str], ledger: str) -> None:
    made = driver(script("echo 0"), enable_coordination_mode="true", **more)
    assert made.coordination_file == ledger


@pytest.mark.parametrize("name", ["", "../fpga", "my fpga", "0", "x" * 65, "é", "a\n"])
def test_class_that_can_be_no_files_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        driver("/opt/fpga.sh", device_class=name)
    assert str(caught.value) == (
        "the script driver: option 'device-class' (by default the name of the script's file without its suffix) must "
        f"be a letter, then at most 63 letters, digits and . _ -, not {name!r}"
    )


def test_arguments_are_split_as_a_shell_would(script: Script) -> None:
    path = script('for word in "$@"; do echo "$word"; done')
    found = driver(path, **{"discovery-script.args": "a 'b'c \"d\""}).retrieve_resource_info(3)
    assert indices(found) == ["a", "bc", "d"]


def test_relative_path_is_looked_for_as_flink_does(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("echo 0")
    monkeypatch.setenv("FLINK_PLUGINS_DIR", str(tmp_path))
    assert indices(driver("plugins/fpga.sh").retrieve_resource_info(1)) == ["0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 3", "SCRIPT exited with 3: it said nothing"),
        ("echo 0; echo 'no board' >&2; exit 1", "SCRIPT exited with 1: no board"),
        ("kill -9 $$", "SCRIPT was ended by signal 9: it said nothing"),
        (":", "SCRIPT printed nothing; where there are no devices it must print []"),
        ("echo no boards >&2", "SCRIPT printed nothing; where there are no devices it must print []"),
        ("echo []", "1 wanted, this host has 0"),
        ("echo 0; echo 0", "SCRIPT printed in line 2: device '0' again"),
        (r"printf '0\n\377\n'", f"SCRIPT printed in line 2: '\ufffd'; it {ALLOWED}"),
        ("seq 1000000", "SCRIPT printed more than 512 KiB, which no list of devices has"),
        (
            """echo '{"index":0,"uuid":"a"}'; echo '{"index":1,"uuid":"a"}'""",
            "the fpga driver enumerated two devices called 'a'",
        ),
        (
            """echo '{"index":"a"}'; echo '{"index":"b","environment":{"FPGA_DEVICES":"a"}}'""",
            f"the fpga driver enumerated 'a' and 'b' with the same environment (FPGA_DEVICES=a): {NOT_TOLD}",
        ),
    ],
    ids=["fails", "says why", "killed", "nothing", "stderr only", "none", "twice", "binary", "much", "uuids", "alike"],
)
def test_script_that_does_not_answer_is_told_in_one_line(script: Script, text: str, said: str) -> None:
    assert failure(script(text)) == said


def test_script_that_hangs_is_killed_at_its_deadline(script: Script) -> None:
    path = script("exec sleep 600")
    said = failure(path, **{"discovery-script.timeout": "0.5"})
    assert said.startswith("SCRIPT did not answer within 0.4")
    assert said.endswith(" s and was killed; see discovery-script.timeout and timeout")
    assert "was killed" in failure(path, timeout="0.5")
    said = failure(path, timeout="60", **{"discovery-script.timeout": "0.5"})
    assert said.startswith("SCRIPT did not answer within 0.5 s")


def test_script_may_have_more_time_than_drivers_have_by_default(script: Script) -> None:
    made = driver(script("echo 0"), **{"discovery-script.timeout": "30"})
    assert made._options.timeout == 30  # type: ignore[attr-defined] # of a driver that is made by @driver


def test_script_that_prints_without_end_is_killed_too(script: Script) -> None:
    assert "was killed" in failure(script("exec yes"), timeout="1")


def test_what_a_script_says_beside_its_answer_is_a_warning(
    script: Script, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("echo 0; echo 'board 1' >&2; echo 'is hot' >&2")
    with caplog.at_level(logging.WARNING):
        assert indices(driver(path).retrieve_resource_info(1)) == ["0"]
    assert caplog.messages == [f"{path}: board 1 is hot"]
    assert capsys.readouterr().out == ""


def test_missing_and_unusable_scripts_are_told_when_devices_are_wanted(script: Script, tmp_path: Path) -> None:
    assert failure(f"{tmp_path}/no.sh") == "the discovery script SCRIPT does not exist; looked for SCRIPT"
    assert failure(script("echo 0", mode=0o644)) == "the discovery script SCRIPT is not executable; chmod +x it"
    assert failure(script("echo 0", first="")).startswith("SCRIPT could not be run: Exec format error; ")


def test_who_holds_what_is_known_without_the_script(tmp_path: Path) -> None:
    made = driver(f"{tmp_path}/gone.sh", coordination_file=str(tmp_path / "ledger"))
    assert made.held(identify(os.getpid())) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the script driver needs the option 'discovery-script.path': a text"),
        ({"discovery-script.path": " "}, "the script driver: option 'discovery-script.path' is empty"),
        (
            {"discovery-script.path": "/fpga.sh", "discovery-script.args": "'a"},
            "the fpga driver: option 'discovery-script.args' cannot be split as a shell would: No closing quotation",
        ),
        (
            {"discovery-script.path": "/fpga.sh", "discovery-script.timeout": "0"},
            "the fpga driver: option 'discovery-script.timeout' must be a number of seconds up to 86400, not 0",
        ),
        (
            {"discovery-script.path": "/fpga.sh", "discovery-script.timeout": "x"},
            "the fpga driver: option 'discovery-script.timeout' must be a number, not 'x'",
        ),
        (
            {"discovery-script.path": "/fpga.sh", "environment-variable": "A B"},
            "the fpga driver: option 'environment-variable' must be a variable's name, not 'A B'",
        ),
    ],
    ids=["no path", "empty path", "args", "no time", "no number", "variable"],
)
def test_option_that_is_missing_or_wrong_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_driver("script", given)
    assert str(caught.value) == message


def test_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean 'discovery-script.args'\?$"):
        driver("/fpga.sh", **{"discovery-script.arg": "x"})


def test_factory_says_its_options() -> None:
    names = [option.name for option in ScriptDriverFactory().options]
    assert names[:5] == [
        "discovery-script.path",
        "discovery-script.args",
        "discovery-script.timeout",
        "device-class",
        "environment-variable",
    ]
    assert {"enable-coordination-mode", "coordination-file", "wait", "timeout"} <= set(names)


def test_file_of_claims_is_shown_as_that_of_a_class() -> None:
    defaults = {option.name: option.default for option in ScriptDriverFactory().options}
    assert defaults["coordination-file"] == "/var/tmp/externalresource-CLASS-coordination"
    assert defaults["discovery-script.timeout"] is None


def test_lenient_context_goes_on_without_a_resource_whose_script_fails(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    path = script("exit 1")
    with externalresource.runtime_context(configured(path), lenient=True) as context:
        assert context.get_external_resource_infos("fpga") == frozenset()
    assert caplog.messages == [f"resource 'fpga' is left out: {path} exited with 1: it said nothing"]
    with pytest.raises(DiscoveryError):
        externalresource.runtime_context(configured(path))
