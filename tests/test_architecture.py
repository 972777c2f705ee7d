"""The rooms of the house, and who may enter which. The table is that of the design: change it there, and here."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORK = "externalresource"

# Room: what it may import of ours, and nothing that stands below it.
ROOMS = {
    "errors": "",
    "child": "",
    "script": "errors child",
    "owner": "errors",
    "ledger": "errors",
    "lock": "errors ledger",
    "witness": "errors owner ledger",
    "holders": "owner ledger",
    "matching": "errors ledger",
    "waiting": "errors ledger witness matching",
    "request": "errors owner ledger holders matching waiting",
    "coordination": "errors owner ledger lock witness holders matching waiting request",
    "grants": "coordination matching",
    "options": "errors",
    "hookspecs": "",
    "drivers": "errors coordination grants hookspecs options",
    "api": "child script drivers grants hookspecs options",
    "flink_files": "errors",
    "configuration": "errors flink_files",
    "containment": "",
    "plugins": "errors hookspecs containment",
    "installed": "errors child hookspecs options plugins",
    "context": "all above",
    "pools": "errors context",
    "pytest_plugin": "errors context",
    "testing_process": "errors hookspecs plugins",
    "testing": "errors hookspecs plugins testing_process",
    "forwarding": "errors configuration",
    "task_manager": "",
    "flink_worker": "",
    "flink_shares": "errors coordination grants task_manager",
    "flink": "all above",
    "flink_python": "errors flink flink_shares flink_worker task_manager",
    "demo": "",
    "demo.digits": "errors",
    "demo.text": "coordination",
    "demo.gpus": "errors coordination plugins demo.text",
    "demo.task_manager": "errors context demo.digits",
    "demo.host": "errors demo.gpus",
    "demo.stand_ins": "errors coordination demo.digits demo.text demo.gpus demo.host",
    "demo.flink_job": "flink demo.digits",
    "demo.flink_process": "",
    "demo.flink_host": "errors flink_files demo.flink_process",
    "demo.on_flink": "errors demo.digits demo.text demo.gpus demo.flink_host",
    "holdings": "errors coordination",
    "inventory": "hookspecs coordination holdings",
    "doctor": "",
    "doctor.findings": "",
    "doctor.keys": "errors flink_files configuration doctor.findings",
    "doctor.installation": "configuration doctor.findings doctor.keys",
    "doctor.host": (
        "errors hookspecs coordination plugins configuration holdings inventory doctor.findings doctor.keys"
    ),
    "doctor.cluster": "errors coordination task_manager doctor.findings doctor.keys",
    "doctor.examination": (
        "errors flink_files configuration doctor.findings doctor.keys doctor.installation doctor.host doctor.cluster"
    ),
    "tables": "",
    "cli": "all above",
    "__init__": "",  # its names are resolved when they are first used
}
#: Rooms of one purpose that stand in a folder of their own, in which nothing else is.
FOLDERS = {"demo", "doctor"}
OPEN_TO_PLUGINS = {"api", "coordination", "errors"}

# Library: the rooms that own it. Nobody else imports it, so that it can be replaced, and costs only those who need it.
LIBRARIES = {
    "click": {"externalresource.cli"},
    "filelock": {"externalresource.lock"},
    "pluggy": {"externalresource.hookspecs", "externalresource.plugins"},
    "pytest": {"externalresource.pytest_plugin", "externalresource.testing"},
    "pyflink": {"externalresource.demo.flink_host", "externalresource.demo.flink_job"},
    "pynvml": {"externalresource_gpu.backends.nvml", "externalresource_gpu.backends.nvml_child"},
    "yaml": {
        "externalresource.configuration",
        "externalresource.flink_files",
        "externalresource.forwarding",
        "externalresource_gpu.backends.simulated",
        "externalresource_gpu.backends.simulated_file",
    },
}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def room(self) -> str:
        return self.name.partition(".")[2] or "__init__"


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
    paths = [name.split(".")[1:] for name in names if name.startswith(f"{FRAMEWORK}.")]
    found = {".".join(path[:2]) if path[0] in FOLDERS else path[0] for path in paths}
    return {public.get(name, name) for name in found} - FOLDERS


def allowed(room: str) -> set[str]:
    above = list(ROOMS)[: list(ROOMS).index(room)]
    return set(above) if ROOMS[room] == "all above" else set(ROOMS[room].split())


def by_name(module: Module) -> str:
    return module.name


@pytest.mark.parametrize("module", ROOMS_HERE, ids=by_name)
def test_room_stands_in_the_table(module: Module) -> None:
    assert module.room in ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_table_lets_nobody_import_from_below(room: str) -> None:
    assert allowed(room) <= set(list(ROOMS)[: list(ROOMS).index(room)])


@pytest.mark.parametrize("module", ROOMS_HERE, ids=by_name)
def test_room_imports_only_what_the_table_allows(module: Module) -> None:
    assert rooms_of_the_framework(imported(module)) <= allowed(module.room)


@pytest.mark.parametrize("module", [room for room in ROOMS_HERE if room.room != "__init__"], ids=by_name)
def test_types_come_from_above_too(module: Module) -> None:
    above = set(list(ROOMS)[: list(ROOMS).index(module.room)])
    assert rooms_of_the_framework(imported(module, types=True)) <= above


@pytest.mark.parametrize("module", ROOMS_HERE, ids=by_name)
def test_framework_knows_no_plugin(module: Module) -> None:
    plugins = {plugin.package for plugin in PLUGINS}
    assert plugins
    texts = {node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant)}
    named = {plugin for plugin in plugins for text in texts if isinstance(text, str) and plugin in text}
    assert not named
    assert not {name.partition(".")[0] for name in imported(module, types=True)} & plugins


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
    assert not {library for library in libraries if module.name not in LIBRARIES[library]}


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
