"""Records for the rooms that each start imports: frozen, slotted, compared by value.

`dataclasses` does the same and is used everywhere else. Its import takes 12 ms, more than half of what the discovery
script has for all its work, as it brings `inspect`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_kinds: bool):  # noqa: ANN201 - what type checkers see stands above
        return lambda decorator: decorator


@dataclass_transform(frozen_default=True)
def record(kind: "type[T]") -> "type[T]":
    """Make a record of a class with annotated fields, which may have defaults; what the class defines itself stays."""
    fields = tuple(kind.__annotations__)
    body = {name: value for name, value in vars(kind).items() if name not in {*fields, "__dict__", "__weakref__"}}
    own = {
        "__slots__": fields,
        "__match_args__": fields,
        "_defaults": {f: vars(kind)[f] for f in fields if f in vars(kind)},
    }
    made: Any = type(kind.__name__, kind.__bases__, {**_METHODS, **body, **own})
    return made  # type: ignore[no-any-return] # mypy knows it as what it was made of


def replace(original: "T", **changes: object) -> "T":
    """Return a record that differs in these fields."""
    given = {field: getattr(original, field) for field in original.__slots__}  # type: ignore[attr-defined]
    return type(original)(**given | changes)


def _init(self: "Any", *values: object, **named: object) -> None:
    fields = self.__slots__
    if len(values) > len(fields):
        raise TypeError(f"{type(self).__name__} takes {len(fields)} values, not {len(values)}")
    for field, value in zip(fields, values, strict=False):
        object.__setattr__(self, field, value)
    for field in fields[len(values) :]:
        if field not in named and field not in self._defaults:
            raise TypeError(f"{type(self).__name__} needs {field}")
        object.__setattr__(self, field, named.pop(field) if field in named else self._defaults[field])
    if named:
        raise TypeError(f"{type(self).__name__} takes no {', '.join(named)}, or takes it once")


def _values(self: "Any") -> tuple[object, ...]:
    return tuple([getattr(self, field) for field in self.__slots__])


def _equal(self: "Any", other: object) -> bool:
    return type(other) is type(self) and _values(self) == _values(other)


def _hash(self: "Any") -> int:
    return hash(_values(self))


def _repr(self: "Any") -> str:
    shown = ", ".join(f"{field}={getattr(self, field)!r}" for field in self.__slots__)
    return f"{type(self).__name__}({shown})"


def _frozen(self: "Any", field: str, _value: object = None) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: {field} stays as it is")


def _reduce(self: "Any") -> tuple[object, tuple[object, ...]]:
    return type(self), _values(self)


_METHODS = {
    "__init__": _init,
    "__eq__": _equal,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _frozen,
    "__delattr__": _frozen,
    "__reduce__": _reduce,
}
