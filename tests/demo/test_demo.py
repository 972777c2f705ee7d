import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from externalresource.coordination import Claim, Holder, Process
from externalresource.demo import digits, flink_host, on_flink, stand_ins, text
from externalresource.demo.gpus import Gpus
from externalresource.demo.stand_ins import Host, Report
from externalresource.errors import ConfigurationError, ExternalResourceError

_DEMO = "import sys; from externalresource.demo import stand_ins; sys.exit(stand_ins.run(*map(int, sys.argv[1:])))"
_PATIENCE = 180.0  # seconds, on a busy machine
_COMMAND = "import sys; from externalresource.cli.main import main; sys.argv[1:1] = ['demo', '--flink']; main()"
_ROW = re.compile(r"^  (\d+) +(\d+) +([\d,]+) +(\S+) +([\d.]+)%$", re.MULTILINE)

# Two GPUs, in the columns that are asked for.
_NVIDIA_SMI = """\
#!/bin/sh
for index in 0 1; do
  row=
  IFS=,
  for field in ${1#--query-gpu=}; do
    case $field in
      index) cell=$index ;;
      uuid) cell=GPU-$index$index$index$index$index$index$index$index-1111-4111-8111-111111111111 ;;
      name) cell=Stand-in ;;
      *) cell="[N/A]" ;;
    esac
    row="$row${row:+, }$cell"
  done
  echo "$row"
done
"""


@dataclass(frozen=True)
class TaskManager:
    number: int
    pid: int
    devices: set[str]
    mask: str
    accuracy: float


