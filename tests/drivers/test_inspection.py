"""What is installed."""

import json
import sys
from collections.abc import Sequence

import pytest

from externalresource.drivers.inspection import Plugin, installed
from externalresource.drivers.loading import create_driver
from externalresource.errors import ConfigurationError
from tests.support.plugins import (
    BROKEN,
    FACTORY,
    NOISE,
    OBJECT,
    Install,
    command,
)


def named(name: str, *, timeout: float = 60) -> list[Plugin]:
    return [plugin for plugin in installed(timeout) if plugin.name == name]


def listed(install: Install, codes: Sequence[str]) -> list[Plugin]:
    """Return how one list shows a plugin of each code, whose factory is `factory`."""
    for number, code in enumerate(codes):
        install(f"board{number}", code, {f"fpga{number}": f"board{number}:factory"})
    found = {plugin.name: plugin for plugin in installed(60)}
    return [found[f"fpga{number}"] for number in range(len(codes))]


OWN_OPTIONS = """
from dataclasses import dataclass
from typing import Literal
from externalresource.api import Device, driver

@dataclass(frozen=True)
class Options:
    board: str
    root: str = "/dev"
    speed: Literal["slow", "fast"] = "fast"
    lanes: int | None = None

@driver("fpga", Options)
def fpga(options):
    \"""FPGA boards.

    More of them.
    \"""
    return []
"""


def test_installed_plugin_is_shown_with_its_options(install: Install) -> None:
    install("boards", "api_version = 1\n" + OWN_OPTIONS, {"fpga": "boards:fpga"})
    [plugin] = named("fpga")
    assert (plugin.distribution, plugin.version, plugin.entry_point) == ("boards", "1.0", "boards:fpga")
    assert (plugin.loads, plugin.problem, plugin.said) == (True, None, None)
    assert (plugin.api_version, plugin.summary) == (1, "FPGA boards.")
    assert plugin.options is not None
    options = [(option.name, option.kind, option.default, option.required) for option in plugin.options]
    assert options[:4] == [
        ("board", "a text", None, True),
        ("root", "a text", "/dev", False),
        ("speed", "slow|fast", "fast", False),
        ("lanes", "a whole number", None, False),
    ]
    assert ("enable-coordination-mode", "true or false", "false", False) in options


def test_options_of_the_gpu_driver_are_those_that_it_takes() -> None:
    [plugin] = named("gpu")
    assert plugin.options is not None
    defaults = {option.name: option.default for option in plugin.options if option.default is not None}
    assert create_driver("gpu", defaults) is not None
    with pytest.raises(ConfigurationError) as caught:
        create_driver("gpu", {"nonsense": "1"})
    allowed = str(caught.value).partition("(allowed: ")[2].partition(")")[0].split(", ")
    assert [option.name for option in plugin.options] == allowed


def test_factory_need_not_say_which_options_it_takes(install: Install) -> None:
    codes = ["", "factory.options = []", "import json\nfactory.options = json", "factory.options = [1]"]
    found = listed(install, [OBJECT + code for code in codes])
    assert [(plugin.loads, plugin.problem, plugin.options) for plugin in found] == [
        (True, None, None),
        (True, None, []),
        (True, None, None),
        (True, None, None),
    ]


def test_factory_that_cannot_say_its_options_is_said_to(install: Install) -> None:
    faults = ["ValueError", "AttributeError"]
    says = "    @property\n    def options(self): raise {}('no')\nfactory = Factory()"
    found = listed(install, [FACTORY + says.format(fault) for fault in faults])
    assert [(plugin.loads, plugin.problem) for plugin in found] == [
        (True, f"cannot say which options it takes: {fault}: no") for fault in faults
    ]


def test_factory_need_not_say_what_it_is(install: Install) -> None:
    texts = ["''", "' \\n '", "1", "None"]
    found = listed(install, [OBJECT + f"factory.__doc__ = {text}" for text in texts])
    assert [(plugin.loads, plugin.summary) for plugin in found] == [(True, None)] * len(texts)


CONTAINED = {
    **{name: (code, f"could not be loaded: {cause}") for name, (code, cause) in BROKEN.items()},
    "ends the process": (
        "import os\nos._exit(0)",
        "could not be loaded: its import ended the process with status 0",
    ),
    "crashes": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "could not be loaded: its import ended the process with SIGSEGV",
    ),
    "has no hook": ("class Factory: pass", "is no factory: it has no create_external_resource_driver"),
    "is for another version": ("api_version = 0\n" + FACTORY, "was written for version 0 of the driver API"),
}


def test_plugin_that_cannot_be_used_is_listed_with_the_reason_and_hides_no_other(install: Install) -> None:
    for number, (code, _) in enumerate(CONTAINED.values()):
        install(f"broken{number}", code, {f"fpga{number}": f"broken{number}:Factory"})
    found = {plugin.name: plugin for plugin in installed(60)}
    for number, (name, (_, problem)) in enumerate(CONTAINED.items()):
        listed = found[f"fpga{number}"]
        problem = problem.replace("'broken'", f"'broken{number}'")  # noqa: PLW2901
        assert (name, listed.loads, (listed.problem or "")[: len(problem)]) == (name, False, problem)
        assert f"broken{number}" not in sys.modules
    assert found["gpu"].loads


