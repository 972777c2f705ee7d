"""Flink's two file formats, read into flat dotted keys; every value remembers where it was written.

`config.yaml` is YAML 1.2, where nested and dotted keys mean the same. `flink-conf.yaml` (Flink 1.20 and earlier) is no
YAML at all: one `key: value` per line.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from externalresource.errors import ConfigurationError, warn
from externalresource.yaml_nodes import read_text, read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from externalresource.yaml_nodes import YamlNode

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
    text = read_text(file, ConfigurationError)
    if os.path.basename(file) == _LEGACY:
        settings = list(_lines(text, file, complain))
    else:
        settings = read_yaml(text, file, ConfigurationError, lambda root: list(_flat(root))) or []
    if not settings:
        complain(f"{file} is empty: it sets no key")
    return settings


def ignore(_message: str) -> None:
    """Pass over what Flink only warns of."""


def elements(text: str, *, yaml: bool) -> list[object]:
    """Return the elements of a list that is written as a text: `a;b`, or with `yaml` also `[a, b]`."""
    listed: list[object] | None = None
    if yaml and text.lstrip().startswith(("[", "- ")):  # else without asking yaml, whose import is slow
        with suppress(ConfigurationError):
            listed = read_yaml(text, "", ConfigurationError, lambda node: [_plain(item) for item in node.items() or []])
    return list(_split(text)) if listed is None else listed


def _split(text: str) -> list[str]:
    """Return the elements of a `;` list. As in Flink, there need be none before the first `;` or after the last."""
    found: list[str | None] = []
    position, separator = 0, ";"
    while separator:
        match = _ELEMENT.match(text, position)
        if not match:
            raise ValueError(f"must have quotes around a whole element or not at all, not {text!r}")
        double, single, bare, separator = match.groups()
        if double is not None:
            found.append(double.replace('""', '"'))
        elif single is not None:
            found.append(single.replace("''", "'"))
        else:
            found.append(bare and bare.rstrip())
        position = match.end()
    first, last = int(found[0] is None), len(found) - int(found[-1] is None)
    return [element or "" for element in found[first:last]]


def files_in(folder: str) -> list[str]:
    """Return the configuration files of a folder, first the one that is used."""
    return [file for name in (_LEGACY, _STANDARD) if os.path.exists(file := os.path.join(folder, name))]


def _file_in(folder: str) -> str:
    found = files_in(folder)
    if not found:
        raise ConfigurationError(f"{folder} contains neither {_STANDARD} nor {_LEGACY}")
    if len(found) > 1:
        warn(f"{found[0]} is used and {_STANDARD} beside it is not, as in Flink 1.20; Flink 2 does the opposite")
    return found[0]


def _lines(text: str, file: str, complain: Callable[[str], None]) -> Iterator[tuple[str, Setting]]:
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        content = line.partition("#")[0].strip()
        key, _, value = (part.strip() for part in content.partition(": "))
        if key and value:
            yield key, Setting(value, f"{file}:{number}: ", yaml=False)
        elif content:
            complain(f"{file}:{number}: not of the form `key: value`")


def _flat(mapping: YamlNode, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    pairs = mapping.pairs()
    if pairs is None:
        raise mapping.wrong("must be a mapping of keys to values")
    lines: dict[str, int] = {}
    for name, node in pairs:
        if name.scalar is None:
            raise name.wrong("a key must be a word, not a list or a mapping")
        key = f"{prefix}{name.scalar}"
        if key in lines:
            raise name.wrong(f"{key} is set twice, first in line {lines[key]}")
        lines[key] = name.line
        if node.pairs() is not None:
            yield from _flat(node, f"{key}.")
        else:
            yield key, Setting(_plain(node), f"{name.where}: ")


def _plain(node: YamlNode) -> object:
    if node.pairs() is not None:  # inside a list: nothing of ours, but Flink refuses what repeats
        return {key: setting.value for key, setting in _flat(node)}
    items = node.items()
    if items is not None:
        return [_plain(item) for item in items]
    return None if node.is_plain and node.scalar in _NULLS else node.scalar
