"""Process pools as people write them, as programs of their own: which GPU each worker has, and what a refusal does."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import externalresource
from externalresource.api import Device, driver
from externalresource.coordination import ledger
from tests.support.processes import wait_until

# What all programs have before their own lines. A task ends once as many workers have come as the host has GPUs.
COMMON = """
import multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
import externalresource

def until(is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)

def meet(workers):
    Path(f"came-{os.getpid()}").touch()
    until(lambda: len(list(Path().glob("came-*"))) >= workers)
    return os.environ["CUDA_VISIBLE_DEVICES"]

def seen(_=None):
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
"""
SPAWN = 'mp_context=multiprocessing.get_context("spawn")'
OWN = '(initializer=externalresource.claim_for_worker, initargs=("gpu", 1)'
METHODS = ["fork", "spawn", "forkserver"]

nothing = driver("nothing")(lambda: [Device("0")])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return a host with three simulated GPUs."""
    return {
        **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
        "EXTERNALRESOURCE_GPU_SIMULATE": "3",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(tmp_path / "claims"),
    }


def write(folder: Path, program: str) -> list[str]:
    """Write the program, and return the command that runs it."""
    indented = "".join(f"    {line}\n" for line in program.strip().splitlines())
    (folder / "program.py").write_text(COMMON + indented, encoding="utf-8")
    return [sys.executable, "program.py"]


def run(folder: Path, environment: dict[str, str], program: str) -> subprocess.CompletedProcess[str]:
    command = write(folder, program)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def lines_of(folder: Path, environment: dict[str, str], program: str) -> list[str]:
    done = run(folder, environment, program)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("method", METHODS)
def test_each_worker_of_an_executor_has_a_gpu_of_its_own(
    tmp_path: Path, environment: dict[str, str], method: str
) -> None:
    program = f"""
way = multiprocessing.get_context("{method}")
with ProcessPoolExecutor{OWN}, max_workers=3, mp_context=way) as pool:
    print(*pool.map(meet, [3] * 3), sep="\\n")
print(os.environ.get("CUDA_VISIBLE_DEVICES"))
"""
    *gpus, parents = lines_of(tmp_path, environment, program)
    assert len(set(gpus)) == 3
    assert all(gpu.startswith("GPU-") for gpu in gpus)
    assert parents == "None"


@pytest.mark.parametrize("method", METHODS)
def test_each_worker_of_a_pool_has_a_gpu_of_its_own(tmp_path: Path, environment: dict[str, str], method: str) -> None:
    program = f"""
with multiprocessing.get_context("{method}").Pool{OWN}, processes=3) as pool:
    print(*pool.map(meet, [3] * 3, chunksize=1), sep="\\n")
"""
    assert len(set(lines_of(tmp_path, environment, program))) == 3


def test_executor_breaks_and_says_who_holds_the_gpus(tmp_path: Path, environment: dict[str, str]) -> None:
    program = f"""
with ProcessPoolExecutor{OWN}, max_workers=4) as pool:
    try:
        list(pool.map(meet, [4] * 4))
    except BrokenProcessPool:
        print("broken")
"""
    done = run(tmp_path, environment, program)
    assert done.stdout == "broken\n"
    assert re.search(
        r"^externalresource\.errors\.\w+Error: 1 wanted, 0 of 3 free; held by pid \d+ \(python",
        done.stderr,
        re.MULTILINE,
    )


