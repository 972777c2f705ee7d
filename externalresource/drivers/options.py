"""A driver's options: text from a configuration in, a dataclass of the driver's own out."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from externalresource.errors import ConfigurationError, did_you_mean

_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Option:
    """One option, as it is shown to people."""

    name: str
    #: `a text`, `a number`, `a whole number`, `true or false`, or the words that are allowed: `a|b`.
    kind: str
    #: None if the option must be given, or is nothing unless it is.
    default: str | None
    required: bool


def parse(options: Mapping[str, str], kinds: Sequence[type[Any]], who: str) -> list[Any]:
    """Return an instance of each of the dataclasses for these options, a field `some_name` for an option `some-name`.

    `field(metadata={"option": "some.name"})` is for an option whose name no field can have.
    Fields are str, int, float, bool (`true`, `false`), Literal of texts, or one of these or None; a tuple of texts
    takes a comma list. Raises ConfigurationError, which names `who`, the option and what is allowed, for one that is
    unknown, missing or of another kind, and for a ValueError of the dataclass itself.
    """
    known = [option for kind in kinds for option in describe(kind)]
    names = [option.name for option in known]
    for name in options:
        if name not in names:
            allowed = ", ".join(names) or "none"
            raise ConfigurationError(f"{who} has no option {name!r} (allowed: {allowed}){did_you_mean(name, names)}")
    for option in known:
        if option.required and option.name not in options:
            raise ConfigurationError(f"{who} needs the option {option.name!r}: {option.kind}")
    return [_made(kind, options, who) for kind in kinds]


def describe(kind: type[Any]) -> list[Option]:
    """Return the options of a dataclass, in its order. TypeError for a field of a type that no option can have."""
    hints = typing.get_type_hints(kind)
    return [_option(field, hints[field.name]) for field in dataclasses.fields(kind) if field.init]


def _made(kind: type[Any], options: Mapping[str, str], who: str) -> Any:
    hints = typing.get_type_hints(kind)
    values = {
        field.name: _value(who, _name(field), hints[field.name], options[_name(field)])
        for field in dataclasses.fields(kind)
        if field.init and _name(field) in options
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigurationError(f"{who}: {error}") from None


def _option(field: "dataclasses.Field[Any]", hint: Any) -> Option:
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    shown = None if required or default is None else _shown(default)
    return Option(_name(field), _kind(hint), shown, required)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _name(field: "dataclasses.Field[Any]") -> str:
    name: str = field.metadata.get("option", field.name.replace("_", "-"))
    return name


def _plain(hint: Any) -> Any:
    """Return the type without its `| None`."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        some = [part for part in typing.get_args(hint) if part is not type(None)]
        if len(some) == 1:
            return some[0]
    return hint


def _kind(hint: Any) -> str:
    plain = _plain(hint)
    if typing.get_origin(plain) is Literal:
        return "|".join(map(str, typing.get_args(plain)))
    if plain == tuple[str, ...]:
        return "texts with commas between"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if plain not in names:
        raise TypeError(f"no option can be of type {hint}")
    return names[plain]


def _value(who: str, name: str, hint: Any, text: str) -> Any:
    plain = _plain(hint)
    for value in _readings(plain, text):
        return value
    raise ConfigurationError(
        f"{who}: option {name!r} must be {_kind(hint).replace('|', ' or ')}, not {text!r}"
        + (did_you_mean(text, typing.get_args(plain)) if typing.get_origin(plain) is Literal else "")
    )


def _readings(plain: Any, text: str) -> Iterator[Any]:
    """Yield what the text means as such a type: nothing, if it does not."""
    if plain is str or text in typing.get_args(plain):
        yield text
    elif plain is bool and text in _TRUTH:
        yield _TRUTH[text]
    elif plain == tuple[str, ...]:
        yield tuple(part.strip() for part in text.split(",") if part.strip())
    elif plain in (int, float):
        try:
            number = plain(text)
        except ValueError:
            return
        if number == number and abs(number) != float("inf"):  # noqa: PLR0124 - NaN is not itself
            yield number
