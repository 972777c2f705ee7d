"""The discovery script as a real process, started as Flink starts it: by the process that is to own the devices."""

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MODULE = [sys.executable, "-P", "-m", "externalresource_gpu.script.main"]
INSTALLED = [str(Path(sysconfig.get_path("scripts")) / "nvidia-gpu-discovery")]
COORDINATED = ("--backend=nvidia-smi", "--enable-coordination-mode")
INITIAL_PID_NAMESPACE = 0xEFFFFFFC

# Answers any query for two GPUs.
NVIDIA_SMI = """\
#!/bin/sh
{first}
for index in 0 1; do
  row=
  IFS=,
  for field in ${{1#--query-gpu=}}; do
    case $field in
      index) cell=$index ;;
      uuid) cell=GPU-$index ;;
      name) cell="NVIDIA A100" ;;
      *) cell="[N/A]" ;;
    esac
    row="$row${{row:+, }}$cell"
  done
  echo "$row"
done
"""

Claims = list[tuple[str, int]]


class Host:
    """A host with two GPUs, as far as nvidia-smi says, and a coordination file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger"
        self.log = path / "log"
        self.began = path / "began"
        self.go = path / "go"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EXTERNALRESOURCE_")},
            "PATH": f"{path}:{os.environ['PATH']}",
            "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(self.ledger),
        }
        self.nvidia_smi()

    def nvidia_smi(self, first: str = "") -> None:
        """Let nvidia-smi run this first."""
        (self.path / "nvidia-smi").write_text(NVIDIA_SMI.format(first=first))
        (self.path / "nvidia-smi").chmod(0o755)

    def hold_nvidia_smi(self) -> None:
        """Let nvidia-smi say that it has begun, and wait for the word to go on."""
        self.nvidia_smi(f"echo $$ > {self.began}.new; mv {self.began}.new {self.began}\n{until(self.go)}")

    def start(
        self, *words: str, command: list[str] = MODULE, stdout: Any = subprocess.PIPE, **variables: str
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*command, *words],
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, *words: str, command: list[str] = MODULE, stdout: Any = subprocess.PIPE, **variables: str
    ) -> "Answer":
        return Answer(self.start(*words, command=command, stdout=stdout, **variables))

    def claims(self) -> Claims:
        if not self.ledger.exists():
            return []
        rows = [line.split(" ", 2) for line in self.ledger.read_text().splitlines()]
        return [(token, int(pid)) for token, pid, _ in rows]

    def logged(self) -> list[str]:
        """Return what the log file says after the time, which each line begins with."""
        matches = [
            re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.+)", line) for line in self.log.read_text().split("\n")
        ]
        assert matches.pop() is None  # the last line is ended
        assert None not in matches
        return [match[1] for match in matches if match]

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        with open(f"{self.ledger}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file.fileno()


class Answer:
    """What the script said, once it has ended."""

    def __init__(self, script: "subprocess.Popen[str]") -> None:
        self.out, self.err = script.communicate(timeout=60)
        self.status = script.returncode
        assert "Traceback" not in self.err

    @property
    def devices(self) -> str:
        """The line of a script that had nothing else to say."""
        assert (self.status, self.err) == (0, "")
        assert self.out.count("\n") == 1
        return self.out.removesuffix("\n")

    @property
    def reason(self) -> str:
        """The one line with which it granted nothing."""
        return self.refusal(1)

    def refusal(self, status: int) -> str:
        assert (self.status, self.out or "") == (status, "")
        assert self.err.count("\n") == 1
        assert self.err.startswith("nvidia-gpu-discovery: ")
        return self.err.removeprefix("nvidia-gpu-discovery: ").removesuffix("\n")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.go.touch()  # whatever still waits for it shall end


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that lives."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture(params=["SIGTERM", "SIGINT", "SIGHUP"])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored by what is started here, as it is under nohup and in a shell's background."""
    number = signal.Signals[request.param]
    before = signal.signal(number, lambda *_: None)
    yield number
    signal.signal(number, before)


def until(path: Path) -> str:
    """Return the shell's words for waiting until there is such a file."""
    return f"while [ ! -e {path} ]; do sleep 0.01; done"


