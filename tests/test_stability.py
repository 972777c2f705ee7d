"""What docs/api-stability.md says is so: whoever makes one of these tests red breaks a promise, or changes the page."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from externalresource import errors
from externalresource.api import API_VERSION, Device, driver
from externalresource.drivers.loading import create_driver

PAGE = (Path(__file__).parents[1] / "docs" / "api-stability.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table with this heading."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


NAMES = {module: {name.strip("`") for name in names.split(", ")} for module, names in rows("module | its public names")}


def test_version_of_the_driver_api_is_the_one_that_is_named() -> None:
    assert re.findall(r"`externalresource\.api\.API_VERSION` is (\d+)\.", PAGE) == [str(API_VERSION)]


def test_options_of_all_drivers_are_those_that_are_named() -> None:
    factory = driver("CLASS")(lambda: [Device("0")])
    have = {option.name: (option.kind, option.default) for option in factory.options}
    named = {name: (kind, default.partition(" ")[0]) for name, kind, default in rows("option | type | default")}
    assert named == have


def test_default_file_of_a_class_is_the_one_that_is_named() -> None:
    made = driver("CLASS")(lambda: [Device("0")]).create_external_resource_driver({"enable-coordination-mode": "true"})
    assert f"`{made.coordination_file}`" in PAGE


@pytest.mark.parametrize("module", NAMES)
def test_public_names_of_a_module_are_those_that_are_named(module: str) -> None:
    room = importlib.import_module(module)
    if room is errors:
        classes = [value for value in vars(errors).values() if inspect.isclass(value)]
        assert all(issubclass(kind, errors.ExternalResourceError) for kind in classes)
        assert NAMES[module] == {kind.__name__ for kind in classes} | {"did_you_mean"}
        return
    assert NAMES[module] == set(room.__all__)
    assert len(room.__all__) == len(set(room.__all__))  # in the order that the linter keeps


def test_example_is_a_plugin_for_this_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "stable_example.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = create_driver("stable_example:fpga", {})
    assert [info.get_property("index") for info in made.retrieve_resource_info(1)] == ["0"]
