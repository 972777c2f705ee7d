"""The page on the drivers that come along: its script is run, its options are those that there are."""

import dataclasses
import re
from pathlib import Path

import pytest

import externalresource
from externalresource.drivers.loading import create_driver
from externalresource_nvme.driver import Options as NVMeOptions
from externalresource_script import answer
from externalresource_script.driver import Options as ScriptOptions

PAGE = (Path(__file__).parents[2] / "docs/drivers.md").read_text()


def section(name: str) -> str:
    [found] = [part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.startswith(f"{name}:")]
    return found


def block(text: str, language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return str(found)


def first_cells(text: str, heading: str) -> set[str]:
    """Return the names in the first column of the table with that heading."""
    table = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)}


def options(kind: type) -> set[str]:
    fields = dataclasses.fields(kind)
    return {field.metadata.get("option", field.name.replace("_", "-")) for field in fields}


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    """The folder of the boards that the page's script finds, which has two."""
    folder = tmp_path / "boards"
    folder.mkdir()
    for name in ("fpga0", "fpga1"):
        (folder / name).touch()
    return folder


@pytest.fixture
def configuration(tmp_path: Path, boards: Path) -> Path:
    """The page's configuration, for the page's script."""
    script = tmp_path / "fpga.sh"
    script.write_text(block(section("script"), "sh").replace("/dev/", f"{boards}/"))
    script.chmod(0o755)
    path = tmp_path / "config.yaml"
    path.write_text(block(section("script"), "yaml").replace("/opt/flink/fpga.sh", str(script)))
    return path


def claimed(configuration: Path) -> externalresource.RuntimeContext:
    ledger = {"external-resource.fpga.param.coordination-file": str(configuration.with_name("ledger"))}
    return externalresource.runtime_context(configuration, overrides=ledger)


def test_script_of_the_page_makes_a_resource_of_what_it_finds(configuration: Path) -> None:
    with claimed(configuration) as context:
        assert context.environment() == {"FPGA_DEVICES": "fpga0,fpga1"}
        with pytest.raises(externalresource.NotEnoughDevicesError, match="0 of 2 free"):
            claimed(configuration)


def test_script_of_the_page_says_so_where_there_are_no_devices(configuration: Path, boards: Path) -> None:
    for board in boards.iterdir():
        board.unlink()
    with pytest.raises(externalresource.NotEnoughDevicesError, match=r"^2 wanted, this host has 0$"):
        claimed(configuration)


def test_forms_of_the_page_are_read() -> None:
    rows = section("script").partition("| form |")[2].partition("\n\n")[0]
    forms = re.findall(r"^\| [^|`]* \| `(.*)` \|$", rows, re.MULTILINE)
    indices = [[device.index for device in answer.devices(form)] for form in forms]
    assert indices == [["fpga0"], ["0", "1", "2"], ["fpga0"]]


def test_keys_of_an_object_are_all_on_the_page() -> None:
    assert first_cells(section("script"), "key") == set(answer.KEYS)


@pytest.mark.parametrize(("name", "kind"), [("script", ScriptOptions), ("nvme", NVMeOptions)])
def test_options_of_a_driver_are_all_on_the_page(name: str, kind: type) -> None:
    assert first_cells(section(name), "option") == options(kind)


@pytest.mark.parametrize("name", re.findall(r"^## ([\w-]+):", PAGE, re.MULTILINE))
def test_section_is_called_as_its_driver(name: str) -> None:
    with pytest.raises(externalresource.ConfigurationError, match="has no option 'no-such-option'"):
        create_driver(name, {"no-such-option": "1"})
