"""The template of a stranger's driver, installed as a stranger would: our wheel, its wheel, a fresh environment."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support.plugins import Once

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "plugins" / "externalresource-template"
DRIVER = TEMPLATE / "src" / "externalresource_serial" / "__init__.py"


class Environment:
    def __init__(self, folder: Path) -> None:
        self.scripts = folder / "environment" / "bin"
        self.wheels = [next(folder.glob(f"{name}-*.whl")) for name in ("externalresource", "externalresource_serial")]

    def run(self, folder: Path, program: str, *arguments: str) -> str:
        return run(str(self.scripts / program), *arguments, folder=folder)


def run(*command: str, folder: Path = ROOT) -> str:
    outer = ("COVERAGE_", "EXTERNALRESOURCE_", "PYTEST_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def pip(*arguments: str) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def fill(folder: Path) -> None:
    """Make a fresh environment in the folder, with both wheels in it."""
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT), str(TEMPLATE))
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "environment"))
    environment = Environment(folder)
    ours, template = environment.wheels
    pip("--python", str(environment.scripts / "python"), "install", "--no-compile", str(ours), f"{template}[test]")


@pytest.fixture(scope="module")
def environment(once: Once) -> Environment:
    return Environment(once("stranger", fill))


@pytest.fixture
def ports(tmp_path: Path) -> Path:
    """Return a folder with two serial ports."""
    for number in range(2):
        (tmp_path / f"ttyUSB{number}").touch()
        (tmp_path / "by-id").mkdir(exist_ok=True)
        (tmp_path / "by-id" / f"usb-A{number}").symlink_to(tmp_path / f"ttyUSB{number}")
    return tmp_path


def test_wheel_holds_the_driver_and_no_test(environment: Environment) -> None:
    with zipfile.ZipFile(environment.wheels[1]) as wheel:
        folders = {name.partition("/")[0] for name in wheel.namelist()}
    assert folders == {"externalresource_serial", "externalresource_serial-0.1.0.dist-info"}


@pytest.mark.parametrize("name", ["serial", "externalresource_serial:serial"], ids=["by name", "by import path"])
def test_command_line_shows_the_ports(environment: Environment, ports: Path, name: str) -> None:
    options = ["-o", f"folder={ports}/by-id", "--coordination-file", f"{ports}/claims", "--format", "json"]
    shown = json.loads(environment.run(ports, "externalresource", "discover", name, *options))
    assert [(port["index"], port["uuid"]) for port in shown] == [("ttyUSB0", "usb-A0"), ("ttyUSB1", "usb-A1")]


@pytest.mark.parametrize("name", ["serial", "externalresource_serial:serial"], ids=["by name", "by import path"])
def test_command_runs_on_ports_of_its_own(environment: Environment, ports: Path, name: str) -> None:
    options = ["-o", f"folder={ports}/by-id", "--coordination-file", f"{ports}/claims", "--"]
    command = [str(environment.scripts / "externalresource"), "run", f"{name}=1", *options]
    # The second one is no program of the first one, which would get a share of its port.
    second = shlex.join(["env", "--unset=EXTERNALRESOURCE_RUN", *command, "printenv", "SERIAL_PORTS"])
    printed = run(*command, "sh", "-c", f"echo $SERIAL_PORTS; {second}")
    assert printed.split() == [str(ports / "ttyUSB0"), str(ports / "ttyUSB1")]


def test_python_claims_a_port_by_name(environment: Environment, ports: Path) -> None:
    code = f"""
import externalresource

options = {{"folder": "{ports}/by-id", "coordination-file": "{ports}/claims"}}
with externalresource.claim("serial", options=options) as context:
    (port,) = context.get_external_resource_infos("serial")
    print(port.get_property("path"))
"""
    assert environment.run(ports, "python", "-c", code).strip() == str(ports / "ttyUSB0")


def test_it_stands_among_the_installed_plugins(environment: Environment, tmp_path: Path) -> None:
    plugins = json.loads(environment.run(tmp_path, "externalresource", "plugins", "--format", "json"))
    (serial,) = [plugin for plugin in plugins if plugin["name"] == "serial"]
    assert (serial["distribution"], serial["loads"]) == ("externalresource-serial", True)
    assert "folder" in {option["name"] for option in serial["options"]}


def test_its_own_tests_pass_there(environment: Environment, tmp_path: Path) -> None:
    shutil.copytree(TEMPLATE / "tests", tmp_path / "tests")
    shutil.copy(TEMPLATE / "pyproject.toml", tmp_path)
    printed = environment.run(tmp_path, "python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert " passed" in printed
    assert "failed" not in printed


def test_its_ci_installs_it_and_runs_its_tests() -> None:
    workflow = yaml.safe_load((TEMPLATE / ".github" / "workflows" / "test.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["pip install '.[test]'", "pytest"]


def test_its_driver_is_short() -> None:
    lines = DRIVER.read_text().split("@driver")[1].splitlines()
    assert len(lines) <= 20