def test_workers_that_a_pool_has_too_many_say_so_and_the_others_do_the_work(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    program = f"""
def refused(_):
    until(lambda: "gets no" in Path("said").read_text())
    return seen()

with open("said", "w") as said:
    os.dup2(said.fileno(), 2)
with multiprocessing.get_context("fork").Pool{OWN}, processes=4) as pool:
    print(len(pool.map(refused, range(6), chunksize=1)))
"""
    assert lines_of(tmp_path, environment, program) == ["6"]
    said = (tmp_path / "said").read_text().splitlines()[0]
    assert re.match(
        r"externalresource: ForkPoolWorker-\d+ gets no 'gpu': 1 wanted, 0 of 3 free; held by pid \d+ ", said
    )


def test_pool_that_wants_more_than_the_host_has_says_so(tmp_path: Path, environment: dict[str, str]) -> None:
    own = OWN.replace("1)", '9, {"wait": "60"})')
    command = write(tmp_path, f"multiprocessing.Pool{own}, processes=1).map(seen, [1])")
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr
        said = process.stderr.readline()
        os.killpg(process.pid, signal.SIGKILL)
    assert said == "externalresource: ForkPoolWorker-1 gets no 'gpu': 9 wanted, this host has 3\n"


def test_worker_waits_for_a_gpu_that_another_program_has(tmp_path: Path, environment: dict[str, str]) -> None:
    options = {"simulate": "1", "coordination-file": environment["EXTERNALRESOURCE_GPU_COORDINATION_FILE"]}
    own = OWN.replace("1)", f"1, {options | {'wait': '60'}})")
    context = externalresource.claim("gpu", options=options)
    [gpu] = context.get_external_resource_infos("gpu")
    command = write(
        tmp_path, f"with ProcessPoolExecutor{own}, max_workers=1) as pool: print(*pool.submit(seen).result())"
    )
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        queue = Path(f"{options['coordination-file']}.queue")
        wait_until(queue.exists)
        context.close()
        assert process.stdout
        assert process.stdout.read().split()[1:] == [gpu.get_property("uuid")]


@pytest.mark.parametrize(
    "pool",
    [
        f"ProcessPoolExecutor{OWN}, max_workers=1, max_tasks_per_child=1, {SPAWN})",
        f"multiprocessing.Pool{OWN}, processes=1, maxtasksperchild=1)",
    ],
    ids=["executor", "pool"],
)
def test_worker_that_replaces_another_gets_its_gpu(tmp_path: Path, environment: dict[str, str], pool: str) -> None:
    program = f"""
with {pool} as pool:
    for pid, gpu in pool.map(seen, range(3)):
        print(pid, gpu)
"""
    rows = [line.split() for line in lines_of(tmp_path, environment | {"EXTERNALRESOURCE_GPU_SIMULATE": "1"}, program)]
    assert len({pid for pid, _ in rows}) == 3
    assert len({gpu for _, gpu in rows}) == 1


def test_workers_inside_of_run_share_what_that_has(tmp_path: Path, environment: dict[str, str]) -> None:
    program = f"""
print(os.environ["CUDA_VISIBLE_DEVICES"])
with ProcessPoolExecutor{OWN}, max_workers=2) as pool:
    print(*pool.map(meet, [2] * 2), sep=",")
"""
    outer = [str(Path(sysconfig.get_path("scripts")) / "externalresource"), "run", "gpu=2", "--"]
    command = [*outer, *write(tmp_path, program)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    shared, used = (set(line.split(",")) for line in done.stdout.splitlines())
    assert used == shared


def test_worker_that_is_killed_leaves_its_gpu_to_the_next(tmp_path: Path, environment: dict[str, str]) -> None:
    program = f"""
with ProcessPoolExecutor{OWN}, max_workers=1) as pool:
    before = pool.submit(seen).result()
    try:
        pool.submit(die).result()
    except BrokenProcessPool:
        print("broken")
with multiprocessing.Pool{OWN}, processes=1) as pool:
    after = pool.apply(seen)
    pool.apply_async(die)
    until(lambda: pool.apply_async(seen).get()[0] != after[0])
    print(before[1] == after[1] == pool.apply(seen)[1])
"""
    said = lines_of(tmp_path, environment | {"EXTERNALRESOURCE_GPU_SIMULATE": "1"}, program)
    assert said == ["broken", "True"]


def test_device_that_no_variable_names_is_given_back(tmp_path: Path) -> None:
    path = str(tmp_path / "claims")
    with pytest.raises(externalresource.PluginError, match="sets no variables"):
        externalresource.claim_for_worker("card", 1, {"coordination-file": path}, driver_factory=f"{__name__}:nothing")
    assert ledger.read(path) == []
