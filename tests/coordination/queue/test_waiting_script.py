"""The script while it waits: killed, stopped, signalled, or left without an owner."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, ledger
from externalresource.errors import NotEnoughDevicesError
from tests.support.claiming import LONG, Asker, leftovers, made_up, nobody_ends, on_the_host, places, script
from tests.support.devices import Device
from tests.support.processes import wait_until


def waiting(path: str, *words: str) -> list[str]:
    return script(path, 1, f"--wait={LONG:g}", *words)


def start_script(path: str, *words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(waiting(path, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: places(path) or process.poll() is not None)
    return process


def test_script_waits_and_says_nothing_in_a_pipe(path: str, held: Asker) -> None:
    with start_script(path) as process:
        held.kill()
        assert process.communicate() == ("0\n", "")
        assert process.returncode == 0
    assert leftovers(path) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_a_waiting_script_which_leaves_nothing(path: str, held: Asker, number: signal.Signals) -> None:
    with start_script(path) as process:
        process.send_signal(number)
        assert process.communicate() == ("", "")
        assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert leftovers(path) == set()
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [held.pid]


def test_signal_that_is_ignored_does_not_end_a_waiting_script(path: str, held: Asker) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with start_script(path) as process:
            process.send_signal(signal.SIGHUP)
            held.kill()
            assert process.communicate() == ("0\n", "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_script_that_was_stopped_for_a_while_waits_on(path: str, held: Asker) -> None:
    with start_script(path) as process:
        for _ in range(3):  # longer than its longest pause
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.7)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        held.kill()
        assert process.communicate(timeout=LONG) == ("0\n", "")


def test_killed_script_claims_nothing_later(path: str, held: Asker) -> None:
    with start_script(path) as process:
        process.kill()
    before = ledger.read(path)
    held.kill()
    with pytest.raises(NotEnoughDevicesError):
        Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends).claim([Device("0")], 1, made_up(2))
    assert ledger.read(path) == before
    assert leftovers(path) == set()


def test_owner_that_ends_while_its_script_waits_gets_nothing(path: str, held: Asker) -> None:
    with subprocess.Popen(["sleep", "600"]) as owner, start_script(path, f"--owner-pid={owner.pid}") as process:
        owner.kill()
        owner.wait()
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == f"nvidia-gpu-discovery: the owner (pid {owner.pid}) has ended: nothing is granted\n"
    assert leftovers(path) == set()
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [held.pid]


def test_parent_that_ends_while_its_script_waits_gets_nothing(path: str, held: Asker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = waiting(path, f"--log-file={log}", f"--owner-pid={os.getpid()}")
    with subprocess.Popen(["/bin/sh", "-c", '"$@" & wait', "sh", *words], stdout=subprocess.DEVNULL) as parent:
        wait_until(lambda: places(path))
        parent.kill()
    wait_until(lambda: log.exists() and log.read_text(encoding="ascii"))
    message = f"the process that started this script (pid {parent.pid}) has ended: nothing is granted"
    assert log.read_text(encoding="ascii").endswith(f": refused: {message}\n")
    assert leftovers(path) == set()
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [held.pid]


def test_script_gives_up_with_the_reason(path: str, held: Asker) -> None:
    done = subprocess.run(script(path, 1, "--wait=0.1"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"held by pid {held.pid} " in done.stderr
    assert done.stderr.endswith("; waited 0.1 s for them\n")
    assert leftovers(path) == set()
