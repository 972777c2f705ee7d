"""Somebody's discovery scripts as real ones, run by the GPU driver of this process."""

import os
from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from tests.support.gpu_drivers import (
    COORDINATED,
    FLINKS,
    INSTALLED,
    Scripts,
    claimed,
    created,
    ended,
    eventually,
    failure,
    foreign,
    in_a_forked_child,
    mine,
    refusal,
    retrieved,
)

pytestmark = pytest.mark.usefixtures("ledger")


def test_somebodys_script_is_run_with_the_amount_and_the_arguments(tmp_path: Path, script: Scripts) -> None:
    path = script(f'for word in "$@"; do echo "$word"; done > {tmp_path}/words; echo 4,5')
    driver = foreign(path, args="""--a "b c" 'd  e' f\\ g $HOME * "" """)
    assert retrieved(driver, 2) == ["4", "5"]
    assert (tmp_path / "words").read_text().splitlines() == ["2", "--a", "b c", "d  e", "f g", "$HOME", "*", ""]


def test_options_reach_somebodys_script_as_words_that_flinks_own_understands(tmp_path: Path, script: Scripts) -> None:
    path = script(f'echo "$@" > {tmp_path}/words; echo 0')
    given = {"discovery-script.path": path, "discovery-script.args": "--mine"}
    created(given | COORDINATED | {"coordination-file": "/a"}).retrieve_resource_info(1)
    words = (tmp_path / "words").read_text()
    assert words == "1 --mine --enable-coordination-mode --coordination-file /a --simulate 4\n"


