"""`externalresource run` under what people start programs with: nohup, make, xargs, GNU parallel, systemd-run."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import externalresource
from tests.support.processes import wait_until
from tests.support.user_manager import user_manager

COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")
JOBS = 6
GPUS = 2

# Of what it writes the order is that in which things happen.
JOB = """#!/bin/sh
echo "start $CUDA_VISIBLE_DEVICES $1" >> log
sleep 0.05
echo "end $CUDA_VISIBLE_DEVICES $1" >> log
exit ${2:-0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").write_text(JOB, encoding="ascii")
    (tmp_path / "job").chmod(0o755)
    return tmp_path


def words(folder: Path, *options: str) -> list[str]:
    """Return the words that put a command on one of two GPUs."""
    return [
        COMMAND,
        "run",
        "gpu=1",
        "--wait=120",
        f"--simulate={GPUS}",
        f"--coordination-file={folder}/claims",
        *options,
        "--",
    ]


def line(folder: Path, *command: str) -> str:
    return shlex.join([*words(folder), *command])


def _plain_environment() -> dict[str, str]:
    """Return what is set here, but for the `make` that may run these tests and the language of messages."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "GNUMAKE"))}
    return own | {"LC_ALL": "C"}


def call(folder: Path, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    needs(command[0])
    return subprocess.run(
        command,
        cwd=folder,
        env=_plain_environment() | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def shell(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(folder, ["sh", "-c", text], **environment)


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")


def written(folder: Path) -> list[list[str]]:
    log = folder / "log"
    return [row.split() for row in log.read_text(encoding="ascii").splitlines()] if log.exists() else []


def living(folder: Path) -> list[str]:
    status = [COMMAND, "status", f"--coordination-file={folder}/claims", "--format=json"]
    rows = json.loads(call(folder, status).stdout)
    return [row["device"] for row in rows if row["state"] == "living"]


def check(folder: Path) -> None:
    """Check that all jobs have run, never two at once on one GPU, and that nobody holds one at the end."""
    wait_until(lambda: len(written(folder)) == 2 * JOBS)
    busy: set[str] = set()
    for what, gpu, _ in written(folder):
        assert gpu.startswith("GPU-")
        assert (gpu in busy) == (what == "end")
        busy ^= {gpu}
    assert {job for _, _, job in written(folder)} == set(map(str, range(JOBS)))
    wait_until(lambda: not living(folder))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with user_manager(tmp_path_factory.mktemp("manager") / "log") as environment:
        yield environment


def test_under_nohup(folder: Path) -> None:
    each = "".join(f"nohup {line(folder, './job', str(job))} & " for job in range(JOBS))
    assert shell(folder, f"{each} wait").returncode == 0
    check(folder)


def test_under_make(folder: Path) -> None:
    jobs = " ".join(f"job-{job}" for job in range(JOBS))
    (folder / "Makefile").write_text(f"all: {jobs}\njob-%:\n\t{line(folder, './job')} $*\n", encoding="ascii")
    assert call(folder, ["make", "-j4"]).returncode == 0
    check(folder)


def test_under_xargs(folder: Path) -> None:
    assert shell(folder, f"seq 0 {JOBS - 1} | xargs -n1 -P4 {line(folder, './job')}").returncode == 0
    check(folder)


def test_under_parallel(folder: Path) -> None:
    jobs = map(str, range(JOBS))
    assert call(folder, ["parallel", "--will-cite", "-j4", *words(folder), "./job", "{}", ":::", *jobs]).returncode == 0
    check(folder)


def test_in_a_session_of_its_own_with_another_parent_and_a_clean_environment(folder: Path) -> None:
    for job in range(JOBS):
        shell(folder, f"setsid --fork env -i {line(folder, './job', str(job))} >/dev/null 2>&1")
    check(folder)


@pytest.mark.parametrize("kind", [["--same-dir"], ["--scope"]], ids=["service", "scope"])
def test_under_systemd_run(folder: Path, manager: dict[str, str], kind: list[str]) -> None:
    start = shlex.join(["systemd-run", "--user", "--quiet", *kind])
    each = "".join(f"{start} {line(folder, './job', str(job))} & " for job in range(JOBS))
    said = shell(folder, f"{each} wait", **manager).stderr.splitlines()
    assert [text for text in said if not text.startswith("waiting for gpu: ")] == []
    check(folder)


def test_service_that_is_stopped_frees_its_gpu(folder: Path, manager: dict[str, str]) -> None:
    waiting = line(
        folder, "sh", "-c", "trap 'echo stopped >> log; exit 9' TERM; echo began >> log; while :; do sleep 0.01; done"
    )
    shell(folder, f"systemd-run --user --quiet --same-dir --unit=stopped {waiting}", **manager)
    wait_until(lambda: written(folder) == [["began"]])
    assert len(living(folder)) == 1
    shell(folder, "systemctl --user stop stopped", **manager)
    assert written(folder) == [["began"], ["stopped"]]
    shown = shell(folder, "systemctl --user show -p ExecMainStatus stopped", **manager)
    assert (shown.stdout, living(folder)) == ("ExecMainStatus=9\n", [])


def test_exit_status_is_the_commands(folder: Path) -> None:
    job = line(folder, "./job", "0", "7")
    assert shell(folder, f"nohup {job}").returncode == 7
    assert shell(folder, f"echo | xargs {job}").returncode == 123  # some command failed
    (folder / "Makefile").write_text(f"fails:\n\t{job}\n", encoding="ascii")
    made = call(folder, ["make"])
    assert (made.returncode, made.stderr) == (2, "make: *** [Makefile:2: fails] Error 7\n")


def test_exit_status_is_the_commands_under_parallel(folder: Path) -> None:
    halt = ["parallel", "--will-cite", "--halt", "now,fail=1"]
    assert call(folder, [*halt, *words(folder), "./job", "0", "{}", ":::", "7"]).returncode == 7


def test_exit_status_is_the_commands_under_systemd_run(folder: Path, manager: dict[str, str]) -> None:
    job = line(folder, "./job", "0", "7")
    assert shell(folder, f"systemd-run --user --quiet --scope {job}", **manager).returncode == 7


def test_make_inside_has_the_jobserver_of_the_make_outside(folder: Path) -> None:
    (folder / "inner.mk").write_text("all: a b\na b:\n\t@echo $@\n", encoding="ascii")
    (folder / "Makefile").write_text(f"all:\n\t+{line(folder)} $(MAKE) -f inner.mk\n", encoding="ascii")
    made = call(folder, ["make", "-j4"])
    assert (made.returncode, made.stderr) == (0, "")


def test_hangup_is_ignored_under_nohup(folder: Path) -> None:
    job = line(folder, "sh", "-c", "kill -HUP $$; echo lives")
    assert shell(folder, f"nohup {job}").stdout == "lives\n"
    assert shell(folder, f"exec {job}").returncode == -signal.SIGHUP


def held(folder: Path) -> externalresource.RuntimeContext:
    """Hold all GPUs."""
    options = {"simulate": str(GPUS), "coordination-file": f"{folder}/claims"}
    return externalresource.claim("gpu", GPUS, options=options)


def start(folder: Path, *before: str) -> "subprocess.Popen[str]":
    """Start a command that has to wait, in a process group of its own."""
    command = [*before, *words(folder), "echo", "ran"]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_command_that_must_wait_says_for_whom_though_nobody_is_at_a_terminal(folder: Path) -> None:
    with held(folder) as context, start(folder) as process:
        assert process.stderr
        said = process.stderr.readline()
        context.close()
        assert process.communicate() == ("ran\n", "")
    assert said.startswith(f"waiting for gpu: 1 wanted, 0 of {GPUS} free; held by pid {os.getpid()} (")


def test_hangup_is_ignored_under_nohup_while_it_waits(folder: Path) -> None:
    with held(folder) as context, start(folder, "nohup") as process:
        assert process.stderr
        process.stderr.readline()
        os.killpg(process.pid, signal.SIGHUP)
        context.close()
        assert process.communicate() == ("ran\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_command_that_must_wait_is_not_run_after_a_signal(folder: Path, number: int) -> None:
    with held(folder), start(folder) as process:
        assert process.stderr
        process.stderr.readline()
        process.send_signal(number)
        assert process.communicate()[0] == ""
        assert process.returncode == -number
    assert living(folder) == []


@pytest.mark.parametrize("busy", [False, True])
def test_request_larger_than_the_host_fails_at_once(folder: Path, busy: bool) -> None:  # noqa: FBT001
    hold = held(folder) if busy else None
    command = [*words(folder, f"gpu={GPUS + 1}"), "true"]
    command.remove("gpu=1")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # half of --wait
    assert (done.returncode, done.stderr) == (125, f"externalresource: {GPUS + 1} wanted, this host has {GPUS}\n")
    if hold:
        hold.close()
