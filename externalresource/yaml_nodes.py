"""YAML 1.2 whose values know where they stand, so that what is wrong with one is said in one line, with its place.

PyYAML's composer makes nothing of the scalars: `010`, `on`, `1:30` and a PCI bus id stay text. Aliases stand for what
they name, and `<<` is a key like any other.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")


class YamlNode:
    """A scalar, a list or a mapping."""

    def __init__(self, node: "Any", file: str, error: type[Exception]) -> None:
        self._node, self._file, self._error = node, file, error
        self.line: int = node.start_mark.line + 1
        self.where = f"{file}:{self.line}"
        #: The text of what is neither a list nor a mapping.
        self.scalar: str | None = node.value if node.id == "scalar" else None
        #: Whether it is such a text, and without quotes.
        self.is_plain = self.scalar is not None and node.style is None

    def items(self) -> "list[YamlNode] | None":
        """Return what stands in a list; None if it is none."""
        return [self._of(node) for node in self._node.value] if self._node.id == "sequence" else None

    def pairs(self) -> "list[tuple[YamlNode, YamlNode]] | None":
        """Return the keys and values of a mapping, also those that repeat; None if it is none."""
        is_mapping = self._node.id == "mapping"
        return [(self._of(key), self._of(value)) for key, value in self._node.value] if is_mapping else None

    def wrong(self, reason: str) -> Exception:
        """Return the error that says what is wrong with it."""
        return self._error(f"{self.where}: {reason}")

    def _of(self, node: "Any") -> "YamlNode":
        return YamlNode(node, self._file, self._error)


def read_text(file: str, error: type[Exception]) -> str:
    """Return what a file holds. The error says why it cannot be read, or in which line it is not UTF-8."""
    try:
        with open(file, "rb") as stream:
            return stream.read().decode("utf-8-sig")
    except OSError as failure:
        raise error(f"{file} cannot be read: {failure.strerror}") from failure
    except UnicodeDecodeError as failure:
        line = failure.object.count(b"\n", 0, failure.start) + 1
        raise error(f"{file}:{line}: not UTF-8: byte 0x{failure.object[failure.start]:02x}") from failure


def read_yaml(text: str, file: str, error: type[Exception], use: "Callable[[YamlNode], T]") -> "T | None":
    """Return what `use` makes of the document; None if there is none. The error says what is not YAML in it."""
    import yaml  # here, as it takes 30 ms, and most have none to read

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if root is None else use(YamlNode(root, file, error))
    except yaml.MarkedYAMLError as failure:  # of whose text only this is told: the line itself may hold a secret
        line = failure.problem_mark.line + 1 if failure.problem_mark else 1
        problem = ", ".join(filter(None, (failure.context, failure.problem)))
        raise error(f"{file}:{line}: not YAML: {problem}") from failure
    except yaml.reader.ReaderError as failure:
        line = text.count("\n", 0, failure.position) + 1
        raise error(f"{file}:{line}: not YAML: {text[failure.position]!r} is not allowed") from failure
    except ValueError:  # of int(), for `%YAML 999...9`
        raise error(f"{file}: not YAML: its version has too many digits") from None
    except RecursionError:
        raise error(f"{file}: nested too deeply, or an alias stands within what it names") from None
