"""The rooms of the house, and who may enter which."""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORK = "externalresource"

# The layers of the house, the highest first: a room imports only from below, or from its own.
LAYERS = (
    "__main__",
    "cli testing",
    "demo pools",
    "context",
    "api",
    "flink",
    "drivers whereabouts",
    "coordination",
    "errors records faces yaml_nodes",
)
ORDER = {room: -layer for layer, rooms in enumerate(LAYERS) for room in rooms.split()}
#: The modules of a folder that other folders enter beside its face, which is its __init__.py.
DOORS = {
    "cli": {"main"},
    "drivers": {"containment", "contract", "inspection", "loading"},
    "coordination": {"inside", "own_claims", "process"},
    "flink": {"config_files", "configuration", "doctor", "forwarding"},
    "demo": {"on_flink", "stand_ins"},
}
SECOND_FACE = {"externalresource.api": "drivers"}  # for whom: the authors of drivers
TABLE_OF_PLUGINS = "externalresource.drivers.loading"  # their names, and where each is: texts, no imports
OPEN_TO_PLUGINS = {"api", "coordination", "errors"}
MOST_MODULES, MOST_MODULES_OF_TESTS, MOST_LINES = 14, 20, 400

# Library: the rooms that own it. Nobody else imports it, so that it can be replaced, and costs only those who need it.
LIBRARIES = {
    "click": {"externalresource.cli"},
    "filelock": {"externalresource.coordination.lock"},
    "pluggy": {"externalresource.drivers.contract", "externalresource.drivers.loading"},
    "pytest": {"externalresource.testing"},
    "pyflink": {"externalresource.demo"},
    "pynvml": {"externalresource_gpu.backends.nvml"},
    "yaml": {"externalresource.yaml_nodes", "externalresource.flink.forwarding"},
}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def room(self) -> str:
        """The folder of the framework that it stands in, or itself; empty for the package's own face."""
        return f"{self.name}.".split(".")[1]


def modules(folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        yield Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path)


ROOMS_HERE = list(modules(ROOT / FRAMEWORK))
PLUGINS = [
    module
    for init in sorted((ROOT / "plugins").rglob("__init__.py"))
    if not (init.parent.parent / "__init__.py").exists()
    for module in modules(init.parent)
]
OURS = [*ROOMS_HERE, *PLUGINS]


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes that run: an import that only the type checker sees ties nothing together."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not for_types(child):
            yield from running(child)


