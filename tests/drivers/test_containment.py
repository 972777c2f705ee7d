"""Plugins whose import takes long, and plugins that print."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.plugins import (
    COMMAND,
    NOISE,
    OBJECT,
    Install,
    command,
    python,
    with_plugins,
)

CREATE = """
import signal
from externalresource.errors import PluginError
from externalresource.drivers.loading import create_driver
try:
    print(create_driver("fpga", {}, import_timeout=%s))
except PluginError as error:
    print(error)
print(signal.getsignal(signal.SIGALRM) is signal.SIG_DFL)
"""


def test_import_has_the_main_thread_and_keeps_the_handlers_that_it_sets(install: Install) -> None:
    code = "import signal, threading\nassert threading.current_thread() is threading.main_thread()\n"
    install("fpga", code + "signal.signal(signal.SIGALRM, signal.SIG_IGN)\n" + OBJECT, {"fpga": "fpga:factory"})
    left = "import threading\nprint(all(thread.finished.is_set() for thread in threading.enumerate()[1:]))"
    said, alarm, after = python(CREATE % "60" + left).splitlines()
    assert "Driver object" in said
    assert (alarm, after) == ("False", "True")


def test_plugin_is_loaded_in_any_thread(install: Install) -> None:
    install("fpga", OBJECT, {"fpga": "fpga:factory"})
    body = "".join(f"    {line}\n" for line in (CREATE % "60").splitlines())
    code = (
        f"import threading\ndef work():\n{body}\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()"
    )
    assert "Driver object" in python(code)


def test_import_leaves_no_thread_behind(install: Install) -> None:
    install("fpga", OBJECT, {"fpga": "fpga:factory"})
    assert python(CREATE % "60" + "import threading; print(threading.active_count())").splitlines()[-1] == "1"


SLOW = """
import logging, threading
class Told(logging.Handler):
    def emit(self, record):
        print(record.getMessage())
        told.set()
told = threading.Event()
logging.getLogger("externalresource").addHandler(Told())
import builtins
builtins.told = told
"""


def test_import_that_takes_long_is_named_in_the_log(install: Install) -> None:
    install("slow", "assert told.wait(60)\n" + OBJECT, {"fpga": "slow:factory"})
    said, made, alarm = python(SLOW + CREATE % "0.1").splitlines()
    assert said == (
        "the import of plugin 'fpga' (entry point slow:factory of slow 1.0) has not ended after 0.1 s, "
        "and nothing here can end it"
    )
    assert "Driver object" in made
    assert alarm == "True"


NOISY = (
    NOISE
    + """
from externalresource.api import Device, driver

@driver("fpga")
def fpga():
    print("noise")
    return [Device("0", environment={"FPGA": "0"})]
"""
)


def test_what_a_plugin_prints_does_not_get_into_the_answer(install: Install, tmp_path: Path) -> None:
    install("noisy", NOISY, {"fpga": "noisy:fpga"})
    file = f"--coordination-file={tmp_path}/fpgas"
    shown = command("discover", "fpga", "--format=json", file)
    assert [device["index"] for device in json.loads(shown.stdout)] == ["0"]
    assert shown.stderr.count("noise") == 4
    ran = command("run", "fpga=1", file, "--", "sh", "-c", "echo $FPGA")
    assert (ran.stdout, ran.stderr.count("noise")) == ("0\n", 4)


@pytest.mark.parametrize("closed", ["1", "2"])
def test_plugin_is_used_where_a_stream_is_closed(closed: str, install: Install, tmp_path: Path) -> None:
    install("noisy", NOISY.removeprefix(NOISE), {"fpga": "noisy:fpga"})
    words = f"run fpga=1 --coordination-file={tmp_path}/fpgas -- sh -c 'echo $FPGA > {tmp_path}/answer'"
    assert (
        subprocess.run(
            ["sh", "-c", f"exec '{COMMAND}' {words} {closed}>&-"], env=with_plugins(), check=False, capture_output=True
        ).returncode
        == 0
    )
    assert (tmp_path / "answer").read_text() == "0\n"
