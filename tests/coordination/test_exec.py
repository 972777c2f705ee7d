"""A process in which a thread that is not the first calls execve looks ended in /proc while it lives."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, Holder, identify, lives
from externalresource.errors import NotEnoughDevicesError
from tests.support.claiming import gpus, me

# As Go programs, launchers and the children of a JVM do; here again and again.
PROGRAM = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int left;
static void *execute(void *unused) {
    char word[16];
    snprintf(word, sizeof word, "%d", left - 1);
    execl("/proc/self/exe", "again", word, (char *)0);
    return unused;
}
int main(int count, char **words) {
    pthread_t second;
    left = count > 1 ? atoi(words[1]) : 0;
    if (left > 0) pthread_create(&second, 0, execute, 0);
    for (;;) pause();
}
"""
LOOKS = 6_000  # one in a thousand was wrong


@pytest.fixture
def again(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that executes itself 200,000 times, which takes minutes."""
    source, program = tmp_path / "again.c", tmp_path / "again"
    source.write_text(PROGRAM, encoding="ascii")
    subprocess.run(["gcc", "-pthread", "-o", program, source], check=True)
    with subprocess.Popen([program, "200000"]) as process:
        yield process
        process.kill()


def test_process_in_which_another_thread_calls_execve_lives(again: subprocess.Popen[bytes]) -> None:
    first = identify(again.pid)
    for _ in range(LOOKS):
        assert lives(first)
        assert identify(again.pid) == first
    assert again.poll() is None


def test_device_of_such_a_process_is_not_given_away(again: subprocess.Popen[bytes], path: str) -> None:
    shared = Coordination(path, "gpu")
    shared.claim(gpus(1), 1, Holder(identify(again.pid)))
    end = time.monotonic() + 3
    while time.monotonic() < end:
        with pytest.raises(NotEnoughDevicesError):
            shared.claim(gpus(1), 1, me())
    again.kill()
    again.wait()
    assert shared.claim(gpus(1), 1, me())