HANGS = {
    "sleeps": "import time\ntime.sleep(600)",
    "waits for a child": "import subprocess\nsubprocess.run(['sleep', '600'])",
    "in its class": "class Factory:\n  def __init__(self):\n    import time\n    time.sleep(600)",
}


def test_plugin_that_hangs_on_import_hides_no_other(install: Install) -> None:
    for number, code in enumerate(HANGS.values()):
        install(f"hangs{number}", code, {f"fpga{number}": f"hangs{number}:Factory"})
    install("fpga", OBJECT, {"zpga": "fpga:factory"})
    found = {plugin.name: plugin for plugin in installed(5)}
    problems = {found[f"fpga{number}"].problem for number in range(len(HANGS))}
    assert problems == {"could not be loaded: its import had not ended after 5 s"}
    assert found["zpga"].loads


def test_what_an_import_prints_is_shown_as_a_remark(install: Install) -> None:
    for plugin in listed(install, [NOISE + OBJECT, NOISE + "raise ValueError", NOISE + "os._exit(3)"]):
        assert sorted((plugin.said or "").split()) in (["noise"] * 3, ["noise", "noisenoise"])


def test_noise_is_cut_and_does_not_reach_the_terminal_as_it_is(install: Install) -> None:
    noises = ["print('\\x1b[2Jnoise\\a')\n", "print('noise ' * 100000)\n"]
    found = listed(install, [noise + OBJECT for noise in noises])
    assert [plugin.said for plugin in found] == ["[2Jnoise", ("noise " * 34)[:200] + "..."]


def test_import_that_leaves_a_thread_is_no_hang(install: Install) -> None:
    code = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    install("fpga", code + OBJECT, {"fpga": "fpga:factory"})
    assert [plugin.loads for plugin in named("fpga")] == [True]


def test_each_of_two_plugins_of_one_name_names_the_other(install: Install) -> None:
    install("first", OBJECT, {"fpga": "first:factory"})
    install("second", "raise ValueError('no')", {"fpga": "second:factory"})
    one, other = named("fpga")
    assert (one.loads, other.loads) == (True, False)
    assert one.problem == (
        "is ambiguous: second 1.0 provides this name, too; uninstall one, or name the import path first:factory"
    )
    assert other.problem == (
        "could not be loaded: ValueError: no; it is ambiguous: first 1.0 provides this name, too; "
        "uninstall one, or name the import path second:factory"
    )


def test_plugin_that_a_name_of_ours_hides_is_shown_with_a_remark(install: Install) -> None:
    install("stranger", OBJECT, {"gpu": "stranger:factory"})
    ours, strangers = sorted(named("gpu"), key=lambda plugin: plugin.entry_point)
    assert (ours.problem, bool(strangers.problem)) == (None, True)
    assert f"gpu (stranger 1.0) {strangers.problem}" in command("plugins").stdout


def test_list_for_people_shows_plugins_then_what_is_wrong_then_options(install: Install) -> None:
    install("boards", OWN_OPTIONS, {"fpga": "boards:fpga", "org.FpgaFactory": "boards:fpga"})
    install("broken", NOISE + "raise ValueError('two\\nlines')", {"broken": "broken"})
    done = command("plugins")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["NAME", "DISTRIBUTION", "VERSION", "API", "LOADS", "ENTRY", "POINT"]
    assert ["fpga", "boards", "1.0", "-", "yes", "boards:fpga"] in rows
    assert ["broken", "broken", "1.0", "-", "no", "broken"] in rows
    assert "broken (broken 1.0) could not be loaded: ValueError: two lines\n" in done.stdout
    assert "broken (broken 1.0) says on import: noise" in done.stdout
    assert ["fpga", "board", "a", "text", "(must", "be", "given)"] in rows
    assert ["fpga", "lanes", "a", "whole", "number", "-"] in rows
    assert len([row for row in rows if row[1:2] == ["board"]]) == 1


def test_list_for_programs_is_json(install: Install) -> None:
    install("boards", OWN_OPTIONS, {"fpga": "boards:fpga"})
    [fpga] = [plugin for plugin in json.loads(command("plugins", "--format=json").stdout) if plugin["name"] == "fpga"]
    assert fpga["options"][0] == {"name": "board", "type": "a text", "default": None, "required": True}
    del fpga["options"]
    assert fpga == {
        "name": "fpga",
        "distribution": "boards",
        "version": "1.0",
        "entry_point": "boards:fpga",
        "loads": True,
        "problem": None,
        "said": None,
        "summary": "FPGA boards.",
        "api_version": None,
    }


def test_list_where_nothing_is_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert installed(60) == []
