"""What lies on this host for Flink: its discovery script, its plugins folder, its Docker image's properties."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

from externalresource.flink.configuration import GPU_FACTORY, Written
from externalresource.flink.doctor import keys
from externalresource.flink.doctor.findings import ERROR, WARNING, Finding, Looked, Note, NotLooked
from externalresource.flink.doctor.keys import OUR_SCRIPT, PATH, evidence, key, script_path, text

_SERVICE = "META-INF/services/org.apache.flink.api.common.externalresource.ExternalResourceDriverFactory"
_SHOWN = 5  # files of a folder
_LONGEST = 4096  # bytes of a first line
_HOW_TO_START = (
    "its first line must name an interpreter that exists, as #!/bin/sh does, and end without a carriage return"
)


def home(folder: str, environment: Mapping[str, str]) -> str | None:
    """Return the folder of the Flink that a configuration's folder belongs to, if that is known."""
    if named := environment.get("FLINK_HOME"):
        return named
    above = os.path.dirname(os.path.abspath(folder))
    return above if all(os.path.isdir(os.path.join(above, name)) for name in ("bin", "lib")) else None


def script(resource: Written, flink: str | None, environment: Mapping[str, str]) -> Iterator[Note]:
    """Look at the discovery script as Flink does, in the environment of a TaskManager."""
    if text(resource.driver_factory) != GPU_FACTORY and PATH not in resource.params:
        return
    path = script_path(resource)
    name = key(resource, f"param.{PATH}")
    seen = evidence(name, resource.params[PATH]) if PATH in resource.params else f"{name} is not set, so it is {path}"
    yield Looked(f"discovery script {path}")
    if len(path.split()) > 1:
        remedy = "move the script, or give it a link, without a blank in its path"
        yield Finding("script", "a discovery script with a blank in its path cannot be run", seen, remedy)
    elif not os.path.isabs(path) and not environment.get("FLINK_HOME"):
        yield _relative(path, name, seen, flink)
    else:
        has_shell = text(resource.driver_factory) == GPU_FACTORY
        yield from _not_runnable(os.path.join(environment.get("FLINK_HOME", ""), path), name, seen, has_shell=has_shell)


def _relative(path: str, name: str, seen: str, flink: str | None) -> Finding:
    here = os.path.abspath(path)
    there = os.path.exists(here)
    own = os.path.join(flink, path) if flink else None
    found = own if own and os.path.exists(own) else None
    return Finding(
        "script-path",
        "the discovery script has a relative path, and FLINK_HOME is not set (Flink's scripts do not set it): "
        "it is looked for in the folder in which the TaskManager is started",
        f"{seen}; {here} {'exists, but only from here' if there else 'does not exist'}",
        f"{name}: {found or f'an absolute path (that of our script: `command -v {OUR_SCRIPT}`)'}"
        + (f", or export FLINK_HOME={flink}" if flink else ", or export FLINK_HOME"),
        severity=WARNING if there else ERROR,
    )


def _not_runnable(path: str, name: str, seen: str, *, has_shell: bool) -> Iterator[Finding]:
    at = seen if path in seen else f"{seen}; that is {path}"
    if not os.path.exists(path):
        remedy = f"{name}: the absolute path of {OUR_SCRIPT} (`command -v {OUR_SCRIPT}`), or of Flink's script"
        yield Finding("script", "there is no discovery script", f"{at}, which does not exist", remedy)
    elif os.path.isdir(path):
        yield Finding("script", "the discovery script is a folder", at, f"{name}: a file in it")
    elif not os.access(path, os.X_OK):
        mode = f"{os.stat(path).st_mode & 0o777:03o}"
        problem = "the discovery script is not executable"
        yield Finding("script", problem, f"{at}, whose mode is {mode}", f"chmod a+x {path}")
    elif (fault := _interpreter_fault(path, has_shell=has_shell)) is not None:
        yield Finding("script", "the discovery script cannot be started", f"{at}: {fault}", _HOW_TO_START)


