"""Plugins to be installed for a test: right ones and broken ones."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.drivers.loading import create_driver
from externalresource.errors import PluginError

FACTORY = """
from externalresource.api import ExternalResourceDriver, hookimpl

class Driver(ExternalResourceDriver):
    def __init__(self, options):
        self.options = options

class Factory:
    @hookimpl
    def create_external_resource_driver(self, options):
        return Driver(options)
"""
MODULE = FACTORY + "\n\n@hookimpl\ndef create_external_resource_driver(options):\n    return Driver(options)\n"
OBJECT = FACTORY + "\n\nfactory = Factory()\n"
BROKEN = {
    "raises": ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "imports what is not there": ("import missing_library", "ModuleNotFoundError: No module named 'missing_library'"),
    "is no Python": ("class", "SyntaxError: "),
    "has no such name": ("", "AttributeError: module 'broken' has no attribute 'Factory'"),
    "wants arguments": (
        "class Factory:\n    def __init__(self, more): pass",
        "TypeError: Factory.__init__() missing 1 required positional argument: 'more'",
    ),
}
NOISE = "print('noise')\nimport os\nos.write(1, b'noise')\nos.system('echo noise')\n"

IMPORT = "from externalresource.drivers.loading import create_driver"
COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")

Install = Callable[..., None]
Once = Callable[[str, Callable[[Path], object]], Path]


def error_of(factory: str) -> str:
    with pytest.raises(PluginError) as caught:
        create_driver(factory, {})
    message = str(caught.value)
    assert "\n" not in message
    return message


def run_the_command_of(section: str, *given: str) -> tuple[str, str]:
    """Run the one command of a page's section, with these words before its `--`; return its output there and here."""
    [(command, output)] = re.findall(
        r"^```console\n\$ externalresource (.*?)\n(.*?)^```", section, re.DOTALL | re.MULTILINE
    )
    words = command.replace(" -- ", f" {' '.join(given)} -- ").split()
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=True, timeout=60)
    return output, done.stdout


def with_plugins() -> dict[str, str]:
    """Return the environment of a process that finds the plugins which are installed here, and buffers its output."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": ""}


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([COMMAND, *words], env=with_plugins(), capture_output=True, text=True, check=False)


def python(code: str) -> str:
    """Run it in a process of its own: pytest-timeout sets a handler of the alarm signal here."""
    done = subprocess.run([sys.executable, "-c", code], env=with_plugins(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
