"""Flink's two file formats, read into flat dotted keys; every value remembers where it was written.

`config.yaml` is YAML 1.2, which PyYAML's composer reads if nothing is made of the scalars: `010`, `on` and `1:30` stay
text. Nested and dotted keys mean the same. `<<` merges nothing (it is a key like any other) and aliases stand for what
they name, as in Flink. `flink-conf.yaml` (Flink 1.20 and earlier) is no YAML at all: one `key: value` per line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from externalresource.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from yaml.error import YAMLError
    from yaml.nodes import Node

STANDARD, LEGACY = "config.yaml", "flink-conf.yaml"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})  # YAML 1.2, when written without quotes


@dataclass(frozen=True, slots=True)
class Setting:
    value: object  # from a file: str, None for YAML's null, or a list of these
    where: str = ""  # how a message about it begins: "conf/config.yaml:12: ", "-D ", nothing for a mapping
    yaml: bool = True  # a text such as "[a, b]" may be a list (flink-conf.yaml knows only "a;b")


def read(path: str, complain: Callable[[str], None]) -> list[tuple[str, Setting]]:
    """Return all that the file, or the configuration file in the folder, says: keys in order, with repetitions.

    `complain` gets what Flink only warns of; it may raise. What Flink refuses is a ConfigurationError.
    """
    file = _file_in(path) if os.path.isdir(path) else path
    text = _text(file)
    settings = list(_lines(text, file, complain)) if os.path.basename(file) == LEGACY else _yaml(text, file)
    if not settings:
        complain(f"{file} is empty: it sets no key")
    return settings


def yaml_list(text: str) -> list[object] | None:
    """Return the elements if the text is a YAML list, None if it is anything else."""
    if not text.lstrip().startswith(("[", "- ")):
        return None  # without asking yaml, whose import is slow
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return None
    return [_plain(item, "") for item in node.value] if node.id == "sequence" else None


def _file_in(folder: str) -> str:
    found = [file for name in (LEGACY, STANDARD) if os.path.exists(file := os.path.join(folder, name))]
    if not found:
        raise ConfigurationError(f"{folder} contains neither {STANDARD} nor {LEGACY}")
    if len(found) > 1:
        import logging

        message = "%s is used and %s beside it is not, as in Flink 1.20; Flink 2 does the opposite"
        logging.getLogger("externalresource").warning(message, found[0], STANDARD)
    return found[0]


def _text(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            return stream.read().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{file}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x}") from error


def _lines(text: str, file: str, complain: Callable[[str], None]) -> Iterator[tuple[str, Setting]]:
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        content = line.partition("#")[0].strip()
        key, _, value = (part.strip() for part in content.partition(": "))
        if key and value:
            yield key, Setting(value, f"{file}:{number}: ", yaml=False)
        elif content:
            complain(f"{file}:{number}: not of the form `key: value`")


def _yaml(text: str, file: str) -> list[tuple[str, Setting]]:
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        if root is None:
            return []
        if root.id != "mapping":
            raise ConfigurationError(f"{file}:{root.start_mark.line + 1}: must be a mapping of keys to values")
        return list(_flat(root, "", file))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}:{_problem(error, text)}") from error
    except RecursionError:
        raise ConfigurationError(f"{file}: nested too deeply, or an alias stands within what it names") from None


def _problem(error: YAMLError, text: str) -> str:
    """Return the line and what is wrong there, without the text of that line: it may hold a secret."""
    import yaml

    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.line + 1}: not YAML: {' '.join(filter(None, (error.context, error.problem)))}"
    position = getattr(error, "position", 0)
    return f"{text.count(chr(10), 0, position) + 1}: not YAML: the character {text[position]!r} is not allowed"


def _flat(mapping: Node, prefix: str, file: str) -> Iterator[tuple[str, Setting]]:
    for name, line, node in _items(mapping.value, prefix, file):
        if node.id == "mapping":
            yield from _flat(node, f"{prefix}{name}.", file)
        else:
            yield f"{prefix}{name}", Setting(_plain(node, file), f"{file}:{line}: ")


def _items(pairs: Iterable[tuple[Node, Node]], prefix: str, file: str) -> Iterator[tuple[str, int, Node]]:
    lines: dict[str, int] = {}
    for key, node in pairs:
        line = key.start_mark.line + 1
        if key.id != "scalar":
            raise ConfigurationError(f"{file}:{line}: a key must be a word, not a {key.id}")
        if key.value in lines:
            first = lines[key.value]
            raise ConfigurationError(f"{file}:{line}: {prefix}{key.value} is set twice, first in line {first}")
        lines[key.value] = line
        yield key.value, line, node


def _plain(node: Node, file: str) -> object:
    if node.id == "mapping":  # inside a list: nothing of ours, but Flink refuses what repeats
        return {key: setting.value for key, setting in _flat(node, "", file)}
    if node.id == "sequence":
        return [_plain(item, file) for item in node.value]
    return None if node.style is None and node.value in _NULLS else node.value
