"""A worker of PyFlink has a share of its TaskManager's devices, as long as it lives."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.support.flink.operators import MAIN, PYTHON, SCRIPT, Cluster

#: Prints what it is told of each number of exclusive devices, of its arguments and its input, till who started it ends.
SHARE = """
import json, sys
from externalresource.flink import worker_share, worker_end
from externalresource.errors import ExternalResourceError
from externalresource.flink import get_external_resource_infos
worker_share._PATIENCE = worker_end._GRACE = 0.2
def told(exclusive):
    try:
        infos = get_external_resource_infos("gpu", exclusive=exclusive)
    except ExternalResourceError as error:
        return f"{type(error).__name__}: {error}"
    return ",".join(sorted(info.get_property("index") for info in infos))
def tell(word):
    print(json.dumps(told(int(word) if word.isdecimal() else None)), flush=True)
for word in sys.argv[1:]:
    tell(word)
for line in sys.stdin:
    tell(line.strip())
"""
#: What PyFlink does: it starts workers, which live side by side; a scene plays among them, and `tell` is for the test.
WORKERS = """
import json, os, signal, subprocess, sys
def start(*words):
    command = [sys.executable, "-c", os.environ["SHARE"], *words]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    worker.said = [json.loads(worker.stdout.readline()) for _ in words]
    return worker
def ask(worker, amount):
    worker.stdin.write(amount + chr(10)), worker.stdin.flush()
    return json.loads(worker.stdout.readline())
def tell(*what):
    print(json.dumps(what))
"""


def scene(cluster: Cluster, text: str, **variables: str) -> list[Any]:
    said = cluster.ask("-c", ".", claims=2, worker=WORKERS + text, SHARE=SHARE, **variables)
    return [json.loads(line) for line in said.splitlines()]


def test_workers_of_one_task_manager_have_a_device_each_as_long_as_they_live(cluster: Cluster) -> None:
    (first, second, third), (heir, late) = scene(
        cluster,
        """
first, second, third = start("1"), start("1"), start("1")
tell(first.said, second.said, third.said)
first.kill(), first.wait()
tell(start("1").said, start("1").said)
""",
    )
    assert (first, second, heir) == (["0"], ["1"], ["0"])
    for (refused,) in (third, late):
        assert refused.startswith("NotEnoughDevicesError: 1 wanted, 0 of the 2 that pid ")
        assert ", inside of which this runs, free; held by pid " in refused
        assert refused.endswith("; waited 0.2 s for them")


def test_shares_stand_in_the_task_managers_own_lines(cluster: Cluster) -> None:
    ((manager, *workers),) = scene(
        cluster,
        """
from externalresource.flink import task_manager
tell(task_manager.find().pid, start("1").pid, start("1").pid)
""",
    )
    lines = [line.split(" ", 2) for line in cluster.ledger.read_text().splitlines()]
    assert [int(pid) for _, pid, _ in lines] == [manager, manager]
    assert [[share["pid"] for share in json.loads(text)["shares"]] for _, _, text in lines] == [
        [pid] for pid in workers
    ]


def test_operators_of_one_worker_have_one_share(cluster: Cluster) -> None:
    (said,) = scene(cluster, 'tell(*start("all", "1", "1", "all", "2", "1").said)')
    assert said == ["0,1", "0", "0", "0", "0,1", "0"]


def test_operators_that_ask_for_fewer_are_told_what_was_taken_first(cluster: Cluster) -> None:
    (said,) = scene(
        cluster,
        """
other = start("1")
worker = start("1")
other.kill(), other.wait()
tell(*worker.said, ask(worker, "2"), ask(worker, "1"))
""",
    )
    assert said == ["1", "0,1", "1"]


def test_process_that_a_worker_starts_has_the_workers_share(cluster: Cluster) -> None:
    (said,) = scene(
        cluster,
        """
from externalresource.flink import get_external_resource_infos
own = sorted(info.get_property("index") for info in get_external_resource_infos("gpu", exclusive=1))
tell(own, start("1", "all").said)
""",
    )
    assert said == [["0"], ["0", "0"]]


def test_threads_of_one_worker_have_one_share(cluster: Cluster) -> None:
    ((*said,),) = scene(
        cluster,
        """
from concurrent.futures import ThreadPoolExecutor
from externalresource.flink import get_external_resource_infos
def told(_):
    return sorted(info.get_property("index") for info in get_external_resource_infos("gpu", exclusive=1))
with ThreadPoolExecutor(8) as pool:
    tell(*pool.map(told, range(8)))
""",
    )
    assert said == [["0"]] * 8


def test_fork_of_a_worker_that_waits_for_its_share_is_not_locked(cluster: Cluster) -> None:
    ((waits, told),) = scene(
        cluster,
        """