def eventually(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def waits_for_nvidia_smi(pid: int) -> bool:
    """Whether the script knows its owner and reads from nvidia-smi: it lets no read of those pipes block."""
    try:
        return any(is_unblocked_pipe(pid, descriptor) for descriptor in os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_unblocked_pipe(pid: int, descriptor: str) -> bool:
    flags = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().split()[3]
    return os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("pipe:") and bool(int(flags, 8) & os.O_NONBLOCK)


def waits_for_the_lock(pid: int) -> bool:
    """Whether the script has asked all its questions, and lets three signals no longer end it."""
    try:
        blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return blocked is not None and signals(int(blocked[1], 16)) == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def signals(mask: int) -> set[int]:
    return {number for number in range(1, 65) if mask >> number - 1 & 1}


# ---- protocol -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [MODULE, INSTALLED], ids=["module", "installed"])
@pytest.mark.parametrize("mode", [[], ["--enable-coordination-mode"], ["--enable-coordination"]])
def test_answer_is_one_line_of_tokens_joined_by_commas(host: Host, command: list[str], mode: list[str]) -> None:
    assert host.ask("3", "--simulate=4", *mode, command=command).out == "0,1,2\n"
    assert host.ask("2", "--backend", "nvidia-smi", command=command).devices == "0,1"


def test_word_null_is_no_argument(host: Host) -> None:
    assert host.ask("2", "null", EXTERNALRESOURCE_GPU_SIMULATE="4").devices == "0,1"


@pytest.mark.parametrize("mode", [[], ["--enable-coordination-mode"]])
def test_amount_zero_is_answered_with_nothing_and_without_a_gpu(host: Host, mode: list[str]) -> None:
    host.nvidia_smi("exit 9")
    answer = host.ask("0", "--backend=nvidia-smi", *mode)
    assert (answer.status, answer.out, answer.err) == (0, "", "")
    assert not host.ledger.exists()


@pytest.mark.parametrize("mode", ["--enable-coordination-mode", "--enable-coordination", "--enable-coordination=true"])
def test_coordination_hands_out_no_device_twice(host: Host, mode: str) -> None:
    assert [host.ask("1", "--simulate=2", mode).devices for _ in range(2)] == ["0", "1"]
    assert "0 of 2 free" in host.ask("1", "--simulate=2", mode).reason


def test_without_coordination_everybody_gets_the_same_and_nothing_is_written(host: Host) -> None:
    assert [host.ask("1", "--simulate=2").devices for _ in range(2)] == ["0", "0"]
    assert os.listdir(host.path) == ["nvidia-smi"]


def test_engine_that_passes_no_argument_is_answered_from_the_environment(host: Host) -> None:
    host.environment |= {
        "EXTERNALRESOURCE_GPU_AMOUNT": "2",
        "EXTERNALRESOURCE_GPU_BACKEND": "nvidia-smi",
        "EXTERNALRESOURCE_GPU_ENABLE_COORDINATION_MODE": "true",
        "EXTERNALRESOURCE_GPU_FORMAT": "spark",
        "EXTERNALRESOURCE_GPU_LOG_FILE": str(host.log),
        "EXTERNALRESOURCE_GPU_OWNER_PID": str(os.getpid()),
        "EXTERNALRESOURCE_GPU_TIMEOUT": "60",
    }
    assert host.ask().devices == '{"name": "gpu", "addresses": ["0", "1"]}'
    assert host.claims() == [("0", os.getpid()), ("1", os.getpid())]
    assert len(host.logged()) == 1


def test_command_line_wins_over_the_environment(host: Host) -> None:
    other = host.path / "other"
    words = ["1", "--simulate=3", "--format=flink", "--enable-coordination-mode", f"--coordination-file={other}"]
    answer = host.ask(
        *words,
        EXTERNALRESOURCE_GPU_AMOUNT="2",
        EXTERNALRESOURCE_GPU_SIMULATE="8",
        EXTERNALRESOURCE_GPU_FORMAT="json",
        EXTERNALRESOURCE_GPU_ENABLE_COORDINATION_MODE="false",
    )
    assert answer.devices == "0"
    assert other.exists()
    assert not host.ledger.exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no amount given"),
        (["two"], "the amount must be a whole number from 0 to 999999999, not 'two'"),
        (["-2"], "the amount must be a whole number from 0 to 999999999, not '-2'"),
        (["2", "--enable-coordination-mod"], "did you mean '--enable-coordination-mode'?"),
        (["2", "3"], "unexpected argument '3'"),
        (["2", "--timeout"], "option --timeout needs a value"),
        (["2", "--simulate=dgx-a10"], "did you mean 'dgx-a100'?"),
        (["2", "\udcff"], "unexpected argument '\\udcff'"),
        (["9" * 5000], "the amount must be a whole number"),
    ],
)
def test_usage_error_is_exit_2_and_one_line(host: Host, words: list[str], reason: str) -> None:
    assert reason in host.ask(*words).refusal(2)


