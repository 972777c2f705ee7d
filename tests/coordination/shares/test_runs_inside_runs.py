"""Commands that `externalresource run` starts inside of each other."""

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")
BOARDS = """
from externalresource import Device, driver

@driver("fpga")
def boards():
    return [Device(str(index), environment={"FPGA": str(index)}) for index in range(4)]
"""
#: Takes one device, tells it, and keeps it until the other file is there.
TELL = 'echo "$FPGA" >>"$TOLD"; while [ ! -e "$GO" ]; do sleep 0.02; done'


class Boards:
    """A host with four devices, for which no mask tells what a process may use."""

    def __init__(self, folder: Path) -> None:
        (folder / "boards.py").write_text(BOARDS)
        self.folder, self.told, self.go = folder, folder / "told", folder / "go"
        self.told.touch()
        self.file = str(folder / "fpgas")
        self.environment = os.environ | {
            "PYTHONPATH": str(folder), "TOLD": str(self.told), "GO": str(self.go), "RUN": COMMAND, "TELL": TELL,
            "FILE": self.file,
        }  # fmt: skip
        self.started: list[subprocess.Popen[str]] = []

    def run(self, amount: int, script: str, *options: str) -> "subprocess.Popen[str]":
        words = [COMMAND, "run", f"boards:boards={amount}", "--coordination-file", self.file, *options]
        process = subprocess.Popen(
            [*words, "--", "bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def output(self, amount: int, script: str, *options: str) -> str:
        return self.run(amount, script, *options).communicate(timeout=60)[0]

    def wait_for(self, count: int) -> list[str]:
        """The devices that so many processes were told."""
        end = time.monotonic() + 60
        while len(told := self.told.read_text().split()) < count:
            assert time.monotonic() < end, told
            time.sleep(0.02)
        return told

    def close(self) -> None:
        self.go.touch()
        for process in self.started:
            process.kill()
            process.communicate()


INNER = '"$RUN" run boards:boards=1 --coordination-file "$FILE"'


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[Boards]:
    made = Boards(tmp_path)
    yield made
    made.close()


def test_programs_of_one_run_get_a_device_each(boards: Boards) -> None:
    outer = boards.run(3, f'for _ in 1 2 3; do {INNER} -- bash -c "$TELL" & done; wait')
    assert sorted(boards.wait_for(3)) == ["0", "1", "2"]
    assert boards.output(1, "echo $FPGA") == "3\n"
    boards.go.touch()
    assert outer.wait(60) == 0


def test_run_of_a_run_of_a_run_has_one_pid_and_the_innermost_devices(boards: Boards) -> None:
    inner = f'exec "$RUN" run boards:boards=2 --coordination-file "$FILE" -- {INNER} -- bash -c \'echo $$ $FPGA\''
    outer = boards.run(3, inner)
    said, _ = outer.communicate(timeout=60)
    assert said == f"{outer.pid} 0\n"


def test_library_inside_of_a_run_takes_shares_and_never_the_same_twice(boards: Boards) -> None:
    code = (
        "import externalresource as e\n"
        f"options = {{'coordination-file': {boards.file!r}}}\n"
        "def one(): return e.claim('boards', driver_factory='boards:boards', options=options)\n"
        "first, second = one(), one()\n"
        "for each in (first, second):\n"
        "    print(*(info.get_property('index') for info in each.get_external_resource_infos('boards')))\n"
        "first.close()\n"
        "third = one()\n"
        "print(*(info.get_property('index') for info in third.get_external_resource_infos('boards')))\n"
        "try: one()\n"
        "except e.ExternalResourceError as error: print(error)\n"
    )
    (boards.folder / "library.py").write_text(code)
    *got, refused = boards.output(2, f"exec {sys.executable} library.py").splitlines()
    assert got == ["0", "1", "0"]
    assert refused.startswith("1 wanted, 0 of the 2 that pid ")


def test_device_of_a_killed_run_is_held_by_the_program_that_it_left(boards: Boards) -> None:
    outer = boards.run(4, f'{INNER} -- bash -c "$TELL" & wait')
    assert boards.wait_for(1) == ["0"]
    outer.kill()
    outer.wait()
    assert boards.output(3, "echo $FPGA") == "1,2,3\n"
    assert "4 wanted, 3 of 4 free; held by pid" in boards.output(4, "echo $FPGA")
    boards.go.touch()
    assert boards.output(4, "echo $FPGA", "--wait", "60") == "0,1,2,3\n"


def test_more_programs_than_devices_take_turns(boards: Boards) -> None:
    (boards.folder / "Makefile").write_text(
        "all: 1 2 3 4 5 6\n"
        "1 2 3 4 5 6: ; @$(RUN) run boards:boards=1 --coordination-file $(FILE) --wait 60 -- "
        "bash -c 'mkdir used-$$FPGA || echo TWICE; sleep 0.1; rmdir used-$$FPGA; echo $$FPGA >>told'\n"
    )
    assert "TWICE" not in boards.output(2, "make -s -j6")
    assert len(told := boards.wait_for(6)) == 6
    assert set(told) == {"0", "1"}


def test_gpus_of_a_run_are_divided_by_their_mask(tmp_path: Path) -> None:
    environment = os.environ | {
        "EXTERNALRESOURCE_GPU_SIMULATE": "dgx-a100",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(tmp_path / "gpus"),
    }
    tell = 'echo "$CUDA_VISIBLE_DEVICES"; echo >>told; while [ "$(wc -l <told)" -lt 4 ]; do sleep 0.02; done'
    inner = f"'{COMMAND}' run gpu=1 -- sh -c '{tell}' & "
    words = [COMMAND, "run", "gpu=4", "--", "sh", "-c", f"{inner * 4} wait; echo $CUDA_VISIBLE_DEVICES"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120)
    *inside, outside = done.stdout.split()
    assert sorted(inside) == sorted(outside.split(","))
