"""Somebody's discovery script as a real one: found as Flink finds it, run until it ends or its time is over."""

import os
import time
from pathlib import Path

import pytest

from externalresource.api import Ended, find_script, run_script
from externalresource.errors import ConfigurationError, DiscoveryError
from tests.support.processes import wait_until

FAR = 60.0


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLINK_HOME", "FLINK_PLUGINS_DIR"):
        monkeypatch.delenv(name, raising=False)


def write(path: Path, text: str = "#!/bin/sh\necho 0\n", mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def run(path: str, *words: str, seconds: float = FAR) -> Ended:
    return run_script([path, *words], time.monotonic() + seconds, name="the script", option="more-time")


def refusal(path: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        find_script(path)
    return str(caught.value)


def test_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "s.sh")
    assert find_script(path) == path


def test_relative_path_is_looked_for_in_flinks_home_then_in_its_plugins_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLINK_HOME", str(tmp_path / "flink"))
    monkeypatch.setenv("FLINK_PLUGINS_DIR", str(tmp_path / "more"))
    places = f"{tmp_path}/flink/plugins/s.sh and {tmp_path}/more/s.sh"
    assert refusal("plugins/s.sh") == f"the discovery script plugins/s.sh does not exist; looked for {places}"
    more = write(tmp_path / "more/s.sh")
    assert find_script("plugins/s.sh") == more
    home = write(tmp_path / "flink/plugins/s.sh")
    assert find_script("plugins/s.sh") == home


def test_relative_path_without_flink_is_looked_for_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "s.sh")
    assert find_script("s.sh") == path


def test_folder_is_no_script(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == f"the discovery script {tmp_path} is a directory; looked for {tmp_path}"


def test_script_that_is_not_executable_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.sh", mode=0o644)
    assert refusal(path) == f"the discovery script {path} is not executable; chmod +x it"


def test_script_that_ends_has_said_what_it_said(tmp_path: Path) -> None:
    path = write(tmp_path / "s.sh", '#!/bin/sh\necho "$1"; echo careful >&2; exit 3\n')
    assert run(path, "a b") == Ended(3, "a b\n", "careful\n")


@pytest.mark.parametrize(
    ("ended", "failure"),
    [
        (Ended(3, "0\n", "no\n\nboard \n"), "exited with 3: no board"),
        (Ended(1, "no board\n", " \n"), "exited with 1: no board"),
        (Ended(-9, "", ""), "was ended by signal 9: it said nothing"),
        (Ended(1, "", "x" * 5000), f"exited with 1: {'x' * 2000}"),
    ],
    ids=["stderr", "stdout", "signal", "much"],
)
def test_failure_is_told_in_one_line_of_what_was_said(ended: Ended, failure: str) -> None:
    assert ended.failure == failure


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("", "Exec format error; its first line must name its interpreter, as #!/bin/sh does"),
        ("#!/no/such/shell\n", "No such file or directory; the interpreter in its first line does not exist"),
    ],
    ids=["no first line", "no interpreter"],
)
def test_script_that_cannot_be_started_is_told_why(tmp_path: Path, first: str, reason: str) -> None:
    path = write(tmp_path / "s.sh", f"{first}echo 0\n")
    with pytest.raises(DiscoveryError) as caught:
        run(path)
    assert str(caught.value) == f"the script could not be run: {reason}"


def test_script_that_is_late_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    path = write(tmp_path / "s.sh", f"#!/bin/sh\nsleep 600 & echo $! $$ > {tmp_path}/pids; wait\n")
    with pytest.raises(DiscoveryError) as caught:
        run(path, seconds=2)
    assert str(caught.value) == "the script did not answer within 2 s and was killed; see more-time"
    for pid in (tmp_path / "pids").read_text().split():
        wait_until(lambda pid=pid: _zombie(pid))  # type: ignore[misc]


def _zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_script_inherits_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "FPGA_KIND", "big")
    assert run(write(tmp_path / "s.sh", '#!/bin/sh\necho "$FPGA_KIND"\n')).out == "big\n"