def test_unknown_variable_is_a_usage_error(host: Host) -> None:
    reason = host.ask("2", EXTERNALRESOURCE_GPU_BAKEND="nvml").refusal(2)
    assert reason.endswith("did you mean 'EXTERNALRESOURCE_GPU_BACKEND'?")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_answer_whatever_else_is_asked(host: Host, word: str) -> None:
    answer = host.ask("two", word, "--unknown")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith("Usage: nvidia-gpu-discovery AMOUNT")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--format=flink"], "0,1\n"),
        (["--format=uuid"], "GPU-0,GPU-1\n"),
        (["--format=spark"], '{"name": "gpu", "addresses": ["0", "1"]}\n'),
        (
            ["--format=env"],
            "CUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES=GPU-0,GPU-1\nNVIDIA_VISIBLE_DEVICES=GPU-0,GPU-1\n",
        ),
    ],
)
def test_answer_is_in_the_format_that_is_asked_for(host: Host, words: list[str], answer: str) -> None:
    assert host.ask("2", "--backend=nvidia-smi", *words).out == answer


def test_listing_shows_all_devices_whoever_holds_them_and_claims_none(host: Host) -> None:
    words = ["--simulate=one-lost", "--enable-coordination-mode"]
    assert host.ask("6", *words, "--policy=first").devices == "0,1,2,4,5,6"
    before = host.ledger.read_bytes()
    listed = json.loads(host.ask("--list", "--format=json", *words).devices)
    assert [device["index"] for device in listed] == list("01234567")
    assert [device["index"] for device in listed if "unusable" in device] == ["3"]
    assert host.ledger.read_bytes() == before


# ---- amounts that cannot be given -----------------------------------------------------------------


@pytest.mark.parametrize("mode", [[], ["--enable-coordination-mode"]])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["8", "--simulate=2"], "8 wanted, this host has 2"),
        (["1", "--simulate=0"], "1 wanted, this host has 0"),
        (["9", "--simulate=one-lost"], "9 wanted, this host has 8"),
        (["8", "--simulate=one-lost"], "8 wanted, only 7 of 8 are usable (GPU 3: GPU is lost)"),
    ],
)
def test_amount_beyond_the_machine_is_refused_with_what_it_has(
    host: Host, words: list[str], reason: str, mode: list[str]
) -> None:
    assert host.ask(*words, *mode).reason == reason
    assert host.claims() == []


def test_unusable_device_is_never_handed_out(host: Host) -> None:
    assert host.ask("7", "--simulate=one-lost").devices == "0,1,2,4,5,6,7"
    assert host.ask("7", "--simulate=one-lost", "--enable-coordination-mode").devices == "0,1,2,4,5,6,7"


def test_amount_beyond_what_is_free_is_refused_with_who_holds_the_rest(
    host: Host, sleeper: "subprocess.Popen[bytes]"
) -> None:
    words = ["--simulate=8", "--enable-coordination-mode"]
    assert host.ask("7", *words, f"--owner-pid={sleeper.pid}").devices == "0,1,2,3,4,5,6"
    before = host.ledger.read_bytes()
    assert re.fullmatch(
        rf"2 wanted, 1 of 8 free; held by pid {sleeper.pid} \(sleep\), since [-\d]+T[:\d]+Z: 0, 1, 2, 3, 4, 5, 6",
        host.ask("2", *words).reason,
    )
    assert host.ledger.read_bytes() == before