def test_somebodys_script_is_found_where_flink_looks(
    tmp_path: Path, script: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("echo 1", "home/bin/s.sh")
    script("echo 2", "here/bin/s.sh")
    monkeypatch.chdir(tmp_path / "here")
    assert retrieved(foreign("bin/s.sh"), 1) == ["2"]
    monkeypatch.setenv("FLINK_HOME", str(tmp_path / "home"))
    assert retrieved(foreign("bin/s.sh"), 1) == ["1"]
    assert retrieved(foreign(str(tmp_path / "here/bin/s.sh")), 1) == ["2"]


@pytest.mark.parametrize("path", ["plugins/gpu/s.sh", "gpu/s.sh"])
def test_somebodys_script_is_found_in_flinks_folder_of_plugins(
    tmp_path: Path, script: Scripts, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    script("echo 3", "elsewhere/gpu/s.sh")
    monkeypatch.setenv("FLINK_PLUGINS_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("FLINK_HOME", str(tmp_path / "home"))
    assert retrieved(foreign(path), 1) == ["3"]
    script("echo 4", f"home/{path}")
    assert retrieved(foreign(path), 1) == ["4"]


def test_missing_script_is_refused_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = {"discovery-script.path": "plugins/s.sh"}
    monkeypatch.chdir(tmp_path)
    assert refusal(path) == (f"the discovery script plugins/s.sh does not exist; looked for {tmp_path}/plugins/s.sh")
    monkeypatch.setenv("FLINK_HOME", "/h")
    monkeypatch.setenv("FLINK_PLUGINS_DIR", "/p")
    assert refusal(path).endswith("looked for /h/plugins/s.sh and /p/s.sh")


@pytest.mark.parametrize("path", ["", "  "])
def test_empty_path_is_refused(path: str) -> None:
    assert refusal({"discovery-script.path": path}) == (
        "discovery-script.path is empty; leave it out to use our own script"
    )


def test_folder_is_no_script(tmp_path: Path) -> None:
    assert "is a directory" in refusal({"discovery-script.path": str(tmp_path)})


def test_script_that_is_not_executable_is_refused(script: Scripts) -> None:
    path = script("echo 0", mode=0o644)
    assert refusal({"discovery-script.path": path}) == (f"the discovery script {path} is not executable; chmod +x it")


def test_script_that_cannot_be_run_is_an_error(script: Scripts) -> None:
    path = script("echo 0", first="#!/no/such/shell\n")
    reason = "No such file or directory; the interpreter in its first line does not exist"
    assert failure(foreign(path), 1) == f"{path} could not be run: {reason}"


def test_hanging_script_is_killed_with_all_that_it_started(tmp_path: Path, script: Scripts) -> None:
    path = script(f"sleep 600 & echo $! $$ > {tmp_path}/pids; wait")
    assert failure(foreign(path, timeout="2")) == (
        f"{path} did not answer within 2 s and was killed; see discovery-script.timeout"
    )
    pids = (tmp_path / "pids").read_text().split()
    assert eventually(lambda: all(ended(int(pid)) for pid in pids))


ANSWERS = [
    ("", "the discovery script printed nothing, not one line of devices: ''"),
    ("echo", "the discovery script printed nothing, not one line of devices: '\\n'"),
    ("echo '  '", "the discovery script printed nothing, not one line of devices: '  \\n'"),
    ("echo 0; echo 1", "the discovery script printed 2 lines, not one line of devices: '0\\n1\\n'"),
    ("echo; echo 0,1", "the discovery script printed 2 lines, not one line of devices: '\\n0,1\\n'"),
    ("echo 0", "the discovery script printed 1 devices, not the 2 asked for"),
    ("echo 0,1,2", "the discovery script printed 3 devices, not the 2 asked for"),
    ("echo ,,", "the discovery script printed 0 devices, not the 2 asked for"),
    ("echo 0,0", "the discovery script printed device '0' more than once: '0,0'"),
    ("echo 0,1,0", "the discovery script printed device '0' more than once: '0,1,0'"),
    ("echo 0,Unable,to", "the discovery script printed 'Unable', which is neither an index nor a UUID"),
    ("echo 0 1", "the discovery script printed '0 1', which is neither an index nor a UUID"),
    ("echo '[0,1]'", "the discovery script printed '[0', which is neither an index nor a UUID"),
    ("echo out; echo err >&2; exit 3", "{path} exited with 3: err"),
    ("echo out; echo more; exit 1", "{path} exited with 1: out more"),
    ("exit 4", "{path} exited with 4: it said nothing"),
    ("echo 0,1; kill -9 $$", "{path} was ended by signal 9: 0,1"),
]


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_wrong_answer_is_an_error_that_shows_it(script: Scripts, ledger: Path, text: str, expected: str) -> None:
    path = script(text)
    assert failure(foreign(path)) == expected.format(path=path)
    assert not ledger.exists()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("echo 0,1", ["0", "1"]),
        ("printf 1,0", ["0", "1"]),
        ("echo ' 3 ,, 12, '", ["12", "3"]),
        ("printf '0,1\\r\\n\\n\\n'", ["0", "1"]),
        ("echo GPU-5a,MIG-GPU-5a/1/0", ["GPU-5a", "MIG-GPU-5a/1/0"]),
        ("echo 0,1; sleep 30 &", ["0", "1"]),
    ],
)
def test_right_answer_may_be_untidy(script: Scripts, text: str, tokens: list[str]) -> None:
    assert retrieved(foreign(script(text)), 2) == tokens


MEGABYTE = "head -c 1000000 /dev/zero | tr '\\0' "


def test_chatty_script_is_read_to_its_end(script: Scripts) -> None:
    assert retrieved(foreign(script(f"{MEGABYTE} e >&2; echo 0,1")), 2) == ["0", "1"]


@pytest.mark.parametrize("last", ["exit 0", "exit 1"])
def test_megabyte_on_both_streams_is_an_error_that_is_short(script: Scripts, last: str) -> None:
    failure(foreign(script(f"{MEGABYTE} o; {MEGABYTE} e >&2; {last}")))


def test_hundred_thousand_devices_are_counted_at_once(script: Scripts) -> None:
    expected = "the discovery script printed 100000 devices, not the 2 asked for"
    assert failure(foreign(script("seq -s, 100000"))) == expected


def test_somebodys_script_tells_its_devices_only_when_asked_for_them(script: Scripts, ledger: Path) -> None:
    path = script("echo 0")
    driver = foreign(path)
    with pytest.raises(DiscoveryError, match=f"{path} cannot list devices"):
        driver.devices()
    with pytest.raises(DiscoveryError, match=f"{path} is not told to coordinate"):
        driver.held()
    assert driver.environment(driver.retrieve_resource_info(1))["CUDA_VISIBLE_DEVICES"] == "0"
    driver.close()
    assert not ledger.exists()


@pytest.mark.parametrize(
    ("lost", "second"),
    [
        ("--coordination-file=/x--enable-coordination-mode", "enable-coordination-mode"),
        ("--mine--coordination-file=/x", "coordination-file"),
    ],
)
def test_word_that_has_another_option_in_it_is_not_given_to_somebodys_script(
    script: Scripts, lost: str, second: str
) -> None:
    given = {"discovery-script.path": script(FLINKS), "discovery-script.args": lost}
    assert refusal(given).startswith(f"the blank is missing before --{second} in {lost!r}: ")


def test_who_holds_what_is_known_of_a_script_that_is_told_to_coordinate(script: Scripts, ledger: Path) -> None:
    ledger.touch()
    driver = foreign(script(FLINKS), args=f"--enable-coordination-mode --coordination-file {ledger}")
    assert retrieved(driver, 1) == ["0"]
    [claim] = driver.held()
    assert (claim.token, claim.owner.process.pid) == ("0", os.getpid())
    assert driver.coordination_file == str(ledger)
    driver.close()


@pytest.mark.parametrize("by_option", [True, False], ids=["by option", "by argument"])
def test_flinks_own_script_coordinates_with_itself_and_with_ours(
    script: Scripts, ledger: Path, *, by_option: bool
) -> None:
    ledger.touch()
    mode = (
        {"enable-coordination-mode": "true", "coordination-file": str(ledger)}
        if by_option
        else {"discovery-script.args": f"--enable-coordination-mode --coordination-file {ledger}"}
    )
    flinks, ours = created(mode | {"discovery-script.path": script(FLINKS)}), created(COORDINATED)
    assert retrieved(flinks, 1) == ["0"]
    assert claimed(ledger) == mine("0")
    assert [retrieved(ours, 1), retrieved(flinks, 2)] == [["1"], ["2", "3"]]
    assert failure(flinks, 1).endswith("exited with 1: Could not get enough GPU resources.")
    assert failure(ours, 1).startswith("1 wanted, 0 of 4 free; held by")
    ours.close()
    assert claimed(ledger) == mine("0", "2", "3")
    flinks.close()
    assert claimed(ledger) == []


def test_what_somebodys_script_records_for_a_process_is_given_back_by_that_process_alone(
    script: Scripts, ledger: Path
) -> None:
    ledger.write_text("3 1\n")
    path = script(FLINKS)
    first, second = (foreign(path, args=f"--enable-coordination-mode --coordination-file {ledger}") for _ in range(2))
    assert [retrieved(first, 1), retrieved(second, 1)] == [["0"], ["1"]]
    assert in_a_forked_child(first.close) == 0
    assert claimed(ledger) == [("3", 1), *mine("0", "1")]
    first.close()
    assert claimed(ledger) == [("3", 1), *mine("1")]


def test_what_a_script_records_that_fails_is_given_back_at_once(script: Scripts, ledger: Path) -> None:
    path = script(FLINKS + "exit 7")
    ledger.touch()
    driver = foreign(path, args=f"--enable-coordination-mode --coordination-file {ledger}")
    assert "exited with 7" in failure(driver, 1)
    assert claimed(ledger) == []


@pytest.mark.usefixtures("ledger")
def test_script_that_mentions_ours_is_somebodys(script: Scripts) -> None:
    path = script("# from externalresource_gpu.script.main import main\necho 0")
    assert retrieved(foreign(path), 1) == ["0"]


def test_script_of_another_installation_is_run_as_somebodys(tmp_path: Path, ledger: Path) -> None:
    other = tmp_path / "nvidia-gpu-discovery"
    other.write_bytes(INSTALLED.read_bytes())
    other.chmod(0o755)
    driver = created(COORDINATED | {"discovery-script.path": str(other)})
    [gpu] = driver.retrieve_resource_info(1)
    assert list(gpu.get_keys()) == ["index"]
    assert claimed(ledger) == mine("0")
    driver.close()
    assert claimed(ledger) == []


def test_descriptors_are_not_lost(script: Scripts) -> None:
    good, bad = foreign(script("echo 0,1")), foreign(script("exit 1", "bad.sh"))
    before = os.listdir("/proc/self/fd")
    good.retrieve_resource_info(2)
    failure(bad)
    assert os.listdir("/proc/self/fd") == before
