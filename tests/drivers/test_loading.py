import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from externalresource.api import API_VERSION
from externalresource.drivers.inspection import Plugin, installed
from externalresource.drivers.loading import OURS, create_driver
from externalresource.errors import ConfigurationError, PluginError

FACTORY = """
from externalresource.api import hookimpl

class Driver:
    def __init__(self, options):
        self.options = options

class Factory:
    @hookimpl
    def create_external_resource_driver(self, options):
        return Driver(options)
"""
MODULE = FACTORY + "\n\n@hookimpl\ndef create_external_resource_driver(options):\n    return Driver(options)\n"
OBJECT = FACTORY + "\n\nfactory = Factory()\n"

COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution: a module of its name, and the entry points that it offers to us."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    installed = []

    def install(name: str, code: str, entry_points: Mapping[str, str]) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(code, encoding="ascii")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="ascii")
        lines = [f"{entry} = {value}" for entry, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[externalresource]", *lines]), encoding="ascii")
        sys.path.append(str(site))
        installed.append(name)

    yield install
    for name in installed:
        sys.modules.pop(name, None)


def options_of(factory: str, options: Mapping[str, str] | None = None) -> Any:
    """Return what the driver of the factory above was told."""
    driver: Any = create_driver(factory, {"key": "value"} if options is None else options)
    return driver.plain.options


def error_of(factory: str) -> str:
    with pytest.raises(PluginError) as caught:
        create_driver(factory, {})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("value", ["fpga:Factory", "fpga:factory", "fpga"], ids=["class", "instance", "module"])
@pytest.mark.parametrize("name", ["fpga", "org.apache.flink.externalresource.fpga.FPGADriverFactory"])
def test_installed_plugin_is_found_by_its_name(name: str, value: str, install: Install) -> None:
    install("fpga", MODULE + "factory = Factory()\n", {name: value})
    assert options_of(name) == {"key": "value"}


@pytest.mark.parametrize("path", ["fpga:Factory", "fpga:factory", "fpga:", "fpga:Inner.Factory"])
def test_factory_is_found_by_its_import_path(path: str, install: Install) -> None:
    install("fpga", MODULE + "factory = Factory()\nclass Inner:\n    Factory = Factory\n", {})
    assert options_of(path) == {"key": "value"}


@pytest.mark.parametrize("name", ["gpu", "org.apache.flink.externalresource.gpu.GPUDriverFactory"])
def test_gpu_plugin_is_found_by_its_name_and_by_flinks(name: str) -> None:
    assert type(create_driver(name, {"simulate": "1"})).__name__ == "GPUDriver"


def test_module_may_be_two_plugins(install: Install) -> None:
    install("fpga", MODULE, {"one": "fpga", "other": "fpga"})
    assert options_of("one", {"a": "1"}) == {"a": "1"}
    assert options_of("other", {"a": "2"}) == {"a": "2"}


def test_each_call_makes_its_own_driver(install: Install) -> None:
    install("fpga", OBJECT, {"fpga": "fpga:factory"})
    assert create_driver("fpga", {}) is not create_driver("fpga", {})


def test_broken_plugin_that_nobody_names_is_never_imported(install: Install) -> None:
    install("broken", "raise SystemError('imported')", {"broken": "broken:Factory"})
    install("fpga", OBJECT, {"fpga": "fpga:Factory"})
    assert options_of("fpga") == {"key": "value"}
    assert "broken" in error_of("nobody")
    assert "broken" not in sys.modules


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


@pytest.mark.parametrize(("code", "cause"), BROKEN.values(), ids=BROKEN)
def test_broken_plugin_that_is_named_is_an_error_with_all_that_one_needs(
    code: str, cause: str, install: Install
) -> None:
    install("broken", code, {"fpga": "broken:Factory"})
    by_name = error_of("fpga")
    assert by_name.startswith("plugin 'fpga' (entry point broken:Factory of broken 1.0) could not be loaded: " + cause)
    sys.modules.pop("broken", None)
    assert error_of("broken:Factory").startswith("plugin 'broken:Factory' (import path) could not be loaded: " + cause)


@pytest.mark.parametrize(
    "code",
    [
        "{}",
        "from externalresource import hookimpl\n@hookimpl\ndef create_external_resource_driver(options): {}",
    ],
    ids=["import", "factory"],
)
def test_cause_of_a_failure_is_kept(code: str, install: Install) -> None:
    install("broken", code.format("raise ValueError('why')"), {"fpga": "broken"})
    with pytest.raises(PluginError) as caught:
        create_driver("fpga", {})
    assert isinstance(caught.value.__cause__, ValueError)


def test_interrupt_during_an_import_comes_through(install: Install) -> None:
    install("broken", "raise KeyboardInterrupt", {"fpga": "broken"})
    with pytest.raises(KeyboardInterrupt):
        create_driver("fpga", {})


def test_two_packages_with_one_name_are_an_error_naming_both(install: Install) -> None:
    install("first", OBJECT, {"fpga": "first:factory"})
    install("second", OBJECT, {"fpga": "second:factory"})
    assert error_of("fpga") == (
        "plugin 'fpga' is ambiguous: first 1.0 and second 1.0 both provide it; uninstall one, "
        "or name the import path (first:factory or second:factory)"
    )
    assert options_of("second:factory") == {"key": "value"}


def test_same_package_found_twice_is_one(install: Install) -> None:
    install("fpga", OBJECT, {"fpga": "fpga:factory"})
    sys.path.append(sys.path[-1])
    assert options_of("fpga") == {"key": "value"}


def test_unknown_name_tells_what_is_installed_and_what_is_near(install: Install) -> None:
    install("fpga", OBJECT, {"fpga": "fpga:factory"})
    message = error_of("fgpa")
    assert message.startswith("no installed plugin is called 'fgpa' (installed: ")
    assert "fpga" in message
    assert message.endswith("an import path is written package.module:Class), did you mean 'fpga'?")


def test_name_of_ours_is_ours_whoever_else_offers_it(install: Install) -> None:
    install("mine", "raise ValueError('imported')", {"gpu": "mine:factory"})
    assert type(create_driver("gpu", {"simulate": "1"})).__name__ == "GPUDriver"
    [stranger] = [plugin for plugin in installed(60) if plugin.distribution == "mine"]
    assert stranger.problem is not None
    assert stranger.problem.endswith("it has a name of ours, which is used: write the import path mine:factory instead")


def test_our_names_are_those_of_our_entry_points() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["externalresource"] == OURS


def test_our_plugin_is_made_without_reading_what_is_installed() -> None:
    code = 'create_driver("gpu", {"simulate": "1"}); import sys; print("importlib.metadata" in sys.modules)'
    assert python(f"import pluggy, sys\nsys.modules.pop('importlib.metadata', None)\n{IMPORT}\n{code}") == "False"


UNFIT = {
    "misspelt hook": ("def create_external_resource_drivers(self, options): pass", "does not fit: "),
    "misspelt argument": ("def create_external_resource_driver(self, option): pass", "does not fit: "),
    "returns None": (
        "def create_external_resource_driver(self, options): pass",
        "created no driver: its create_external_resource_driver returned None",
    ),
    "raises": (
        "def create_external_resource_driver(self, options): raise KeyError('a')",
        "could not create a driver: KeyError: 'a'",
    ),
    "exits": (
        "def create_external_resource_driver(self, options): raise SystemExit('bye')",
        "could not create a driver: SystemExit: bye",
    ),
}


@pytest.mark.parametrize(("method", "complaint"), UNFIT.values(), ids=UNFIT)
def test_factory_that_does_not_do_its_part_is_an_error(method: str, complaint: str, install: Install) -> None:
    code = f"from externalresource import hookimpl\nclass Factory:\n    @hookimpl\n    {method}"
    install("unfit", code, {"fpga": "unfit:Factory"})
    assert error_of("fpga").startswith(f"plugin 'fpga' (entry point unfit:Factory of unfit 1.0) {complaint}")
    assert error_of("unfit:Factory").startswith(f"plugin 'unfit:Factory' (import path) {complaint}")


def test_misspelt_hook_is_named(install: Install) -> None:
    code = "from externalresource import hookimpl\n@hookimpl\ndef create_external_resource_drivr(options): pass"
    install("unfit", code, {"fpga": "unfit"})
    assert "create_external_resource_drivr" in error_of("fpga")


def test_factory_without_a_mark_is_an_error(install: Install) -> None:
    install("unfit", "class Factory:\n    def create_external_resource_driver(self, options): return 1", {})
    assert error_of("unfit:Factory") == (
        "plugin 'unfit:Factory' (import path) is no factory: "
        "it has no create_external_resource_driver marked @externalresource.hookimpl"
    )


def test_our_own_errors_come_through_as_they_are(install: Install) -> None:
    code = (
        "from externalresource import ConfigurationError, hookimpl\n@hookimpl\n"
        "def create_external_resource_driver(options): raise ConfigurationError('no such option')"
    )
    install("fpga", code, {"fpga": "fpga"})
    with pytest.raises(ConfigurationError, match=r"^no such option$"):
        create_driver("fpga", {})


@pytest.mark.parametrize("path", [":", ":Factory", "missing_package:Factory", "os:path:join"])
def test_import_path_that_leads_nowhere_is_an_error(path: str) -> None:
    assert error_of(path).startswith(f"plugin {path!r} (import path) could not be loaded: ")


class Panic(BaseException):
    """As PanicException of pyo3: beside Exception, and nobody's wish to end the program."""


def test_panic_of_a_library_on_import_is_an_error(install: Install) -> None:
    install("broken", f"from {__name__} import Panic\nraise Panic('no backend')", {"fpga": "broken"})
    assert error_of("fpga").endswith("could not be loaded: Panic: no backend")


def test_panic_of_a_library_in_a_factory_is_an_error(install: Install) -> None:
    code = f"from {__name__} import Panic\nfrom externalresource import hookimpl\n@hookimpl\n"
    install("broken", code + "def create_external_resource_driver(options): raise Panic('no backend')", {})
    assert error_of("broken:").endswith("could not create a driver: Panic: no backend")


def test_one_package_with_two_plugins_of_one_name_is_an_error(install: Install) -> None:
    install("fpga", OBJECT, {"fpga": "fpga:factory", " fpga": "fpga:Factory"})
    assert error_of("fpga").startswith("plugin 'fpga' is ambiguous: fpga 1.0 and fpga 1.0 both provide it")


# For which version of the driver API it was written

VERSIONED = {
    "class": ("fpga:Factory", FACTORY + "    api_version = {}\n"),
    "instance": ("fpga:factory", OBJECT + "factory.api_version = {}\n"),
    "module": ("fpga", "api_version = {}\n" + MODULE),
    "module of a class": ("fpga:Factory", "api_version = {}\n" + FACTORY),
    "module of a function": (
        "fpga:fpga",
        "api_version = {}\nfrom externalresource.api import driver\n@driver('fpga')\ndef fpga(): return []\n",
    ),
}


@pytest.mark.parametrize(("value", "code"), VERSIONED.values(), ids=VERSIONED)
@pytest.mark.parametrize("version", [API_VERSION + 1, API_VERSION - 1, "new"])
def test_plugin_for_another_version_of_the_api_is_an_error_naming_both(
    value: str, code: str, version: object, install: Install
) -> None:
    install("fpga", code.format(repr(version)), {"fpga": value})
    assert error_of("fpga") == (
        f"plugin 'fpga' (entry point {value} of fpga 1.0) was written for version {version!r} of the driver API, and "
        f"this externalresource has version {API_VERSION}: install releases of the two that fit"
    )


@pytest.mark.parametrize(("value", "code"), VERSIONED.values(), ids=VERSIONED)
def test_plugin_for_this_version_of_the_api_is_used(value: str, code: str, install: Install) -> None:
    install("fpga", code.format(API_VERSION), {"fpga": value})
    assert create_driver("fpga", {}) is not None


# Plugins that hang or print


def with_plugins() -> dict[str, str]:
    """Return the environment of a process that finds the plugins which are installed here, and buffers its output."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": ""}


def python(code: str) -> str:
    """Run it in a process that has the alarm signal for itself, which pytest-timeout uses here."""
    done = subprocess.run([sys.executable, "-c", code], env=with_plugins(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORT = "from externalresource.drivers.loading import create_driver"
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
    assert "_Adapted object" in said
    assert (alarm, after) == ("False", "True")


def test_plugin_is_loaded_in_any_thread(install: Install) -> None:
    install("fpga", OBJECT, {"fpga": "fpga:factory"})
    body = "".join(f"    {line}\n" for line in (CREATE % "60").splitlines())
    code = (
        f"import threading\ndef work():\n{body}\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()"
    )
    assert "_Adapted object" in python(code)


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
    assert "_Adapted object" in made
    assert alarm == "True"


NOISE = "print('noise')\nimport os\nos.write(1, b'noise')\nos.system('echo noise')\n"
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


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([COMMAND, *words], env=with_plugins(), capture_output=True, text=True, check=False)


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


# What is installed


def named(name: str, *, timeout: float = 60) -> list[Plugin]:
    return [plugin for plugin in installed(timeout) if plugin.name == name]


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


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (OBJECT, None),
        (OBJECT + "factory.options = []", []),
        (OBJECT + "import json\nfactory.options = json", None),
        (OBJECT + "factory.options = [1]", None),
    ],
    ids=["none", "no options", "something else", "a list of something else"],
)
def test_factory_need_not_say_which_options_it_takes(code: str, options: object, install: Install) -> None:
    install("fpga", code, {"fpga": "fpga:factory"})
    [plugin] = named("fpga")
    assert (plugin.loads, plugin.problem, plugin.options) == (True, None, options)


@pytest.mark.parametrize("fault", ["ValueError: no", "AttributeError: no"])
def test_factory_that_cannot_say_its_options_is_said_to(fault: str, install: Install) -> None:
    kind = fault.partition(":")[0]
    install("fpga", FACTORY + f"    @property\n    def options(self): raise {kind}('no')", {"fpga": "fpga:Factory"})
    [plugin] = named("fpga")
    assert (plugin.loads, plugin.problem) == (True, f"cannot say which options it takes: {fault}")


@pytest.mark.parametrize("text", ["''", "' \\n '", "1", "None"])
def test_factory_need_not_say_what_it_is(text: str, install: Install) -> None:
    install("fpga", OBJECT + f"factory.__doc__ = {text}", {"fpga": "fpga:factory"})
    assert [(plugin.loads, plugin.summary) for plugin in named("fpga")] == [(True, None)]


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


@pytest.mark.parametrize("code", [NOISE + OBJECT, NOISE + "raise ValueError", NOISE + "os._exit(3)"])
def test_what_an_import_prints_is_shown_as_a_remark(code: str, install: Install) -> None:
    install("noisy", code, {"fpga": "noisy:factory"})
    [plugin] = named("fpga")
    assert sorted((plugin.said or "").split()) in (["noise"] * 3, ["noise", "noisenoise"])


def test_noise_does_not_reach_the_terminal_as_it_is(install: Install) -> None:
    install("noisy", "print('\\x1b[2Jnoise\\a')\n" + OBJECT, {"fpga": "noisy:factory"})
    assert [plugin.said for plugin in named("fpga")] == ["[2Jnoise"]


def test_long_noise_is_cut(install: Install) -> None:
    install("noisy", "print('noise ' * 100000)\n" + OBJECT, {"fpga": "noisy:factory"})
    [plugin] = named("fpga")
    assert plugin.said == ("noise " * 34)[:200] + "..."


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
