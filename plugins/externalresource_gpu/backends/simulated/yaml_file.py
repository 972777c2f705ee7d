"""A YAML file whose values know their lines, so that each mistake is named with its place."""

import yaml

from externalresource.errors import DiscoveryError, did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterable

DIGITS = 18  # of a number


class Entry:
    """One value of a file. What is wrong with it is a DiscoveryError with file, line and what is allowed."""

    def __init__(self, path: str, node: yaml.Node) -> None:
        self._path = path
        self._node = node

    def fields(self, allowed: "Iterable[str]") -> "dict[str, Entry]":
        """Return the values of a mapping that has only these keys, each at most once."""
        allowed = list(allowed)
        if not isinstance(self._node, yaml.MappingNode):
            raise self.wrong(f"must be a mapping with {', '.join(allowed)}")
        found: dict[str, Entry] = {}
        for node, value in self._node.value:
            key = Entry(self._path, node)
            name = key.scalar or ""
            if name not in allowed:
                raise key.wrong(f"{key.shown} is none of {', '.join(allowed)}{did_you_mean(name, allowed)}")
            if name in found:
                raise key.wrong(f"{name!r} is given twice")
            found[name] = Entry(self._path, value)
        return found

    def items(self, key: str) -> "list[Entry]":
        """Return the items of a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            raise self.wrong(f"`{key}:` must be a list of mappings")
        return [Entry(self._path, node) for node in self._node.value]

    @property
    def scalar(self) -> str | None:
        """The text of a value that is neither a list nor a mapping."""
        return str(self._node.value) if isinstance(self._node, yaml.ScalarNode) else None

    def number(self, key: str, first: int = 0, last: int | None = None) -> int:
        text = self.scalar
        if text and text.isascii() and text.isdigit() and len(text) <= DIGITS:  # noqa: SIM102 - int() is bounded
            if first <= int(text) and (last is None or int(text) <= last):
                return int(text)
        upper = "on" if last is None else f"to {last}"
        raise self.wrong(f"{key} must be a number from {first} {upper}, not {self.shown}")

    def word(self, key: str, allowed: "Iterable[str]") -> str:
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

    def matching(self, key: str, pattern: "re.Pattern[str]", example: str) -> str:
        """Return the text, which is as the example says."""
        text = self.scalar or ""
        if not pattern.fullmatch(text):
            raise self.wrong(f"{key} must be {example}, not {self.shown}")
        return text

    @property
    def unknown(self) -> bool:
        """Whether it is the word that says so, without quotes."""
        return isinstance(self._node, yaml.ScalarNode) and self._node.value == "unknown" and not self._node.style

    @property
    def shown(self) -> str:
        """The value for an error message."""
        return "a list or a mapping" if self.scalar is None else repr(self.scalar)

    def wrong(self, reason: str) -> DiscoveryError:
        return DiscoveryError(f"{self._path}:{self._node.start_mark.line + 1}: {reason}")


def load(path: str) -> Entry | None:
    """Return what the file holds; None if it is empty. DiscoveryError if it cannot be read, or is no YAML."""
    try:
        with open(path, encoding="utf-8") as file:
            # Nodes, not values: they know their lines, and YAML takes the bus id 00000000:10:00.0 for a number.
            node = yaml.compose(file, Loader=yaml.BaseLoader)
    except OSError as error:
        raise DiscoveryError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:  # the first is of `%YAML 999...9`, too
        raise DiscoveryError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise DiscoveryError(f"{path} is no YAML that describes a machine: it is nested too deeply") from None
    return None if node is None else Entry(path, node)