def _interpreter_fault(path: str, *, has_shell: bool) -> str | None:
    """Return what is wrong with the first line of a script.

    What names no interpreter is run by a shell if Java starts it (`has_shell`), and refused to a TaskManager in Python.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline(_LONGEST).rstrip(b"\n").decode("utf-8", "replace")
    except OSError:  # it may be executable and not readable
        return None
    words = line.removeprefix("#!").split(maxsplit=1) if line.startswith("#!") else []
    if not words:
        is_started = has_shell or line.startswith("\x7fELF")
    else:
        is_started = os.path.exists(words[0]) and not line.endswith("\r")
    return None if is_started else f"its first line is {line[:80]!r}"


def properties(environment: Mapping[str, str]) -> Iterator[Note]:
    """Look at the properties that Flink's Docker image removes the blanks from."""
    if "FLINK_PROPERTIES" not in environment:
        return
    yield Looked("FLINK_PROPERTIES")
    for line in environment["FLINK_PROPERTIES"].splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if ".param." in name and (len(value.split()) > 1 or keys.is_glued(value)):
            yield Finding(
                "lost-blanks",
                "Flink's Docker image removes all blanks from FLINK_PROPERTIES: what should be several words is one, "
                "which no script understands",
                f"FLINK_PROPERTIES in the environment: {name}: {value}",
                keys.WITHOUT_BLANKS,
            )


def plugins(resources: Iterable[Written], flink: str | None, environment: Mapping[str, str]) -> Iterator[Note]:
    """Look at the folder from which Flink loads drivers."""
    folder = environment.get("FLINK_PLUGINS_DIR") or (flink and os.path.join(flink, "plugins"))
    if not folder:
        yield NotLooked("plugins folder", "neither FLINK_PLUGINS_DIR nor FLINK_HOME is set")
        return
    if not os.path.isdir(folder):
        remedy = "set FLINK_PLUGINS_DIR to the folder plugins of your Flink"
        yield Looked(f"plugins folder {folder}")
        yield Finding("plugins", "Flink finds no driver at all", f"{folder} is no folder", remedy)
        return
    try:
        content = {entry.path: sorted(os.listdir(entry.path)) for entry in os.scandir(folder) if entry.is_dir()}
    except OSError as error:
        yield NotLooked(f"plugins folder {folder}", f"{error.filename}: {error.strerror}")
        return
    yield Looked(f"plugins folder {folder}")
    known: list[str] = []
    for plugin, names in sorted(content.items()):
        jars = [os.path.join(plugin, name) for name in names if name.endswith(".jar")]
        if not jars:
            shown = f"only {', '.join(names[:_SHOWN])}" if names else "nothing"
            problem = "Flink does not start with a folder in its plugins folder that has no jar"
            remedy = "move what is in it to another place, and remove the folder"
            yield Finding("plugins", problem, f"{plugin} contains {shown}", remedy)
        known += [factory for jar in jars for factory in _factories(jar)]
    for resource in resources:
        yield from _unknown(resource, known, folder)


def _unknown(resource: Written, known: Sequence[str], folder: str) -> Iterator[Finding]:
    factory = text(resource.driver_factory).strip()
    if not factory or factory in known:
        return
    name = key(resource, "driver-factory.class")
    remedy = f"copy the folder with its jar into {folder}"
    if factory != GPU_FACTORY:
        remedy = f"{name}: {' or '.join(known)}" if known else remedy
    yield Finding(
        "factory",
        f"Flink does not find the driver of {resource.name!r}, and goes on without",
        f"{evidence(name, resource.driver_factory) if resource.driver_factory else name}; "
        f"the jars in {folder} have {', '.join(known) or 'no driver'}",
        remedy,
    )


def _factories(jar: str) -> list[str]:
    try:
        with zipfile.ZipFile(jar) as archive:
            lines = archive.read(_SERVICE).decode("utf-8", "replace").splitlines()
    except (KeyError, OSError, zipfile.BadZipFile):
        return []
    return [name for line in lines if (name := line.partition("#")[0].strip())]
