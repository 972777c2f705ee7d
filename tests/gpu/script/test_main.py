"""The discovery script as a real process, started as Flink starts it: what it answers, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import externalresource
import externalresource_gpu
from tests.support.discovery_host import COORDINATED, INSTALLED, MODULE, Host

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
    host: Host, sleeper: subprocess.Popen[bytes]
) -> None:
    words = ["--simulate=8", "--enable-coordination-mode"]
    assert host.ask("7", *words, f"--owner-pid={sleeper.pid}").devices == "0,1,2,3,4,5,6"
    before = host.ledger.read_bytes()
    assert re.fullmatch(
        rf"2 wanted, 1 of 8 free; held by pid {sleeper.pid} \(sleep\), since [-\d]+T[:\d]+Z: 0, 1, 2, 3, 4, 5, 6",
        host.ask("2", *words).reason,
    )
    assert host.ledger.read_bytes() == before


# ---- cost -----------------------------------------------------------------------------------------


SOURCE = os.pathsep.join(str(Path(package.__path__[0]).parent) for package in (externalresource, externalresource_gpu))

# Says what was imported, and when nvidia-smi was started.
IMPORTS = """
import sys
from pathlib import Path
before, events = set(sys.modules), []
sys.addaudithook(lambda event, values: events.append(f"{event} {values[0]}"))
import os
from externalresource_gpu.script import main
status = main._run(sys.argv[1:], os.getppid())
events = [event for event in events if event in ("os.posix_spawn nvidia-smi", "import externalresource.coordination")]
print(",".join(events), file=sys.stderr)
print(",".join(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


# What takes a millisecond or more: the whole script takes some twenty.
COSTLY = {
    *("argparse", "click", "dataclasses", "filelock", "importlib.metadata", "inspect", "logging", "pathlib", "pluggy"),
    *("pynvml", "secrets", "subprocess", "typing", "urllib", "yaml"),
}


def imports(host: Host, *words: str) -> tuple[list[str], set[str]]:
    # Coverage would import half of the standard library by itself.
    host.environment = {name: value for name, value in host.environment.items() if not name.startswith("COVERAGE")}
    answer = host.ask("1", *words, command=[sys.executable, "-SsP", "-c", IMPORTS], PYTHONPATH=SOURCE)
    assert (answer.status, answer.out) == (0, "0\n")
    events, modules = answer.err.splitlines()
    return events.split(","), set(modules.split(","))


@pytest.mark.parametrize("words", [COORDINATED, ("--backend=nvidia-smi",)], ids=["coordinated", ""])
def test_script_imports_nothing_that_costs(host: Host, words: tuple[str, ...]) -> None:
    _, modules = imports(host, *words)
    assert modules & COSTLY == set()


def test_nvidia_smi_is_started_before_coordination_is_imported(host: Host) -> None:
    events, _ = imports(host, *COORDINATED)
    assert events == ["os.posix_spawn nvidia-smi", "import externalresource.coordination"]


def test_without_coordination_it_is_not_imported(host: Host) -> None:
    events, _ = imports(host, "--backend=nvidia-smi")
    assert events == ["os.posix_spawn nvidia-smi"]
