"""The command line as a real process: what it prints, where, and its exit status."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "coordination"


@pytest.fixture
def environment(ledger: Path) -> dict[str, str]:
    """Return a host with two simulated GPUs and a coordination file of its own."""
    return {
        **os.environ,
        "EXTERNALRESOURCE_GPU_SIMULATE": "2",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(ledger),
    }


def call(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], env=environment, capture_output=True, text=True, check=False)


def test_discover_shows_a_table_with_a_row_for_each_device(environment: dict[str, str]) -> None:
    done = call(environment, "discover")
    heading, *rows = done.stdout.splitlines()
    assert done.returncode == 0
    assert re.split(r"\s{2,}", heading) == ["INDEX", "HEALTH", "HELD BY", "NAME", "MEMORY MIB", "MIG", "NUMA", "UUID"]
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert {row.index("NVIDIA") for row in rows} == {heading.index("NAME")}


def test_discover_says_why_a_device_is_not_handed_out(environment: dict[str, str]) -> None:
    found = json.loads(call(environment, "discover", "--simulate", "one-lost", "--format", "json").stdout)
    assert [device["index"] for device in found if "unusable" in device] == ["3"]
    rows = call(environment, "discover", "--simulate", "one-lost").stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows if "  GPU is lost  " in row] == ["3"]
    assert len([row for row in rows if "  ok  " in row]) == len(rows) - 1


def test_discover_says_who_holds_a_device(environment: dict[str, str]) -> None:
    inside = f"'{COMMAND}' discover; '{COMMAND}' discover --format json"
    holder = call(environment, "run", "gpu=1", "--", "sh", "-c", f"echo $$; {inside}")
    pid, _, *lines = holder.stdout.splitlines()
    assert f"  pid {pid} sh  " in lines[0]
    assert "  pid " not in lines[1]
    first, second = json.loads("\n".join(lines[2:]))
    assert (first["held_by"]["pid"], first["held_by"]["state"]) == (int(pid), "living")
    assert "held_by" not in second


def test_discover_shows_mig_instances_below_their_gpu(environment: dict[str, str]) -> None:
    rows = call(environment, "discover", "--simulate", "a100-mig-mixed").stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["0", "1", "1:0", "1:1", "1:2", "1:3", "2", "2:0", "2:2", "2:5", "3"]
    assert "MIG is on: its instances are the devices" in rows[1]
    assert "  1c.2g.10gb  " in rows[3]


def test_discover_draws_the_topology(environment: dict[str, str]) -> None:
    table, _, matrix = call(environment, "discover", "--simulate", "dgx-1", "--topology").stdout.partition("\n\n")
    assert len(table.splitlines()) == 9
    heading, first, *_ = matrix.splitlines()
    assert heading.split() == list("01234567")
    assert first.split() == ["0", "X", "NV1", "NV1", "NV2", "NV2", "SYS", "SYS", "SYS"]


def test_answer_that_cannot_be_written_is_one_line(environment: dict[str, str]) -> None:
    command = f"'{COMMAND}' discover > /dev/full"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "externalresource: cannot write the answer: No space left on device\n")


@pytest.mark.parametrize("machine", ["dgx-1", "in-use"])
def test_discover_records_the_host_for_a_simulation(machine: str, environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    assert call(environment, "discover", "--simulate", machine, "--record", str(file)).returncode == 0
    columns = "index", "name", "memory.total", "numa_node", "links", "in_use"
    words = "--topology", "--format=json", "-o", "foreign-use=warn"

    def seen(machine: str) -> list[list[str | None]]:
        found = json.loads(call(environment, "discover", "--simulate", machine, *words).stdout)
        return [[device.get(column) for column in columns] for device in found]

    assert seen(str(file)) == seen(machine)


def test_record_that_cannot_be_written_is_one_line(environment: dict[str, str]) -> None:
    done = call(environment, "discover", "--record", "/missing/here.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "externalresource: cannot write /missing/here.yaml: No such file or directory\n"


def test_discover_shows_the_devices_though_nobody_knows_who_holds_them(
    environment: dict[str, str], ledger: Path
) -> None:
    ledger.write_text("rubbish\n")
    done = call(environment, "discover")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    assert done.stderr.startswith(f"externalresource: who holds what is not known: {ledger}, line 1: cannot read")
    assert done.stderr.count("\n") == 1


def test_discover_says_that_there_is_nothing(environment: dict[str, str]) -> None:
    assert call(environment, "discover", "--simulate", "0").stdout == "This host has no gpu device.\n"


def test_run_becomes_the_command_with_its_status(environment: dict[str, str]) -> None:
    done = call(environment, "run", "gpu=1", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 7")
    assert (done.returncode, done.stdout[:4], done.stderr) == (7, "GPU-", "")


def test_run_is_the_same_process_so_signals_are_the_commands(environment: dict[str, str]) -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen(
        [COMMAND, "run", "gpu=1", "--", sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        child.send_signal(signal.SIGTERM)
        assert child.wait() == -signal.SIGTERM


def test_status_inside_run_shows_the_command_as_living_owner(environment: dict[str, str]) -> None:
    done = call(environment, "run", "gpu=2", "--", COMMAND, "status", "--format", "json")
    assert [(row["device"], row["state"]) for row in json.loads(done.stdout)] == [("0", "living"), ("1", "living")]


def test_status_after_run_shows_a_dead_owner(environment: dict[str, str]) -> None:
    call(environment, "run", "gpu=1", "--", "true")
    heading, row = call(environment, "status").stdout.splitlines()
    assert (heading.split()[2], row.split()[2]) == ("STATE", "dead")


def test_status_of_nothing_says_so(environment: dict[str, str]) -> None:
    assert call(environment, "status").stdout == "No gpu device is held.\n"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("run", "gpu=1"), 125, "no command: write `externalresource run gpu=1 -- COMMAND ...`"),
        (("run", "gpu=1", "--"), 125, "no command: write `externalresource run gpu=1 -- COMMAND ...`"),
        (("run", "--", "true"), 125, "Missing argument 'NAME=AMOUNT... -- COMMAND...'."),
        (("run", "gpu=two", "--", "true"), 125, "the amount of 'gpu' must be a positive integer, not 'two'"),
        (("run", "gpu=0", "--", "true"), 125, "the amount of 'gpu' must be a positive integer, not '0'"),
        (("run", f"gpu={'9' * 5000}", "--", "true"), 125, "the amount of 'gpu' must be a positive integer, not '99"),
        (("run", "gpu", "--", "true"), 125, "'gpu' is no resource: write it like gpu=1"),
        (("run", "gpu=1", "gpu=1", "--", "true"), 125, "resource 'gpu' is given twice"),
        (("run", "gpu=3", "--", "true"), 125, "3 wanted, this host has 2"),
        (("run", "gpu=1", "--nope", "--", "true"), 125, "No such option '--nope'."),
        (("run", "gpu=1", "--", "/etc/passwd"), 126, "/etc/passwd: Permission denied"),
        (("run", "gpu=1", "--", "no-such-command"), 127, "no-such-command: command not found"),
        (("discover", "-o", "simulate"), 2, "'simulate' is no option: write it like backend=nvml"),
        (("discover", "--simulate", "dgx-a10"), 2, "did you mean 'dgx-a100'?"),
        (("discover", "-o", "simulat=8"), 2, "did you mean 'simulate'?"),
        (("discover", "gpuu"), 1, "did you mean 'gpu'?"),
        (("discover", "--format", "xml"), 2, "'xml' is not one of 'table', 'json'"),
        (("release",), 2, "nothing to release: name --dead, --device DEVICE or --owner PID"),
        (("statu",), 2, "No such command 'statu'. Did you mean 'status'?"),
        (("status", "--coordination-file", "/nowhere/file"), 0, ""),
    ],
)
def test_an_error_is_one_line_on_stderr(
    environment: dict[str, str], ledger: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    done = call(environment, *words)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") == (status != 0)
    assert not ledger.exists() or not ledger.read_text(), "the claim must be given back"


@pytest.mark.parametrize(("command", "cause"), [("discover", "no bus"), ("status", "no claims")])
def test_driver_that_breaks_is_one_line(environment: dict[str, str], tmp_path: Path, command: str, cause: str) -> None:
    done = call(
        environment | {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}, command, "breaking_driver:Factory"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"externalresource: the driver of 'breaking_driver:Factory' failed: ValueError: {cause}\n"


def test_what_a_driver_left_for_the_end_is_done(environment: dict[str, str], tmp_path: Path) -> None:
    text = "import atexit\nfrom breaking_driver import Factory\natexit.register(print, 'at the end', end='')\n"
    (tmp_path / "tidy.py").write_text(text, encoding="ascii")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1] / "support")])
    done = call(environment | {"PYTHONPATH": path}, "status", "tidy:Factory")
    assert (done.returncode, done.stdout) == (1, "at the end")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_stream_that_is_closed_changes_no_status(environment: dict[str, str], closed: str) -> None:
    for words, status in (("status", 0), ("run gpu=3 -- true", 125)):
        done = subprocess.run(["sh", "-c", f"'{COMMAND}' {words} {closed}"], env=environment, check=False)
        assert done.returncode == status


def test_a_reader_who_had_enough_is_no_error(environment: dict[str, str]) -> None:
    pipeline = f"'{COMMAND}' discover --simulate 1024 | head -n 1"
    done = subprocess.run(["bash", "-c", pipeline], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("INDEX")
    assert done.stderr == ""


def held_by_a_living_owner(environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [COMMAND, "run", "gpu=1", "--", sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_release_strikes_out_what_the_dead_hold_and_nothing_else(environment: dict[str, str], ledger: Path) -> None:
    call(environment, "run", "gpu=1", "--", "true")
    with held_by_a_living_owner(environment) as owner:
        call(environment, "run", "gpu=1", "--", "true")
        done = call(environment, "release", "--dead")
        assert re.fullmatch(r"released 1, held by pid \d+\n", done.stdout)  # 0 went to the living one
        assert [line.split()[1] for line in ledger.read_text().splitlines()] == [str(owner.pid)]
        owner.kill()


def test_release_of_a_living_owners_device_needs_force(environment: dict[str, str], ledger: Path) -> None:
    with held_by_a_living_owner(environment) as owner:
        refused = call(environment, "release", "--device", "0")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.endswith(" lives and holds 0: end it; use --force only if it does not use the device\n")
        assert ledger.read_text()
        forced = call(environment, "release", "--owner", str(owner.pid), "--force")
        assert forced.stdout == f"released 0, held by pid {owner.pid}\n"
        assert not ledger.read_text()
        owner.kill()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_release_of_another_users_living_owner_is_refused_even_with_force(environment: dict[str, str]) -> None:
    unmeasured = {name: value for name, value in environment.items() if not name.startswith("COVERAGE")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        unmeasured["EXTERNALRESOURCE_GPU_COORDINATION_FILE"] = str(folder / "claims")
        with held_by_a_living_owner(unmeasured) as owner:
            other_user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", COMMAND]
            command = [*other_user, "release", "--device", "0", "--force"]
            done = subprocess.run(command, env=unmeasured, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.endswith(" lives and holds 0, and you may not signal it\n")
            assert (folder / "claims").read_text()
            owner.kill()


def test_release_of_nothing_says_so(environment: dict[str, str]) -> None:
    assert call(environment, "release", "--dead").stdout == "nothing to release: no such claim\n"


def test_run_waits_for_its_turn(environment: dict[str, str]) -> None:
    with held_by_a_living_owner(environment) as owner:
        refused = call(environment, "run", "gpu=2", "--wait", "0.2", "--", "true")
        assert (refused.returncode, refused.stderr.endswith("; waited 0.2 s for them\n")) == (125, True)
        command = [COMMAND, "run", "gpu=2", "--wait", "60", "--", "true"]
        with subprocess.Popen(command, env=environment) as waiting:
            owner.kill()
            assert waiting.wait() == 0


def test_status_is_watched_until_it_is_interrupted(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [COMMAND, "status", "--watch"], env=environment, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert {watching.stdout.readline() for _ in range(2)} == {"No gpu device is held.\n"}
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 130


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)])
def test_help_shows_examples_line_by_line_and_what_each_command_does(
    environment: dict[str, str], words: tuple[str, ...]
) -> None:
    done = call(environment, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  externalresource discover                      what is here\n" in done.stdout
    assert "\\" not in done.stdout
    assert not re.search(r"^  \w.*\.\.\.$", done.stdout, re.MULTILINE), "a command's line is cut short"


def test_command_is_also_a_module(environment: dict[str, str]) -> None:
    as_module = [sys.executable, "-P", "-m", "externalresource", "statu"]
    done = subprocess.run(as_module, env=environment, capture_output=True, text=True, check=False)
    script = call(environment, "statu")
    assert (done.returncode, done.stdout, done.stderr) == (script.returncode, script.stdout, script.stderr)


def test_help_of_run_needs_no_command(environment: dict[str, str]) -> None:
    assert call(environment, "run", "-h").stdout == call(environment, "run", "--help").stdout != ""


@pytest.mark.parametrize("command", ["discover", "run", "status", "release", "plugins", "demo"])
def test_help_says_what_each_option_is_for(environment: dict[str, str], command: str) -> None:
    done = call(environment, command, "--help")
    options = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("-")]
    assert done.returncode == 0
    assert all(len(words) > 2 for words in options)
