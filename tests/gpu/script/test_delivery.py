"""The discovery script as a real process: what it cannot deliver, it takes back, whatever signal meets it."""

import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.discovery_host import COORDINATED, MODULE, Answer, Host, waits_for_the_lock
from tests.support.gpu_drivers import ended, eventually

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
    host: Host, sleeper: subprocess.Popen[bytes], stdout: Callable[[], int], reason: str
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
