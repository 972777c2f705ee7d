"""`externalresource doctor` as a real process, and its page."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from externalresource.flink.doctor import examination
from tests.support.flink.doctor import AMOUNT, Host, call, dead_pid

PAGE = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")


def test_page_shows_what_the_command_prints(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, console = (
        re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
        for language in ("yaml", "console")
    )
    command, expected = console.removeprefix("$ ").split("\n", 1)
    assert command == "externalresource doctor conf"
    for name in ("bin", "lib"):
        (host.folder / name).rmdir()
    monkeypatch.chdir(host.folder)
    host.config.write_text(f"{configuration}rest.port: {host.closed_port}\n")
    said = call("conf").stdout
    assert (
        said.replace(f":{host.closed_port}:", ":8081:").replace(f"{host.folder}/plugins", "/opt/flink/plugins")
        == expected
    )


def test_page_tells_of_each_check() -> None:
    rooms = Path(examination.__file__).parent.glob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in rooms)
    checks = set(re.findall(r'Finding\(\s*"([\w-]+)"', source)) | {"container-mask"}
    told = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    assert told - {"check"} == checks


def test_command_says_what_it_looked_at(host: Host) -> None:
    host.write()
    done = call(host.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == examination.examine(str(host.config)).summary
    assert call(FLINK_CONF_DIR=str(host.config.parent)).stdout == done.stdout


def test_command_tells_each_problem_with_evidence_and_remedy(host: Host) -> None:
    host.write({AMOUNT: 0})
    (host.folder / "plugins" / "empty").mkdir()
    done = call(host.config)
    assert done.returncode == 1
    assert done.stdout.startswith(
        "problem: the amount of 'gpu' is no positive integer: Flink passes the resource over\n"
        f"  evidence: {host.line(AMOUNT)}{AMOUNT}: 0\n"
        f"  remedy:   {AMOUNT}: 1\n\n"
        "problem: "
    )
    assert done.stdout.splitlines()[-1].startswith("2 problems; looked at: ")


def test_command_hands_nothing_unprintable_to_a_terminal(host: Host) -> None:
    host.write()
    host.ledger.write_text(f"a%1Bb {dead_pid()}\n")
    done = call(host.config)
    assert f"{host.ledger}: a?b of pid " in done.stdout
    assert "\x1b" not in done.stdout
    assert "a\\u001bb" in call(host.config, "--format", "json").stdout


def test_warnings_alone_are_no_failure(host: Host) -> None:
    host.write()
    host.ledger.write_text(f"0 {dead_pid()}\n")
    done = call(host.config)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "warning")
    assert done.stdout.splitlines()[-1].startswith("1 warning; looked at: ")


def test_command_tells_programs_the_same(host: Host) -> None:
    host.write()
    done = call(host.config, "-D", f"{AMOUNT}=two", "--format", "json")
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert said["findings"] == [
        {
            "check": "amount",
            "severity": "error",
            "problem": "the amount of 'gpu' is no positive integer: no TaskManager starts",
            "evidence": f"-D {AMOUNT}: two",
            "remedy": f"{AMOUNT}: 1",
        }
    ]
    assert f"configuration {host.config}" in said["looked_at"]
    assert said["not_looked_at"][0]["because"] == "Connection refused"


def test_without_a_configuration_the_host_is_looked_at(host: Host) -> None:
    done = call()
    assert done.returncode == 0
    assert "not looked at: Flink's configuration: no configuration is named, and neither FLINK_CONF_DIR " in done.stdout
    assert done.stdout.endswith(
        f"no problem found; looked at: devices of 'gpu', masks and device order, coordination file {host.ledger}\n"
    )


def test_configuration_that_is_not_there_is_a_problem(host: Host) -> None:
    done = call("/missing/config.yaml")
    assert done.returncode == 1
    assert "  evidence: /missing/config.yaml cannot be read: No such file or directory\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"), [(("-D", "amount"), "'amount' is no property"), (("--rest", "x"), "not 'x'")]
)
def test_wrong_use_is_one_line_and_status_2(host: Host, words: tuple[str, ...], message: str) -> None:
    done = call(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_problems_are_coloured_on_a_terminal_only(host: Host) -> None:
    host.write({AMOUNT: 0})
    assert "\x1b" not in call(host.config).stdout
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "externalresource", "doctor", str(host.config)]
    subprocess.run(command, check=False, stdout=follower)
    assert "\x1b[31m\x1b[1mproblem\x1b[0m" in os.read(leader, 1000).decode()
    os.close(leader)
    os.close(follower)