# ---- the owner ------------------------------------------------------------------------------------


def test_owner_is_the_process_that_started_the_script(host: Host) -> None:
    assert host.ask("2", *COORDINATED).devices == "0,1"
    assert host.claims() == [("0", os.getpid()), ("1", os.getpid())]


def test_owner_is_whom_the_caller_names(host: Host, sleeper: "subprocess.Popen[bytes]") -> None:
    assert host.ask("1", *COORDINATED, "--owner-pid", str(sleeper.pid)).devices == "0"
    assert host.claims() == [("0", sleeper.pid)]


def test_owner_that_exists_no_more_is_refused(host: Host) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    reason = host.ask("1", *COORDINATED, f"--owner-pid={process.pid}").reason
    assert reason == f"process {process.pid} cannot own devices: there is no such living process here"
    assert not host.ledger.exists()


def test_init_is_refused_where_it_is_that_of_the_machine(host: Host) -> None:
    refused = host.ask("1", "--simulate=2", "--enable-coordination-mode", "--owner-pid=1").status == 1
    assert refused == (os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE)
    assert (host.claims() == []) == refused


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_owner_that_ends_while_nvidia_smi_runs_gets_nothing(
    host: Host, sleeper: "subprocess.Popen[bytes]", *, reaped: bool
) -> None:
    host.hold_nvidia_smi()
    script = host.start("1", *COORDINATED, f"--owner-pid={sleeper.pid}", "--timeout=60")
    assert eventually(lambda: waits_for_nvidia_smi(script.pid))
    sleeper.kill()
    assert eventually(lambda: ended(sleeper.pid))
    if reaped:
        sleeper.wait()
    host.go.touch()
    assert Answer(script).reason == f"the owner (pid {sleeper.pid}) has ended: nothing is granted"
    assert not host.ledger.exists()


def test_owner_that_ends_while_the_lock_is_waited_for_keeps_nothing(
    host: Host, sleeper: "subprocess.Popen[bytes]"
) -> None:
    with host.locked():
        script = host.start("1", *COORDINATED, f"--owner-pid={sleeper.pid}", "--timeout=60")
        assert eventually(lambda: waits_for_the_lock(script.pid))
        sleeper.kill()
        sleeper.wait()
    assert Answer(script).reason == f"the owner (pid {sleeper.pid}) has ended: nothing is granted"
    assert host.claims() == []


@contextlib.contextmanager
def parent_of_script(host: Host, *words: str) -> Iterator[tuple[int, int]]:
    """Start the script as the child of a shell, and kill the shell in the end; the result is the pid of both."""
    known = host.path / "script"
    start = f'"$@" > {host.path}/out & echo $! > {known}.new; mv {known}.new {known}; wait'
    asked = [*MODULE, "1", *COORDINATED, "--timeout=60", f"--log-file={host.log}", *words]
    with subprocess.Popen(["/bin/sh", "-c", start, "sh", *asked], env=host.environment) as parent:
        assert eventually(known.exists)
        yield parent.pid, int(known.read_text())
        parent.kill()


def was_refused_for_its_parent(host: Host, parent: int) -> bool:
    assert eventually(lambda: host.log.exists() and host.log.read_text())
    expected = f"the process that started this script (pid {parent}) has ended: nothing is granted"
    assert host.logged() == [f"asked by pid {parent}: refused: {expected}"]
    return (host.path / "out").read_text() == ""


whoever_owns = pytest.mark.parametrize(
    "words", [[], [f"--owner-pid={os.getpid()}"]], ids=["the parent owns", "another owns"]
)


@whoever_owns
def test_parent_that_ends_while_nvidia_smi_runs_gets_nothing(host: Host, words: list[str]) -> None:
    host.hold_nvidia_smi()
    with parent_of_script(host, *words) as (parent, script):
        assert eventually(lambda: waits_for_nvidia_smi(script))
    host.go.touch()
    assert was_refused_for_its_parent(host, parent)
    assert not host.ledger.exists()


