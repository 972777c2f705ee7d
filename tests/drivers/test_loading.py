import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from externalresource.drivers.inspection import installed
from externalresource.drivers.loading import OURS, create_driver
from externalresource.errors import ConfigurationError, PluginError
from tests.support.plugins import BROKEN, IMPORT, MODULE, OBJECT, Install, error_of, python


def options_of(factory: str, options: Mapping[str, str] | None = None) -> Any:
    """Return what the driver of the factory above was told."""
    driver: Any = create_driver(factory, {"key": "value"} if options is None else options)
    return driver.options


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


BOARDS = """
from externalresource import Device, driver

@driver("fpga")
def boards():
    return [Device(str(index), environment={"FPGA": str(index)}) for index in range(2)]
"""


def test_command_line_uses_such_a_driver_by_its_import_path(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BOARDS)
    command = [sys.executable, "-m", "externalresource"]

    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, *words], cwd=tmp_path, check=False, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip

    outer = ["run", "mine:boards=1", f"--coordination-file={tmp_path}/boards", "--"]
    inner = [*command, "run", "mine:boards=1", f"--coordination-file={tmp_path}/boards", "--", "sh", "-c", "echo $FPGA"]
    done = call(*outer, "sh", "-c", f"echo $FPGA; {' '.join(inner[:-1])} 'echo $FPGA'; exit $?")
    # The inner one gets a share of what the outer one has.
    assert (done.stdout.split(), done.stderr, done.returncode) == (["0", "0"], "", 0)
