"""Flink's two file formats, read into flat dotted keys; every value remembers where it was written.

`config.yaml` is YAML 1.2, which PyYAML's composer reads if nothing is made of the scalars: `010`, `on` and `1:30` stay
text. Nested and dotted keys mean the same. `<<` merges nothing (it is a key like any other) and aliases stand for what
they name, as in Flink. `flink-conf.yaml` (Flink 1.20 and earlier) is no YAML at all: one `key: value` per line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from externalresource.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from yaml.nodes import MappingNode, Node

_STANDARD, _LEGACY = "config.yaml", "flink-conf.yaml"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})  # YAML 1.2, when written without quotes

# One element of a `;` list: quoted (where "" stands for a quote), or bare up to the next semicolon.
_ELEMENT = re.compile(r"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|([^\s;"'][^;]*)?)\s*(;|\Z)""")


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
    settings = list(_lines(text, file, complain)) if os.path.basename(file) == _LEGACY else _yaml(text, file)
    if not settings:
        complain(f"{file} is empty: it sets no key")
    return settings


def elements(text: str, *, yaml: bool) -> list[object]:
    """Return the elements of a list that is written as a text: `a;b`, or with `yaml` also `[a, b]`."""
    listed = _yaml_list(text) if yaml else None
    return list(_split(text)) if listed is None else listed


def _yaml_list(text: str) -> list[object] | None:
    if not text.lstrip().startswith(("[", "- ")):
        return None  # without asking yaml, whose import is slow
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return [_plain(item, "") for item in node.value] if isinstance(node, yaml.SequenceNode) else None
    except (yaml.YAMLError, ConfigurationError, RecursionError):
        return None


def _split(text: str) -> list[str]:
    """Return the elements of a `;` list. As in Flink, there need be none before the first `;` or after the last."""
    found: list[str | None] = []
    position, separator = 0, ";"
    while separator:
        match = _ELEMENT.match(text, position)
        if not match:
            raise ValueError(f"must have quotes around a whole element or not at all, not {text!r}")
        double, single, bare, separator = match.groups()
        found.append(_unquoted(double, single, bare))
        position = match.end()
    first, last = int(found[0] is None), len(found) - int(found[-1] is None)
    return [element or "" for element in found[first:last]]


def _unquoted(double: str | None, single: str | None, bare: str | None) -> str | None:
    if double is not None:
        return double.replace('""', '"')
    if single is not None:
        return single.replace("''", "'")
    return bare and bare.rstrip()


def files_in(folder: str) -> list[str]:
    """Return the configuration files of a folder, first the one that is used."""
    return [file for name in (_LEGACY, _STANDARD) if os.path.exists(file := os.path.join(folder, name))]


def _file_in(folder: str) -> str:
    found = files_in(folder)
    if not found:
        raise ConfigurationError(f"{folder} contains neither {_STANDARD} nor {_LEGACY}")
    if len(found) > 1:
        import logging

        message = "%s is used and %s beside it is not, as in Flink 1.20; Flink 2 does the opposite"
        logging.getLogger("externalresource").warning(message, found[0], _STANDARD)
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
        if isinstance(root, yaml.MappingNode):
            return list(_flat(root, "", file))
    except yaml.MarkedYAMLError as error:  # of whose text only this is told: the line itself may hold a secret
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigurationError(f"{file}:{line}: not YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(f"{file}:{line}: not YAML: {text[error.position]!r} is not allowed") from error
    except RecursionError:
        raise ConfigurationError(f"{file}: nested too deeply, or an alias stands within what it names") from None
    if root is None:
        return []
    raise ConfigurationError(f"{file}:{root.start_mark.line + 1}: must be a mapping of keys to values")


def _flat(mapping: MappingNode, prefix: str, file: str) -> Iterator[tuple[str, Setting]]:
    import yaml

    lines: dict[str, int] = {}
    for name, node in mapping.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise ConfigurationError(f"{file}:{line}: a key must be a word, not a list or a mapping")
        key = f"{prefix}{name.value}"
        if key in lines:
            raise ConfigurationError(f"{file}:{line}: {key} is set twice, first in line {lines[key]}")
        lines[key] = line
        if isinstance(node, yaml.MappingNode):
            yield from _flat(node, f"{key}.", file)
        else:
            yield key, Setting(_plain(node, file), f"{file}:{line}: ")


def _plain(node: Node, file: str) -> object:
    import yaml

    if isinstance(node, yaml.MappingNode):  # inside a list: nothing of ours, but Flink refuses what repeats
        return {key: setting.value for key, setting in _flat(node, "", file)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, file) for item in node.value]
    null = isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS
    return None if null else node.value
