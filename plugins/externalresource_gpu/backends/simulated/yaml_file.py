"""The values of a YAML file, checked, so that each mistake is named with its place."""

import re
from collections.abc import Iterable

from externalresource.api import YamlNode
from externalresource.errors import did_you_mean

DIGITS = 18  # of a number


class Entry:
    """One value of a file. What is wrong with it is a DiscoveryError with file, line and what is allowed."""

    def __init__(self, node: YamlNode) -> None:
        self._node = node
        #: The text of a value that is neither a list nor a mapping.
        self.scalar = node.scalar
        self.wrong = node.wrong

    def fields(self, allowed: Iterable[str]) -> "dict[str, Entry]":
        """Return the values of a mapping that has only these keys, each at most once."""
        allowed = list(allowed)
        pairs = self._node.pairs()
        if pairs is None:
            raise self.wrong(f"must be a mapping with {', '.join(allowed)}")
        found: dict[str, Entry] = {}
        for node, value in pairs:
            key = Entry(node)
            name = key.scalar or ""
            if name not in allowed:
                raise key.wrong(f"{key.shown} is none of {', '.join(allowed)}{did_you_mean(name, allowed)}")
            if name in found:
                raise key.wrong(f"{name!r} is given twice")
            found[name] = Entry(value)
        return found

    def items(self, key: str) -> "list[Entry]":
        """Return the items of a list."""
        items = self._node.items()
        if items is None:
            raise self.wrong(f"`{key}:` must be a list of mappings")
        return [Entry(item) for item in items]

    def number(self, key: str, first: int = 0, last: int | None = None) -> int:
        text = self.scalar
        if text and text.isascii() and text.isdigit() and len(text) <= DIGITS:  # noqa: SIM102 - int() is bounded
            if first <= int(text) and (last is None or int(text) <= last):
                return int(text)
        upper = "on" if last is None else f"to {last}"
        raise self.wrong(f"{key} must be a number from {first} {upper}, not {self.shown}")

    def word(self, key: str, allowed: Iterable[str]) -> str:
        """Return the text, which is one of these."""
        allowed = list(allowed)
        if self.scalar not in allowed:
            near = did_you_mean(self.scalar or "", allowed)
            raise self.wrong(f"{key} must be {' or '.join(allowed)}, not {self.shown}{near}")
        return self.scalar

    def text(self, key: str) -> str:
        """Return the text, which is not empty."""
        if not self.scalar:
            raise self.wrong(f"{key} must be a text, not {self.shown}")
        return self.scalar

    def matching(self, key: str, pattern: re.Pattern[str], example: str) -> str:
        """Return the text, which is as the example says."""
        text = self.scalar or ""
        if not pattern.fullmatch(text):
            raise self.wrong(f"{key} must be {example}, not {self.shown}")
        return text

    @property
    def unknown(self) -> bool:
        """Whether it is the word that says so, without quotes."""
        return self._node.is_plain and self.scalar == "unknown"

    @property
    def shown(self) -> str:
        """The value for an error message."""
        return "a list or a mapping" if self.scalar is None else repr(self.scalar)
