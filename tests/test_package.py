import importlib.metadata
import importlib.resources
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import externalresource

ROOT = Path(__file__).parents[1]
PACKAGES = ["externalresource", *sorted(init.parent.name for init in (ROOT / "plugins").glob("*/__init__.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("library", ["click", "filelock", "pluggy", "pynvml", "yaml"])
def test_importing_the_package_imports_no_library(library: str) -> None:
    assert printed(f"import externalresource, sys; print({library!r} in sys.modules)") == "False"


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    code = (
        "import externalresource, sys; print(*[name for name in sys.modules if name.startswith('externalresource.')])"
    )
    assert printed(code) == "externalresource.faces"


def test_claim_is_there_before_what_only_the_call_needs() -> None:
    costly = "{'dataclasses', 'importlib.metadata', 'json', 'logging', 'multiprocessing', 're', 'typing'}"
    code = f"""
import sys
before = {{*sys.modules}}
import externalresource
externalresource.claim
print(*sorted(name for name in {{*sys.modules}} - before if name in {costly} or "." in name and "externalr" in name))
"""
    assert printed(code) == "externalresource.context externalresource.errors externalresource.faces"


def test_error_is_imported_without_any_library() -> None:
    libraries = "{'click', 'filelock', 'pluggy', 'pynvml', 'yaml'}"
    assert (
        printed(f"import sys; from externalresource import PluginError; print(*{libraries} & {{*sys.modules}})") == ""
    )


@pytest.mark.parametrize("name", externalresource.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(externalresource, name) is not None


def test_public_names_are_in_order_and_once_each() -> None:
    assert externalresource.__all__ == sorted(set(externalresource.__all__))
    assert dir(externalresource) == externalresource.__all__


def test_star_gives_the_public_names() -> None:
    names = printed("from externalresource import *; print(*sorted(name for name in dir() if name[0] != '_'))")
    assert names.split() == externalresource.__all__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'externalresource' has no attribute 'runtime_contxt'$"):
        _ = externalresource.runtime_contxt
    assert not hasattr(externalresource, "get_driver")


def test_room_is_imported_by_its_name() -> None:
    assert (
        printed("from externalresource.coordination import ledger; print(ledger.__name__)")
        == "externalresource.coordination.ledger"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_package_carries_its_types(package: str) -> None:
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.skipif("EXTERNALRESOURCE_NO_SKIPS" not in os.environ, reason="in .ci/run what is installed is the wheel")
@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_tested_is_the_wheel_and_not_the_tree(package: str) -> None:
    assert "site-packages" in str(importlib.resources.files(package))


def test_installed_version_is_that_of_the_project_file() -> None:
    assert importlib.metadata.version("externalresource") == PROJECT["version"]


def test_plugins_enter_by_the_group_that_strangers_use() -> None:
    installed = importlib.metadata.entry_points(group="externalresource")
    ours = {point.name: point.value for point in installed if point.dist and point.dist.name == "externalresource"}
    assert ours == PROJECT["entry-points"]["externalresource"]


@pytest.mark.parametrize("folder", ["externalresource", "plugins", "tests", "benchmarks", "scripts"])
def test_no_file_names_a_place_of_one_machine(folder: str) -> None:
    place = re.compile(r"""(?<![\w.])/(?:root|home|work|Users)/\w""")
    files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    named = {str(file.relative_to(ROOT)) for file in files if place.search(file.read_text("utf-8", "replace"))}
    assert not named
