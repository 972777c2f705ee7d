"""An operator finds its TaskManager and what that holds: real processes, whose command lines are those of Flink's."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from externalresource import flink
from externalresource.errors import DiscoveryError

MAIN = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
SCRIPT = f"{sys.executable} -P -m externalresource_gpu.script.main"
# Lets the script claim as Flink does, as its child, and starts a worker two processes away, as PyFlink does.
TASK_MANAGER = """
import os, subprocess, sys
if os.environ.get("CLAIM"):
    subprocess.run(os.environ["CLAIM"].split(), check=True, stdout=subprocess.DEVNULL)
if os.environ.get("FPGAS"):
    import externalresource
    options = {"coordination-file": os.environ["FPGAS"]}
    held = externalresource.claim("fpga", driver_factory="boards:boards", options=options)
worker = f"cd /; '{os.environ.get('PYTHON', sys.executable)}' -c '{os.environ['WORKER']}' 2>&1; exit $?"
sys.exit(subprocess.run(["bash", "-c", worker]).returncode)
"""
WORKER = """
import json, sys
from externalresource.errors import ExternalResourceError
from externalresource.flink import get_external_resource_infos
try:
    infos = get_external_resource_infos("gpu")
except ExternalResourceError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps(sorted([info.get_property("index"), info.get_property("uuid")] for info in infos)))
"""
GPUS = [[str(index), f"GPU-5100000{index}-0000-5000-8000-000085d94462"] for index in range(4)]


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "gpus"
        self.args = f"--simulate=4 --enable-coordination-mode --coordination-file={self.ledger}"

    def configure(self, amount: int = 2, more: str = "") -> None:
        (self.folder / "config.yaml").write_text(
            f"external-resources: gpu\n"
            f"external-resource.gpu.amount: {amount}\n"
            f"external-resource.gpu.driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory\n"
            f'external-resource.gpu.param.discovery-script.args: "{self.args}"\n{more}'
        )

    def ask(self, *arguments: str, claims: int = 2, worker: str = WORKER, **variables: str) -> str:
        """Return what an operator of a TaskManager that claimed so many GPUs was told."""
        claim = f"{SCRIPT} {claims} {self.args}" if claims else ""
        done = subprocess.run(
            [sys.executable, "-c", TASK_MANAGER, MAIN, *arguments],
            cwd=self.folder,
            env=os.environ | {"CLAIM": claim, "WORKER": worker.replace("'", '"')} | variables,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout.strip()

    def infos(self, *arguments: str, claims: int = 2, **variables: str) -> object:
        return json.loads(self.ask(*arguments, claims=claims, **variables))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.configure()
    return made


def test_operator_is_told_what_its_task_manager_holds(cluster: Cluster) -> None:
    assert cluster.infos("--configDir", str(cluster.folder)) == GPUS[:2]


def test_operator_is_not_told_what_others_hold(cluster: Cluster) -> None:
    claim = f"{SCRIPT} 1 {cluster.args}".split()
    subprocess.run(claim, check=True, capture_output=True)  # by the process of this test
    assert cluster.infos("--configDir", str(cluster.folder)) == GPUS[2:]  # these are on one NUMA node


@pytest.mark.parametrize("folder", [".", "-c ."])
def test_configuration_is_relative_to_the_task_managers_folder(folder: str, cluster: Cluster) -> None:
    words = folder.split() if folder.startswith("-c") else ["--configDir", folder]
    assert cluster.infos(*words) == GPUS[:2]


def test_configuration_is_that_of_the_environment_if_the_task_manager_was_told_none(cluster: Cluster) -> None:
    assert cluster.infos(FLINK_CONF_DIR=str(cluster.folder)) == GPUS[:2]


@pytest.mark.parametrize("words", [("-D", "external-resource.gpu.amount=1"), ("-Dexternal-resource.gpu.amount=1",)])
def test_dynamic_properties_win(words: tuple[str, ...], cluster: Cluster) -> None:
    assert cluster.infos("--configDir", str(cluster.folder), *words, claims=1) == GPUS[:1]


def test_without_coordination_the_devices_are_those_that_the_driver_finds(cluster: Cluster) -> None:
    cluster.args = "--simulate=2"
    cluster.configure()
    assert [index for index, _ in json.loads(cluster.ask("-c", ".", claims=0))] == ["0", "1"]


def test_task_manager_that_holds_another_number_is_an_error_with_both(cluster: Cluster) -> None:
    said = cluster.ask("-c", ".", claims=0)
    assert said.startswith("DiscoveryError: the TaskManager (pid ")
    assert f" holds 0 devices of 'gpu' in {cluster.ledger}, not the 2 of its configuration" in said


def test_resource_that_is_not_configured_is_named_with_those_that_are(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: gpus\nexternal-resource.gpus.amount: 1\n")
    said = cluster.ask("-c", ".", claims=0)
    assert "has no resource 'gpu' (it has: gpus), did you mean 'gpus'?" in said


def test_resource_without_a_driver_is_an_error_that_names_the_key(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: gpu\nexternal-resource.gpu.amount: 1\n")
    said = cluster.ask("-c", ".", claims=0)
    assert said.startswith("ConfigurationError: external-resource.gpu.driver-factory.class is not set")


def test_process_that_works_for_no_task_manager_is_told_who_its_ancestors_are() -> None:
    with pytest.raises(DiscoveryError) as caught:
        flink.get_external_resource_infos("gpu")
    assert f"pid {os.getpid()} (" in str(caught.value)
    assert ", pid 1 (" in str(caught.value)
    assert "externalresource.claim" in str(caught.value)


BOARDS = """
from externalresource import Device, driver

@driver("fpga")
def boards():
    return [Device(str(index), environment={"FPGA": f"/dev/fpga{index}"}) for index in range(2)]