import threading, time
from externalresource.flink import worker_share
from externalresource.flink import get_external_resource_infos
other = start("2")
worker_share._PATIENCE = 0
try:
    get_external_resource_infos("gpu", exclusive=1)  # imports all: who forks while a thread imports may hang for ever
except Exception:
    worker_share._PATIENCE = 120
thread = threading.Thread(target=get_external_resource_infos, args=["gpu"], kwargs={"exclusive": 1}, daemon=True)
threading.excepthook = lambda _: None
thread.start()
while not worker_share._one_at_a_time.locked(): time.sleep(0.01)
read, write = os.pipe()
if os.fork() == 0:
    worker_share._PATIENCE = 0
    try:
        get_external_resource_infos("gpu", exclusive=1)
    except Exception as error:
        os.write(write, type(error).__name__.encode())
    os._exit(0)
os.wait()
tell(thread.is_alive(), os.read(read, 100).decode())
os._exit(sys.stdout.flush() or 0)
""",
    )
    assert (waits, told) == (True, "NotEnoughDevicesError")


KILL = """
from externalresource.flink import task_manager
os.kill(task_manager.find().pid, signal.SIGKILL)
tell(worker.wait(60))
"""


@pytest.mark.parametrize("asked", ["1", "all"])
def test_worker_ends_when_its_task_manager_is_killed(asked: str, cluster: Cluster) -> None:
    assert scene(cluster, f'worker = start("{asked}"){KILL}') == [[-signal.SIGKILL]]


def test_worker_that_was_told_nothing_is_let_alone(cluster: Cluster) -> None:
    patient = KILL.replace("tell(worker.wait(60))", "import time; time.sleep(1); tell(worker.poll())")
    ((refused,), (status,)) = scene(cluster, f'worker = start("3"); tell(*worker.said){patient}')
    assert refused.startswith("ConfigurationError: 3 exclusive devices wanted")
    assert status is None


def test_python_ends_when_its_task_manager_is_killed(cluster: Cluster) -> None:
    ((status,),) = scene(
        cluster,
        f"""
command = ["{PYTHON}", "-c", "import sys; print(flush=True); sys.stdin.read()"]
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # which programs inherit
worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
worker.stdout.readline()
{KILL}""",
    )
    assert status == -signal.SIGKILL


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ("3", "ConfigurationError: 3 exclusive devices wanted, the TaskManager has 2"),
        ("0", "ConfigurationError: the number of exclusive devices must be a positive integer, not 0"),
    ],
)
def test_amount_that_can_never_be_is_refused_at_once(amount: str, said: str, cluster: Cluster) -> None:
    assert scene(cluster, f'tell(*start("{amount}").said)') == [[said]]


def test_without_coordination_nothing_is_exclusive(cluster: Cluster) -> None:
    cluster.args = "--simulate=2"
    cluster.configure()
    ((said,),) = scene(cluster, 'tell(*start("1").said)')
    assert said.startswith("ConfigurationError: exclusive devices of 'gpu' need coordination")
    assert "--enable-coordination-mode" in said


def test_in_thread_mode_nothing_is_exclusive(cluster: Cluster) -> None:
    code = (
        "import os, subprocess; from externalresource.flink import get_external_resource_infos\n"
        f"subprocess.run({[*SCRIPT.split(), '2', *cluster.args.split()]}, check=True, stdout=subprocess.DEVNULL)\n"
        "get_external_resource_infos('gpu', exclusive=1)\n"
    )
    words = [sys.executable, "-c", code, MAIN, "-c", str(cluster.folder)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert "ConfigurationError: exclusive devices are for process mode: in thread mode all operators" in done.stderr


def test_task_manager_that_a_run_became_shares_what_it_asked_for_and_no_more(cluster: Cluster) -> None:
    cluster.configure(amount=1)
    code = (
        "import os, subprocess, sys\n"
        f"subprocess.run({[*SCRIPT.split(), '1', *cluster.args.split()]}, check=True, stdout=subprocess.DEVNULL)\n"
        "sys.exit(subprocess.run([sys.executable, '-c', os.environ['SHARE'], 'all', '1'], input=b'').returncode)\n"
    )
    run = [str(Path(sysconfig.get_path("scripts")) / "externalresource"), "run", "gpu=2", "--simulate=4"]
    words = [*run, "--coordination-file", str(cluster.ledger), "--", sys.executable, "-c", code, MAIN, "-c", "."]
    done = subprocess.run(
        words, cwd=cluster.folder, env=os.environ | {"SHARE": SHARE}, check=False, capture_output=True, text=True
    )
    assert (done.stdout.split(), done.stderr, done.returncode) == (['"0"', '"0"'], "", 0)