def imported(module: Module, *, types: bool = False) -> set[str]:
    """Return the dotted names that it imports; for `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(module.tree) if types else running(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}: relative imports hide where a room is"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def public_names() -> dict[str, str]:
    """Return the room of each name that the package itself offers."""
    init = ast.parse((ROOT / FRAMEWORK / "__init__.py").read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(init) if isinstance(node, ast.ImportFrom)]
    return {alias.name: (node.module or "").partition(".")[2] for node in nodes for alias in node.names}


def rooms_of_the_framework(names: set[str]) -> set[str]:
    """Return the rooms that the names stand in."""
    public = public_names()
    found = {name.split(".")[1] for name in names if name.startswith(f"{FRAMEWORK}.")}
    return {public.get(name, name).split(".")[0] for name in found}


def by_name(module: Module) -> str:
    return module.name


@pytest.mark.parametrize("module", [module for module in ROOMS_HERE if module.room], ids=by_name)
def test_room_imports_only_from_below(module: Module) -> None:
    assert module.room in ORDER, f"{module.room} stands in no layer"
    others = rooms_of_the_framework(imported(module, types=True)) - {module.room}
    assert not {other for other in others if ORDER[other] >= ORDER[module.room]}


@pytest.mark.parametrize("module", ROOMS_HERE, ids=by_name)
def test_other_folders_enter_by_the_face_or_a_door(module: Module) -> None:
    modules = {other.name.split(".", 1)[1] for other in ROOMS_HERE if other.room}
    paths = [name.split(".")[1:] for name in imported(module, types=True) if name.startswith(f"{FRAMEWORK}.")]
    entered = {(path[0], path[1]) for path in paths if ".".join(path[:2]) in modules and len(path) > 1}
    own = {module.room, SECOND_FACE.get(module.name)}
    assert not {f"{room}.{door}" for room, door in entered if room not in own and door not in DOORS.get(room, set())}


@pytest.mark.parametrize("name", ["", ".api", ".coordination", ".drivers", ".flink", ".testing"])
def test_face_resolves_what_it_says_to_have(name: str) -> None:
    face = importlib.import_module(f"{FRAMEWORK}{name}")
    assert set(face.__all__) == set(dir(face))
    assert all(hasattr(face, public) for public in face.__all__)


def folders() -> list[Path]:
    """Return all with Python files that are ours: none of a virtual environment."""
    tops = [top for top in ROOT.iterdir() if not top.name.startswith(".")]
    return sorted({path.parent for top in tops for path in top.rglob("*.py")})


@pytest.mark.parametrize("folder", folders(), ids=str)
def test_folder_and_its_files_can_be_taken_in_at_a_glance(folder: Path) -> None:
    place = folder.relative_to(ROOT)
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= (MOST_MODULES_OF_TESTS if place.parts[:1] == ("tests",) else MOST_MODULES)
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    assert not {name for name, number in lines.items() if number > MOST_LINES}


@pytest.mark.parametrize("module", [module for module in ROOMS_HERE if module.name != TABLE_OF_PLUGINS], ids=by_name)
def test_framework_knows_no_plugin(module: Module) -> None:
    plugins = {plugin.package for plugin in PLUGINS}
    assert plugins
    assert not {name.partition(".")[0] for name in imported(module, types=True)} & plugins
    texts = {node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant)}
    named = {plugin for plugin in plugins for text in texts if isinstance(text, str) and plugin in text}
    assert not named


def test_template_is_held_to_the_rules_for_plugins() -> None:
    assert "externalresource_serial" in {plugin.package for plugin in PLUGINS}


@pytest.mark.parametrize("module", PLUGINS, ids=by_name)
def test_plugin_enters_by_the_public_door(module: Module) -> None:
    assert rooms_of_the_framework(imported(module, types=True)) <= OPEN_TO_PLUGINS


@pytest.mark.parametrize("module", PLUGINS, ids=by_name)
def test_plugin_knows_no_other_plugin(module: Module) -> None:
    others = {plugin.package for plugin in PLUGINS} - {module.package}
    assert not {name.partition(".")[0] for name in imported(module, types=True)} & others


@pytest.mark.parametrize("module", OURS, ids=by_name)
def test_library_is_imported_only_in_the_rooms_that_own_it(module: Module) -> None:
    libraries = {name.partition(".")[0] for name in imported(module)} & set(LIBRARIES)
    assert not {
        library
        for library in libraries
        if not f"{module.name}.".startswith(tuple(f"{owner}." for owner in LIBRARIES[library]))
    }


@pytest.mark.parametrize("module", OURS, ids=by_name)
def test_private_names_stay_in_their_room(module: Module) -> None:
    private = {
        name
        for name in imported(module, types=True)
        if name.startswith(FRAMEWORK) and name.rpartition(".")[2].startswith("_")
    }
    assert not private


@pytest.mark.parametrize("module", OURS, ids=by_name)
def test_no_function_is_longer_than_a_page(module: Module) -> None:
    functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {function.name for function in functions if (function.end_lineno or 0) - function.lineno >= 40}
    assert not long


@pytest.mark.parametrize("module", OURS, ids=by_name)
def test_no_room_is_a_drawer_for_everything(module: Module) -> None:
    assert not {"utils", "util", "helpers", "common", "base", "manager", "misc"} & set(module.name.split("."))


def test_engines_are_started_by_no_test_outside_their_folder() -> None:
    others = [path for path in (ROOT / "tests").rglob("*.py") if "engines" not in path.parts and path != Path(__file__)]
    assert len(others) > 100
    assert not [path for path in others if "mark.engines" in path.read_text(encoding="utf-8")]
