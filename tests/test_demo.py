import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from externalresource import demo
from externalresource.demo_gpus import Gpus
from externalresource.demo_host import Host, Report
from externalresource.errors import ConfigurationError, ExternalResourceError

_DEMO = "import sys; from externalresource import demo; sys.exit(demo.run(*map(int, sys.argv[1:])))"
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


def _start(folder: Path, *arguments: int, code: str = _DEMO, **environment: str) -> "subprocess.Popen[str]":
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
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    _assert_nothing_is_left(folder, process.pid)
    return out


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


def test_first_line_says_that_devices_are_simulated(tmp_path: Path) -> None:
    first_line = _simulated(tmp_path).split("\n")[0]
    assert first_line == (
        "The 2 GPUs of this demo will be simulated, as no usable NVIDIA GPU was found. All else is real."
    )


def test_each_task_manager_has_its_own_gpu_and_reads_digits_on_it(tmp_path: Path) -> None:
    one, other, _ = _task_managers(_simulated(tmp_path))
    assert one.devices | other.devices == {"0", "1"}
    assert one.devices != other.devices
    assert one.mask != other.mask
    assert min(one.accuracy, other.accuracy) > 0.9


def test_gpu_of_the_killed_one_goes_to_the_new_one(tmp_path: Path) -> None:
    out = _simulated(tmp_path)
    killed, other, new = _task_managers(out)
    assert new.devices == killed.devices
    assert new.accuracy > 0.9
    assert re.search(rf"^  {min(killed.devices)} +{killed.pid} .* is gone$", out, re.MULTILINE)
    assert not re.search(rf" {other.pid} .* is gone$", out, re.MULTILINE)
    assert out.endswith("Claims that are left: 0.\n")


def test_configuration_shown_is_what_they_read(tmp_path: Path) -> None:
    out = _simulated(tmp_path, 1, 1)
    assert "      amount: 1\n" in out
    assert f"--coordination-file {tmp_path}/externalresource-" in out


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
        out, err = process.communicate(timeout=60)
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
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    _assert_nothing_is_left(tmp_path, process.pid)


def test_refusal_while_a_gpu_is_free_is_an_error() -> None:
    with pytest.raises(ExternalResourceError, match=r"^TaskManager 1 got no GPU: the driver hangs$"):
        demo._show_reports([Report(number=1, pid=42, refused="the driver hangs")], 1, print)


def test_gpu_given_twice_is_an_error() -> None:
    both = [Report(number=number, pid=number, devices=["0"]) for number in (1, 2)]
    with pytest.raises(ExternalResourceError, match=r"^one GPU was given to two TaskManagers: 0, 0$"):
        demo._show_reports(both, 2, print)


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
        from externalresource import demo
        demo.run()
    """)
    with _start(tmp_path, code=code) as process:
        _, err = process.communicate(timeout=60)
    assert err.rstrip().endswith("scikit-learn: pip install 'externalresource[demo]'")


@pytest.mark.parametrize(("task_managers", "gpus"), [(0, 2), (2, 0), (-1, 1)])
def test_demo_of_nothing_is_refused(task_managers: int, gpus: int) -> None:
    with pytest.raises(ConfigurationError):
        demo.run(task_managers, gpus)
    assert issubclass(ConfigurationError, ExternalResourceError)
