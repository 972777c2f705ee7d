"""Our own drivers pass the tests that we offer to others, and each wrong driver fails the one that names its fault."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from externalresource.testing import DriverConformance

from .wrong_drivers import CAUGHT_BY

WIDGETS = """
import pytest
import wrong_drivers
from externalresource.testing import DriverConformance


class Widgets(DriverConformance):
    wrong_options = {"pace": "0"}
    patience = 5.0

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


for name in ["right", *wrong_drivers.CAUGHT_BY]:
    globals()[f"Test_{name}"] = type(f"Test_{name}", (Widgets,), {"factory": f"wrong_drivers:{name}"})
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


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return, by driver, the tests that fail."""
    folder = tmp_path_factory.mktemp("widgets")
    (folder / "test_widgets.py").write_text(WIDGETS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=no", "test_widgets.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        text=True,
        capture_output=True,
        check=False,
    )
    found: dict[str, set[str]] = {name: set() for name in ["right", *CAUGHT_BY]}
    for name, test in re.findall(r"^(?:FAILED|ERROR) .*::Test_(\w+)::(\w+)", done.stdout, re.MULTILINE):
        found[name].add(test)
    assert re.search(r"^\d+ failed, \d+ passed", done.stdout, re.MULTILINE), done.stdout[-3000:]
    return found


@pytest.mark.parametrize(("name", "test"), CAUGHT_BY.items())
def test_wrong_driver_fails_the_test_that_names_its_fault_and_no_other(
    name: str, test: str, failures: dict[str, set[str]]
) -> None:
    assert failures[name] == {test}


def test_right_driver_passes(failures: dict[str, set[str]]) -> None:
    assert failures["right"] == set()


def test_each_test_of_the_suite_has_a_driver_that_fails_it() -> None:
    tests = {name for name in vars(DriverConformance) if name.startswith("test_")}
    assert set(CAUGHT_BY.values()) == tests