def _start(folder: Path, *arguments: int | str, code: str = _DEMO, **environment: str) -> "subprocess.Popen[str]":
    own = {name: value for name, value in os.environ.items() if not name.startswith("EXTERNALRESOURCE_")}
    settings = {"TMPDIR": str(folder), "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        env=own | settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _simulated(folder: Path, *arguments: int) -> str:
    """What the demo prints, also where there are GPUs; it succeeded, and left nothing behind."""
    pytest.importorskip("sklearn", reason="the demo needs externalresource[demo]")
    process = _start(folder, *arguments, EXTERNALRESOURCE_GPU_SIMULATE="0")
    out, err = _said(process)
    assert (process.returncode, err) == (0, "")
    _assert_nothing_is_left(folder, process.pid)
    return out


def _said(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """What it wrote until its end. A demo that does not end is killed, and all that it started in its session."""
    with process:
        try:
            return process.communicate(timeout=_PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _assert_nothing_is_left(folder: Path, session: int) -> None:
    assert list(folder.iterdir()) == []
    deadline = time.monotonic() + 10  # one that was being started at an interrupt sees its pipe closed, and ends
    while members := _members(session):
        assert time.monotonic() < deadline, members
        time.sleep(0.05)


def _members(session: int) -> str:
    command = ["ps", "-o", "pid=,args=", "-s", str(session)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _task_managers(out: str) -> list[TaskManager]:
    return [
        TaskManager(int(number), int(pid), set(devices.split(",")), mask, float(percent) / 100)
        for number, pid, devices, mask, percent in _ROW.findall(out)
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _simulated(tmp_path_factory.mktemp("demo"))


def test_first_line_says_that_devices_are_simulated(out: str) -> None:
    assert out.split("\n", maxsplit=1)[0] == (
        "The 2 GPUs of this demo will be simulated, as no usable NVIDIA GPU was found. All else is real."
    )


def test_each_task_manager_has_its_own_gpu_and_reads_digits_on_it(out: str) -> None:
    one, other, _ = _task_managers(out)
    assert one.devices | other.devices == {"0", "1"}
    assert one.devices != other.devices
    assert one.mask != other.mask
    assert min(one.accuracy, other.accuracy) > 0.9


def test_gpu_of_the_killed_one_goes_to_the_new_one(out: str) -> None:
    killed, other, new = _task_managers(out)
    assert new.devices == killed.devices
    assert new.accuracy > 0.9
    assert re.search(rf"^  {min(killed.devices)} +{killed.pid} .* is gone$", out, re.MULTILINE)
    assert not re.search(rf" {other.pid} .* is gone$", out, re.MULTILINE)
    assert out.endswith("Claims that are left: 0.\n")


def test_configuration_shown_is_what_they_read(out: str) -> None:
    assert "      amount: 1\n" in out
    assert re.search(r"--coordination-file /\S+/demo\d+/externalresource-", out)


def test_more_task_managers_than_gpus_are_refused_with_the_reason(tmp_path: Path) -> None:
    out = _simulated(tmp_path, 4, 2)
    assert len(_task_managers(out)) == 3
    assert len(re.findall(r"TaskManager \d was refused: 1 wanted, 0 of 2 free; held by\s+pid \d+", out)) == 2


def test_new_one_gets_the_freed_gpu_even_if_others_are_free(tmp_path: Path) -> None:
    killed, new = _task_managers(_simulated(tmp_path, 1, 3))
    assert killed.devices < new.devices
    assert new.devices == {"0", "1", "2"}


def test_real_gpus_are_used_where_there_are_enough(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo needs externalresource[demo]")
    tools, folder = tmp_path / "bin", tmp_path / "tmp"
    tools.mkdir()
    folder.mkdir()
    (tools / "nvidia-smi").write_text(_NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    settings = {
        "EXTERNALRESOURCE_GPU_BACKEND": "nvidia-smi",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(tmp_path / "coordination"),
    }
    with _start(folder, PATH=path, **settings) as process:
        out, err = _said(process)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("Nothing in this demo is simulated: this host has 2 usable NVIDIA GPUs.\n")
    assert "--simulate" not in out
    assert (tmp_path / "coordination").exists(), "real GPUs are claimed where all others claim them"
    assert {task_manager.mask[:12] for task_manager in _task_managers(out)} == {"GPU-00000000", "GPU-11111111"}


def test_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo needs externalresource[demo]")
    with _start(tmp_path, 2, 2, EXTERNALRESOURCE_GPU_SIMULATE="0") as process:
        assert process.stdout
        assert any("Starting 2 TaskManagers" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _said(process)
    assert process.returncode == -signal.SIGINT
    _assert_nothing_is_left(tmp_path, process.pid)


def test_refusal_while_a_gpu_is_free_is_an_error() -> None:
    with pytest.raises(ExternalResourceError, match=r"^TaskManager 1 got no GPU: the driver hangs$"):
        stand_ins._show_reports([Report(number=1, pid=42, refused="the driver hangs")], 1, print)


def test_line_of_flinks_script_has_neither_program_nor_time() -> None:
    held = [Claim("0", (Holder(Process(42)),))]
    assert text.claims(held).split("\n")[1].split() == ["0", "42", "?", "?", "lives"]


def test_share_of_a_gpu_is_no_further_gpu() -> None:
    shared = Claim("0", (Holder(Process(42)), Holder(Process(43), root=False)))
    held = [shared, Claim("1", (Holder(Process(44), living=False),))]
    assert stand_ins._taken(held) == 1


def test_gpu_given_twice_is_an_error() -> None:
    both = [Report(number=number, pid=number, devices=["0"]) for number in (1, 2)]
    with pytest.raises(ExternalResourceError, match=r"^one GPU was given to two TaskManagers: 0, 0$"):
        stand_ins._show_reports(both, 2, print)


def test_task_manager_that_breaks_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    gpus = Gpus(str(tmp_path), 64)
    gpus.libraries = "no_such_library"
    failed = pytest.raises(ExternalResourceError, match=r"^TaskManager 1 failed: .* no_such_library works here$")
    with contextlib.closing(Host(str(tmp_path), gpus)) as host, failed:
        host.start(1)


def test_missing_library_is_named_with_the_remedy(tmp_path: Path) -> None:
    code = textwrap.dedent("""\
        import sys
        sys.modules["sklearn"] = None
        from externalresource.demo import stand_ins
        stand_ins.run()
    """)
    with _start(tmp_path, code=code) as process:
        _, err = _said(process)
    assert err.rstrip().endswith("scikit-learn: pip install 'externalresource[demo]'")


@pytest.mark.parametrize(("task_managers", "gpus"), [(0, 2), (2, 0), (-1, 1)])
def test_demo_of_nothing_is_refused(task_managers: int, gpus: int) -> None:
    with pytest.raises(ConfigurationError):
        stand_ins.run(task_managers, gpus)
    assert issubclass(ConfigurationError, ExternalResourceError)


class StandInFlink:
    """A package `pyflink` in a folder: its scripts are shell scripts, and so is java."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        home = folder / "packages" / "pyflink"
        for name in ("bin", "conf"):
            (home / name).mkdir(parents=True)
        (home / "__init__.py").touch()
        (home / "version.py").write_text("__version__ = '0'\n")
        (home / "conf" / "config.yaml").write_text("env.java.opts.all: -ea\n")
        self._scripts = home / "bin"
        self._tools = folder / "tools"
        self._tools.mkdir()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.say("jobmanager.sh", "sleep 60")
        self.say("taskmanager.sh", "echo 'Discover GPU resources: [GPU Device(0)].'", *_MEMBER)
        _executable(self._tools / "java", "exit 1")

    def say(self, script: str, *lines: str) -> None:
        _executable(self._scripts / script, *lines)

    def start(self, *arguments: int | str, path: str | None = None, **environment: str) -> "subprocess.Popen[str]":
        pytest.importorskip("sklearn", reason="the demo needs externalresource[demo]")
        settings = {
            "PATH": path or f"{self._tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(self._folder / "packages"),
            "EXTERNALRESOURCE_GPU_SIMULATE": "0",
            "JAVA_HOME": "",
        }
        return _start(self.temporary, *arguments, code=_COMMAND, **settings | environment)

    def complaint(self, *arguments: int | str, **environment: Any) -> str:
        """The one line of a demo that failed, and left nothing behind."""
        process = self.start(*arguments, **environment)
        _, err = _said(process)
        assert process.returncode == 1
        _assert_nothing_is_left(self.temporary, process.pid)
        (line,) = err.splitlines()
        assert line.startswith("externalresource: ")
        return line.removeprefix("externalresource: ")


# What a TaskManager says, and what it started stays with it.
_MEMBER = ("echo Successful registration at resource manager", "sleep 60 & sleep 60")


def _executable(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


@pytest.fixture
def stand_in(tmp_path: Path) -> StandInFlink:
    return StandInFlink(tmp_path)


def test_without_apache_flink_one_line_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo needs externalresource[demo]")
    with _start(tmp_path, code=f"import sys; sys.modules['pyflink'] = None; {_COMMAND}") as process:
        out, err = _said(process)
    assert (process.returncode, out) == (1, "")
    assert err == "externalresource: apache-flink is missing: pip install 'externalresource[demo,flink]'\n"


def test_python_without_an_apache_flink_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyflink", None)
    with pytest.raises(ExternalResourceError, match=r"^apache-flink installs on Python 3\.10 or older, "):
        flink_host.check_installed(newest_python=(3, 10))


def test_without_java_one_line_says_what_to_install(stand_in: StandInFlink) -> None:
    remedy = "sudo apt-get install default-jre-headless"
    assert stand_in.complaint(path="/nowhere") == f"Flink needs Java, but java is not on PATH: {remedy}"
    wrong = "JAVA_HOME, /nowhere, has no bin/java"
    assert stand_in.complaint(JAVA_HOME="/nowhere") == f"Flink needs Java, but {wrong}: {remedy}"


def test_missing_discovery_script_is_an_error_that_names_it() -> None:
    with pytest.raises(ExternalResourceError, match=r"^/.*/no-such-script is missing, which .*: install it again$"):
        flink_host.discovery_script("no-such-script")


def test_job_manager_that_ends_is_an_error_with_its_last_words(stand_in: StandInFlink) -> None:
    stand_in.say("taskmanager.sh", "sleep 60")
    stand_in.say("jobmanager.sh", "echo starting", "echo java.net.BindException: in use; echo '  at a.b(C)'", "exit 1")
    assert stand_in.complaint() == "the JobManager failed: java.net.BindException: in use"


def test_task_manager_without_a_gpu_is_an_error_with_the_reason(stand_in: StandInFlink) -> None:
    stand_in.say("taskmanager.sh", "echo 'STDERR: 1 wanted, 0 of 2 free'", *_MEMBER)
    assert stand_in.complaint() == "TaskManager 1 got no GPU: 1 wanted, 0 of 2 free"


def test_gpu_given_to_two_task_managers_of_flink_is_an_error(stand_in: StandInFlink) -> None:
    assert stand_in.complaint() == "one GPU was given to two TaskManagers: 0, 0"


def test_job_that_fails_is_an_error_with_what_python_said(stand_in: StandInFlink) -> None:
    said = ("echo a.b.DiscoveryError: no TaskManager", "echo Caused by: java.lang.RuntimeException: oh", "exit 1")
    stand_in.say("flink", *said)
    assert stand_in.complaint("--task-managers", 1) == "the job failed: a.b.DiscoveryError: no TaskManager"


def test_operator_that_is_told_another_gpu_is_an_error(stand_in: StandInFlink) -> None:
    report = '[{"number":1,"pid":2,"task_manager":3,"devices":["1"],"library":"numpy","answers":[]}]'
    stand_in.say("flink", "echo Job has been submitted", f"echo '{report}'", "sleep 60")
    told = stand_in.complaint("--task-managers", 1)
    assert re.fullmatch(
        r"by their pids, the TaskManagers have GPUs \{\d+: \['0'\]\}, but operators were told \{3: \['1'\]\}", told
    )


def test_digit_that_is_not_read_is_an_error() -> None:
    pytest.importorskip("sklearn", reason="the demo needs externalresource[demo]")
    _, unread = digits.learned_and_unread(0)
    report = flink_host.Report(1, 2, 3, ["0"], "numpy", [(0, 7)])
    with pytest.raises(ExternalResourceError, match=r"^the job read only 1 of 597 digits$"):
        on_flink._show_answers([report], unread, print)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_flink_ends_with_the_demo_however_that_ends(number: signal.Signals, stand_in: StandInFlink) -> None:
    stand_in.say("flink", "sleep 60 & sleep 60")
    with stand_in.start("--task-managers", 1) as process:
        assert process.stdout
        assert any("Submitting" in line for line in process.stdout)
        process.send_signal(number)
        _said(process)
    killed = number is signal.SIGKILL
    assert process.returncode == (-number if killed else 130)
    if killed:
        shutil.rmtree(next(stand_in.temporary.iterdir()))
    _assert_nothing_is_left(stand_in.temporary, process.pid)


@pytest.mark.parametrize(("task_managers", "gpus"), [(3, 2), (0, 2), (-1, 2)])
def test_flink_is_not_started_where_a_gpu_would_be_missing(task_managers: int, gpus: int) -> None:
    with pytest.raises(ConfigurationError, match=r"^each TaskManager of Flink needs a GPU: "):
        on_flink.run(task_managers, gpus)