"""

# ---- the Python of a worker -----------------------------------------------------------------------

PYTHON = str(Path(sysconfig.get_path("scripts")) / "externalresource-python")
MASK = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('CUDA_DEVICE_ORDER'))"


def outside(*words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PYTHON, *words], check=False, capture_output=True, text=True, timeout=60, **more)


def test_python_of_a_worker_sees_the_task_managers_devices(cluster: Cluster) -> None:
    said = cluster.ask("-c", ".", worker=MASK, PYTHON=PYTHON)
    assert said == f"{','.join(uuid for _, uuid in GPUS[:2])} PCI_BUS_ID"


def test_python_of_a_worker_sees_the_devices_of_any_driver(cluster: Cluster) -> None:
    (cluster.folder / "boards.py").write_text(BOARDS)
    (cluster.folder / "config.yaml").write_text(
        "external-resources: fpga\nexternal-resource.fpga.amount: 1\n"
        "external-resource.fpga.driver-factory.class: boards:boards\n"
        "external-resource.fpga.param.enable-coordination-mode: true\n"
        f"external-resource.fpga.param.coordination-file: {cluster.folder}/fpgas\n"
    )
    fpgas = {"FPGAS": f"{cluster.folder}/fpgas", "PYTHONPATH": str(cluster.folder)}
    worker = "import os; print(os.environ['FPGA'])"
    said = cluster.ask("-c", ".", claims=0, worker=worker, PYTHON=PYTHON, **fpgas)
    assert said == "/dev/fpga0"


def test_python_of_a_worker_whose_devices_nobody_can_tell_does_not_start(cluster: Cluster) -> None:
    said = cluster.ask("-c", ".", claims=0, worker=MASK, PYTHON=PYTHON)
    assert said.startswith("externalresource-python: the TaskManager (pid ")
    assert said.count("\n") == 0


def test_python_of_a_task_manager_without_resources_is_plain(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: none\n")
    assert cluster.ask("-c", ".", claims=0, worker=MASK, PYTHON=PYTHON) == "None None"


def test_outside_a_task_manager_it_is_plain_python() -> None:
    code = "import os, sys; print(sys.argv, sys.prefix, sys.stdin.read(), sorted(os.environ.items()))"
    words = ["-c", code, "a b", ""]
    plain = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True, input="said")
    assert outside(*words, input="said").stdout == plain.stdout
    assert outside("-c", "import sys; sys.exit(7)").returncode == 7
    assert outside("-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)").returncode == -signal.SIGTERM
    assert outside("-m", "pip", "--version").stdout.startswith("pip ")
    assert outside("--version").stdout == f"Python {sys.version.split()[0]}\n"


def test_outside_a_task_manager_nothing_that_costs_is_imported() -> None:
    code = "import sys; from externalresource.flink import task_manager; task_manager.find(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True).stdout.split())
    assert {module for module in loaded if module.startswith(b"externalresource")} == {
        b"externalresource",
        b"externalresource.faces",
        b"externalresource.flink",
        b"externalresource.flink.task_manager",
    }


# ---- a worker's own share -------------------------------------------------------------------------

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
worker_share._PATIENCE = 120
other = start("2")
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


def exclusive(cluster: Cluster, *words: str, **variables: str) -> str:
    """The masks of two Pythons that live side by side, one line each, as they are started by such words."""
    workers = """
import json, os, subprocess
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
workers = [subprocess.Popen(json.loads(os.environ["COMMAND"]), **pipes) for _ in range(2)]
for worker in workers: print(worker.stdout.readline(), end="")
"""
    masked = "import os, sys; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"
    command = json.dumps([PYTHON, *words, "-c", masked])
    return cluster.ask("-c", ".", claims=2, worker=workers, COMMAND=command, **variables)


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("--exclusive", "gpu=1"), {}),
        (("--exclusive=gpu=1",), {"EXTERNALRESOURCE_EXCLUSIVE": "gpu=2"}),
        ((), {"EXTERNALRESOURCE_EXCLUSIVE": "gpu=1"}),
    ],
    ids=["option", "option with =", "environment"],
)
def test_pythons_of_two_workers_see_a_device_each(
    words: tuple[str, ...], variables: dict[str, str], cluster: Cluster
) -> None:
    assert sorted(exclusive(cluster, *words, **variables).split()) == [uuid for _, uuid in GPUS[:2]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gpu", "EXTERNALRESOURCE_EXCLUSIVE: 'gpu' is not allowed: write it like gpu=1"),
        ("gpu=0", "EXTERNALRESOURCE_EXCLUSIVE: 'gpu=0' is not allowed: write it like gpu=1"),
        ("gpu=1,gpu=2", "EXTERNALRESOURCE_EXCLUSIVE: 'gpu' is given twice"),
        ("gpus=1", "has no resource 'gpus' (it has: gpu), did you mean 'gpu'?"),
    ],
)
def test_share_that_is_asked_for_wrongly_starts_no_python(asked: str, said: str, cluster: Cluster) -> None:
    told = exclusive(cluster, EXTERNALRESOURCE_EXCLUSIVE=asked).splitlines()
    assert [line.startswith("externalresource-python: ") and said in line for line in told] == [True, True]


def test_option_without_a_value_starts_no_python(cluster: Cluster) -> None:
    said = cluster.ask(
        "-c", ".", worker='import os; os.execv(os.environ["OURS"], ["python", "--exclusive"])', OURS=PYTHON
    )
    assert said == "externalresource-python: --exclusive: '' is not allowed: write it like gpu=1"


def test_outside_a_task_manager_a_share_is_none_of_its_business() -> None:
    assert outside("--exclusive", "gpu=1", "-c", "print(7)").stdout == "7\n"