@whoever_owns
def test_parent_that_ends_while_the_lock_is_waited_for_keeps_nothing(host: Host, words: list[str]) -> None:
    with host.locked(), parent_of_script(host, *words) as (parent, script):
        assert eventually(lambda: waits_for_the_lock(script))
    assert was_refused_for_its_parent(host, parent)
    assert host.ledger.exists()  # it was claimed
    assert host.claims() == []


# ---- delivery -------------------------------------------------------------------------------------


def broken_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_device() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [(broken_pipe, "Broken pipe"), (full_device, "No space left on device")],
    ids=["broken pipe", "full device"],
)
def test_answer_that_cannot_be_written_is_taken_back(
    host: Host, sleeper: "subprocess.Popen[bytes]", stdout: Callable[[], int], reason: str
) -> None:
    assert host.ask("1", *COORDINATED, f"--owner-pid={sleeper.pid}").devices == "0"
    before = host.ledger.read_bytes()
    descriptor = stdout()
    answer = host.ask("1", *COORDINATED, stdout=descriptor)
    assert answer.reason == f"the answer could not be written to stdout ({reason}): nothing is granted"
    assert host.ledger.read_bytes() == before
    for mode in (["1", "--backend=nvidia-smi"], ["--help"], ["--list", "--backend=nvidia-smi"]):
        assert host.ask(*mode, stdout=descriptor).reason == answer.reason
    os.close(descriptor)


def test_answer_that_is_written_in_part_is_taken_back(host: Host) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    answer = host.ask("64", "--simulate=64", "--format=json", "--enable-coordination-mode", stdout=writer)
    assert re.fullmatch(r"stdout took only 4096 of the answer's \d{5} bytes: nothing is granted", answer.reason)
    assert host.claims() == []
    os.close(reader)
    os.close(writer)


def test_closed_stdout_is_an_answer_that_cannot_be_written(host: Host) -> None:
    answer = host.ask("1", *COORDINATED, command=["/bin/sh", "-c", 'exec "$@" >&-', "sh", *MODULE])
    assert answer.reason.startswith("the answer could not be written to stdout")
    assert host.claims() == []


def test_closed_stdin_and_stderr_do_not_matter(host: Host) -> None:
    answer = host.ask("1", *COORDINATED, command=["/bin/sh", "-c", 'exec "$@" <&- 2>&-', "sh", *MODULE])
    assert answer.devices == "0"


