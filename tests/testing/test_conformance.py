"""Our own drivers pass the tests that we offer to others, and each wrong driver fails the one that names its fault."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from externalresource.testing import DriverConformance
from tests.support.wrong_drivers import CAUGHT_BY

pytestmark = pytest.mark.timeout(900)  # the first that needs it waits for all tests of the wrong drivers

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
SHARES = 4
WIDGETS = """
import os

import pytest
import wrong_drivers
from externalresource.testing import DriverConformance

first, shares = map(int, os.environ["SHARE"].split("/"))
tests = {name for name in vars(DriverConformance) if name.startswith("test_")}


class Widgets(DriverConformance):
    wrong_options = {"pace": "0"}

    def machine(self, folder, amount):
        for number in range(amount):
            (folder / str(number)).touch()
        return {"root": str(folder)}

    def unusable(self, folder):
        (folder / "9.broken").touch()
        return self.machine(folder, 2)

    def failing(self, folder):
        return {"fails": "true"}

    def slow(self, folder):
        return {"hangs": "true"} if self.factory.endswith(("right", "TakesItsTime")) else None


for name in ["right", *wrong_drivers.CAUGHT_BY][first::shares]:
    patience = 8.0 if name == "TakesItsTime" else 60.0
    own = wrong_drivers.CAUGHT_BY.get(name)
    others = tests - {own} if own and "ALL" not in os.environ else ()
    values = {"factory": f"wrong_drivers:{name}", "patience": patience} | dict.fromkeys(others)
    globals()[f"Test_{name}"] = type(f"Test_{name}", (Widgets,), values)


if first == 0:

    class Test_bare(DriverConformance):
        factory = "wrong_drivers:bare"
        machine = Widgets.machine
"""


class TestGPU(DriverConformance):
    factory = "gpu"
    wrong_options = MappingProxyType({"backend": "guess"})

    def machine(self, folder: Path, amount: int) -> Mapping[str, str]:
        return {"simulate": str(amount)}

    def unusable(self, folder: Path) -> Mapping[str, str]:
        return {"simulate": "one-lost"}

    def failing(self, folder: Path) -> Mapping[str, str]:
        return {"simulate": "driver-not-loaded"}

    def slow(self, folder: Path) -> Mapping[str, str]:
        return {"simulate": "driver-hangs"}


def told(folder: Path, **more: str) -> str:
    """Return what pytest says of the widgets' drivers, of a share of them each: mostly they wait."""
    (folder / "test_widgets.py").write_text(WIDGETS)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short", "test_widgets.py"]
    variables = {**os.environ, **more, "PYTHONPATH": str(Path(__file__).parents[1] / "support"), "COLUMNS": "300"}
    running = [
        subprocess.Popen(
            [*command, f"--basetemp={folder / str(share)}"],
            cwd=folder,
            env=variables | {"SHARE": f"{share}/{SHARES}"},
            text=True,
            stdout=subprocess.PIPE,
        )
        for share in range(SHARES)
    ]
    found = [process.communicate()[0] for process in running]
    for output in found:
        assert re.search(r" \d+ failed\b.* in ", output), output[-3000:]
    return "".join(found)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what pytest says where each wrong driver is put to the one test that tells of it."""
    return told(tmp_path_factory.mktemp("widgets"))


@pytest.fixture(scope="module")
def said_of_all(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what pytest says where each wrong driver is put to all tests, a thousand."""
    return told(tmp_path_factory.mktemp("all"), ALL="yes")


def ended(said: str, driver: str, how: str) -> set[str]:
    """Return the tests of a driver that ended like this."""
    return set(re.findall(rf"::Test_{driver}::(\w+)(?:\[.*\])? (?:{how})", said))


@pytest.mark.parametrize(("name", "test"), CAUGHT_BY.items())
def test_wrong_driver_fails_the_test_that_names_its_fault(name: str, test: str, said: str) -> None:
    assert ended(said, name, "FAILED|ERROR") == {test}


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "test"), CAUGHT_BY.items())
def test_wrong_driver_fails_no_other_test(name: str, test: str, said_of_all: str) -> None:
    assert ended(said_of_all, name, "FAILED|ERROR") == {test}


def test_right_driver_passes(said: str) -> None:
    assert not ended(said, "right", "FAILED|ERROR|SKIPPED")
    assert ended(said, "right", "PASSED") == set(CAUGHT_BY.values())


def test_what_a_driver_or_its_tests_have_not_is_skipped_with_the_reason(said: str) -> None:
    assert not ended(said, "bare", "FAILED|ERROR")
    reasons = re.findall(r"::Test_bare::\w+ SKIPPED \((.*)\)", said)
    assert sorted(reasons) == [
        "the class of the tests has no failing(folder) that makes such a machine",
        "the class of the tests has no slow(folder) that makes such a machine",
        "the class of the tests has no unusable(folder) that makes such a machine",
        "the driver has no devices()",
        "the driver has no environment(infos)",
        "the driver has no held()",
        "wrong_options is empty: no value of the driver's own options is known to be wrong",
    ]


@pytest.mark.parametrize(
    "message",
    [
        "3 were asked for, and 2 infos returned",
        "an enumeration that takes minutes is to be refused by DiscoveryError, not by RuntimeError: the driver is",
        "the driver printed on stdout, where only answers belong: 'looking for widgets",
    ],
)
def test_failure_says_what_is_wrong(message: str, said: str) -> None:
    assert f"\n{message}" in said


def test_each_of_our_drivers_is_put_to_the_suite() -> None:
    points = PROJECT["project"]["entry-points"]["externalresource"]
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    tested = {points.get(name) for name in re.findall(r"^    factory = \"(\w+)\"$", tests, re.MULTILINE)}
    assert set(points.values()) <= tested


def test_each_test_of_the_suite_has_a_driver_that_fails_it() -> None:
    tests = {name for name in vars(DriverConformance) if name.startswith("test_")}
    assert set(CAUGHT_BY.values()) == tests