def test_closed_stderr_does_not_become_another_file(host: Host) -> None:
    refused = host.ask(
        "3", *COORDINATED, f"--log-file={host.log}", command=["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *MODULE]
    )
    assert (refused.status, refused.out, refused.err) == (1, "", "")
    assert len(host.logged()) == 1


# A backend whose answer comes when the time is over.
LATE = """
import os, sys, time
from externalresource.errors import ExternalResourceError
from externalresource_gpu.script import main
from externalresource_gpu.device import Device
from externalresource_gpu.script.options import Options

class Late:
    name = "late"
    def devices(self, deadline):
        return [Device(0)]
    def links(self, deadline):
        return {}

options = Options(sys.argv[1:], os.environ)
question = main.Question(options)
question._backend = Late()
try:
    main._coordinated(options, os.getppid(), question, time.monotonic() - 1)
except ExternalResourceError as error:
    main._complain(str(error))
    sys.exit(1)
"""


def test_claim_that_came_too_late_is_taken_back(host: Host) -> None:
    answer = host.ask("1", "--timeout=5", command=[sys.executable, "-P", "-c", LATE])
    assert answer.reason == "it took longer than the 5 s of --timeout: nothing is granted"
    assert host.claims() == []
    assert host.ledger.exists()  # it was claimed


# ---- signals --------------------------------------------------------------------------------------


def test_signal_while_nvidia_smi_runs_ends_the_script_with_nothing(host: Host, number: signal.Signals) -> None:
    host.hold_nvidia_smi()
    script = host.start("2", *COORDINATED)
    assert eventually(host.began.exists)
    script.send_signal(number)
    answer = Answer(script)
    assert (answer.status, answer.out) == (130 if number == signal.SIGINT else -number, "")
    assert not host.ledger.exists()


def test_topology_that_hangs_does_not_keep_gpus_that_are_known_from_whoever_asks(host: Host) -> None:
    host.nvidia_smi("case $1 in topo) exec sleep 60;; esac")
    assert host.ask("2", "--backend=nvidia-smi", "--timeout=2").devices == "0,1"


def test_interrupt_that_comes_in_a_callback_is_not_dropped(host: Host) -> None:
    code = """
import signal, weakref
from externalresource_gpu.script import main

def interrupted(words, parent):
    kept = {0}
    watch = weakref.ref(kept, lambda gone: signal.raise_signal(signal.SIGINT))
    del kept
    return 0

main._run = interrupted
main.main()
"""
    assert host.ask(command=[sys.executable, "-c", code]).status == 130


def test_signal_while_the_lock_is_waited_for_leaves_a_delivered_answer(host: Host, number: signal.Signals) -> None:
    with host.locked():
        script = host.start("2", *COORDINATED, "--timeout=60")
        assert eventually(lambda: waits_for_the_lock(script.pid))
        script.send_signal(number)
    assert Answer(script).devices == "0,1"
    assert len(host.claims()) == 2


def test_signal_between_claim_and_answer_leaves_a_delivered_answer(host: Host, number: signal.Signals) -> None:
    reader, writer = os.pipe()
    filled = os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
    script = host.start("2", *COORDINATED, "--timeout=60", stdout=writer)
    assert eventually(host.claims)
    script.send_signal(number)
    assert len(os.read(reader, filled)) == filled
    assert Answer(script).status == 0
    assert os.read(reader, filled) == b"0,1\n"
    assert len(host.claims()) == 2
    os.close(reader)
    os.close(writer)


def test_reader_that_goes_before_it_has_read_loses_the_claim(host: Host) -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
    script = host.start("2", *COORDINATED, "--timeout=60", stdout=writer)
    assert eventually(host.claims)
    os.close(reader)
    assert "Broken pipe" in Answer(script).reason
    assert host.claims() == []
    os.close(writer)


@pytest.mark.parametrize("seed", range(8))
def test_signal_at_any_moment_leaves_nothing_or_a_delivered_answer(
    host: Host, number: signal.Signals, seed: int
) -> None:
    script = host.start("2", *COORDINATED)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    script.send_signal(number)
    out, _ = script.communicate(timeout=60)
    assert out in {"", "0,1\n"}
    assert [token for token, _ in host.claims()] == [token for token in out.strip().split(",") if token]


def test_script_killed_while_nvidia_smi_runs_records_nothing_later(host: Host) -> None:
    host.hold_nvidia_smi()
    script = host.start("2", *COORDINATED)
    assert eventually(host.began.exists)
    script.kill()
    script.communicate()
    host.go.touch()
    assert eventually(lambda: ended(int(host.began.read_text())))
    assert not host.ledger.exists()
    assert not Path(f"{host.ledger}.lock").exists()


def test_script_killed_while_it_waits_for_the_lock_records_nothing_later(host: Host) -> None:
    with host.locked():
        script = host.start("2", *COORDINATED, "--timeout=60")
        assert eventually(lambda: waits_for_the_lock(script.pid))
        script.kill()
        script.communicate()  # whoever had inherited its streams would keep this waiting
    with host.locked():
        assert not host.ledger.exists()
    assert host.ask("2", *COORDINATED).devices == "0,1"


# ---- time -----------------------------------------------------------------------------------------


def test_hanging_nvidia_smi_is_killed_and_named(host: Host) -> None:
    host.hold_nvidia_smi()
    reason = host.ask("1", *COORDINATED, "--timeout=2").reason
    assert reason.startswith("nvidia-smi did not answer within")
    assert ended(int(host.began.read_text()))
    assert not host.ledger.exists()


def test_lock_that_is_held_is_named_and_nothing_is_recorded_later(host: Host) -> None:
    with host.locked():
        reason = host.ask("1", *COORDINATED, "--timeout=1").reason
        assert reason.startswith(f"{host.ledger}.lock was not free in time")
    assert host.claims() == []


def test_driver_and_lock_share_one_timeout(host: Host) -> None:
    with host.locked() as lock:
        holder = subprocess.Popen(["sleep", "3"], pass_fds=[lock])
    with holder:
        answer = host.ask("1", "--timeout=5", command=[sys.executable, "-P", "-c", LATE])
        holder.kill()
    # Its time was over before it came to the lock: that this becomes free helps no more.
    assert answer.reason.startswith(f"{host.ledger}.lock was not free in time")


# ---- the log file ---------------------------------------------------------------------------------


def test_each_decision_is_one_line_of_the_log_file(host: Host) -> None:
    log = f"--log-file={host.log}"
    host.ask("1", *COORDINATED, log)
    host.ask("3", *COORDINATED, log)
    host.ask("2", "--backend=nvidia-smi", log)
    host.ask("--list", "--simulate=0", log)
    host.ask("0", log)
    program = Path("/proc/self/comm").read_text().strip()
    assert host.logged() == [
        f"asked by pid {os.getpid()}: granted 0 as nvidia-smi sees them to pid {os.getpid()} ({program})",
        f"asked by pid {os.getpid()}: refused: 3 wanted, this host has 2",
        f"asked by pid {os.getpid()}: named 0,1 as nvidia-smi sees them, without coordination",
        f"asked by pid {os.getpid()}: listed all devices as simulated sees them",
        f"asked by pid {os.getpid()}: 0 wanted, none granted",
    ]


@pytest.mark.parametrize("place", ["missing/log", ".", "pipe", "missing/\udcff"])
def test_log_file_that_cannot_be_written_does_not_fail_the_grant(host: Host, place: str) -> None:
    os.mkfifo(host.path / "pipe")  # that nobody reads
    answer = host.ask("1", *COORDINATED, f"--log-file={host.path}/{place}")
    assert (answer.status, answer.out, len(host.claims())) == (0, "0\n", 1)
    assert answer.err.startswith("nvidia-gpu-discovery: cannot write to the log file ")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("name", ["no\nsuch\r\nfolder", "\udcff", "\x1b[2J\x9b\u202e"])
def test_strange_path_is_said_in_one_plain_line_on_stderr_and_in_the_log(host: Host, name: str) -> None:
    words = ["--enable-coordination-mode", f"--coordination-file={host.path}/{name}/ledger", f"--log-file={host.log}"]
    reason = host.ask("1", "--simulate=1", *words).reason
    assert reason.startswith("cannot lock")
    assert reason.isprintable()
    [logged] = host.logged()
    assert logged.isprintable()


# ---- cost -----------------------------------------------------------------------------------------

# Says what was imported, and when nvidia-smi was started.
IMPORTS = """
import sys
before, events = set(sys.modules), []
sys.addaudithook(lambda event, values: events.append(f"{event} {values[0]}"))
import os
from externalresource_gpu.script import main
status = main._run(sys.argv[1:], os.getppid())
events = [event for event in events if event in ("os.posix_spawn nvidia-smi", "import filelock")]
print(",".join(events), file=sys.stderr)
print(",".join(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


def imports(host: Host, *words: str) -> tuple[list[str], set[str]]:
    # Coverage would import half of the standard library by itself.
    host.environment = {name: value for name, value in host.environment.items() if not name.startswith("COVERAGE")}
    answer = host.ask("1", *words, command=[sys.executable, "-P", "-c", IMPORTS])
    assert (answer.status, answer.out) == (0, "0\n")
    events, modules = answer.err.splitlines()
    return events.split(","), set(modules.split(","))


def test_coordination_imports_nothing_that_costs(host: Host) -> None:
    _, modules = imports(host, *COORDINATED)
    costly = {"click", "pluggy", "yaml", "pynvml", "importlib.metadata", "argparse", "subprocess"}
    assert modules & costly == set()
    assert "filelock" in modules


def test_nvidia_smi_is_started_before_filelock_is_imported(host: Host) -> None:
    events, _ = imports(host, *COORDINATED)
    assert events == ["os.posix_spawn nvidia-smi", "import filelock"]


def test_without_coordination_filelock_is_not_imported(host: Host) -> None:
    _, modules = imports(host, "--backend=nvidia-smi")
    assert modules & {"filelock", "externalresource.coordination"} == set()
