"""What a discovery script printed, read as devices; a ValueError says what else it printed, and in which line."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from externalresource.api import Device
from externalresource.errors import did_you_mean

_TOKEN = re.compile(r"[\w.:/@+=#~-]*[A-Za-z0-9][\w.:/@+=#~-]*", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# Control characters, ends of lines, halves of characters, and what stands for bytes that are not UTF-8.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd]")
_NO_DEVICES = ("none", "null", "nil", "n/a", "undefined", "unknown", "error")  # what scripts print for want of one
_EMPTY = "[]"
_LONGEST = 255  # characters of a token
_LARGEST = 1 << 19  # bytes: of a child twice as many are kept, and the rest is dropped without a word
_SHOWN = 60  # characters of a line that an error repeats
KEYS = ("index", "uuid", "properties", "environment", "unusable", "parent_uuid", "parent_token")
_TOKENS = ("index", "uuid", "parent_uuid", "parent_token")
_TAKEN = ("index", "uuid", "unusable")  # may not be the names of other properties

_Numbered = tuple[int, str]


def devices(out: str) -> list[Device]:
    """Return the devices in a script's output: a token or a JSON object in each line, or tokens and commas in one.

    Blank lines count for nothing. `[]` means that there are none: to print nothing is what scripts do that failed.
    """
    if len(out.encode()) > _LARGEST:
        raise ValueError(f"printed more than {_LARGEST >> 10} KiB, which no list of devices has")
    lines = [(number, line.strip()) for number, line in enumerate(out.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"printed nothing; where there are no devices it must print {_EMPTY}")
    if [line for _, line in lines] == [_EMPTY]:
        return []
    if lines[0][1].startswith("{"):
        return _different((number, _device(number, _object(number, line))) for number, line in lines)
    return _different((number, Device(_token(number, word, "it"))) for number, word in _words(lines))


def _words(lines: list[_Numbered]) -> list[_Numbered]:
    """Return the lines; of one with commas what stands between these, as Flink reads it."""
    if len(lines) > 1 or "," not in lines[0][1]:
        return lines
    [(number, line)] = lines
    return [(number, word.strip()) for word in line.rstrip(",").split(",")]


def _different(found: Iterable[tuple[int, Device]]) -> list[Device]:
    seen: dict[str, Device] = {}
    for number, device in found:
        if device.index in seen:
            _refuse(number, f"device {device.index!r} again")
        seen[device.index] = device
    return list(seen.values())


def _object(number: int, line: str) -> dict[str, Any]:
    """Return a line's object, in which a number is its text: 1.50 stays 1.50."""
    try:
        found = json.loads(line, parse_int=str, parse_float=str, parse_constant=_no_number, object_pairs_hook=_once)
    except RecursionError:
        _refuse(number, f"{line[:_SHOWN]!r}, which is nested too deeply")
    except ValueError as error:
        why = str(error).partition(": line 1")[0]
        _refuse(number, f"{line[:_SHOWN]!r}, which is no JSON object in one line ({why})")
    if not isinstance(found, dict):
        _refuse(number, f"{line[:_SHOWN]!r} after lines that are JSON objects")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _device(number: int, found: Mapping[str, Any]) -> Device:
    for key in found:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS)
            _refuse(number, f"the key {key[:_SHOWN]!r} (allowed: {', '.join(KEYS)}; others in properties){hint}")
    given = {key: value for key, value in found.items() if value is not None}
    if "index" not in given:
        _refuse(number, "a device without 'index'")
    unusable = given.get("unusable")
    if unusable is not None and not _text(number, unusable, "'unusable'").strip():
        _refuse(number, "an empty 'unusable'; it is a reason, to be left out if there is none")
    return Device(
        **{key: _token(number, given[key], repr(key)) for key in _TOKENS if key in given},
        properties=_texts(number, given.get("properties", {}), "properties"),
        environment=_texts(number, given.get("environment", {}), "environment"),
        unusable=unusable,
    )


def _texts(number: int, value: Any, key: str) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse(number, f"{_shown(value)} as {key!r}, which must be an object of texts")
    for name in value:
        if not name.strip() or _UNSEEN.search(name):
            _refuse(number, f"{_shown(name)} as a name in {key!r}")
    what = f"a value in {key!r}"
    texts = {name: _text(number, text, what) for name, text in value.items() if text is not None}
    for name in texts:
        if key == "properties" and name in _TAKEN:
            _refuse(number, f"{name!r} in 'properties', where it must stand beside them")
        if key == "environment" and not VARIABLE.fullmatch(name):
            _refuse(number, f"{name[:_SHOWN]!r} in 'environment', which is no name of a variable")
    return texts


def _text(number: int, value: Any, what: str) -> str:
    text = str(value).lower() if isinstance(value, bool) else value
    if not isinstance(text, str) or _UNSEEN.search(text):
        _refuse(number, f"{_shown(value)} as {what}, which must be a text, without line ends and the like")
    return text


def _token(number: int, value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST or not _TOKEN.fullmatch(value):
        _refuse(number, f"{_shown(value)}; {what} must name a device by letters, digits and ._:/@+=#~- without blanks")
    if value.lower() in _NO_DEVICES:
        _refuse(number, f"{value!r}, which is no name of a device; where there are no devices it must print {_EMPTY}")
    return value


def _shown(value: Any) -> str:
    return repr(value[:_SHOWN]) if isinstance(value, str) else json.dumps(value)[:_SHOWN]


def _refuse(number: int, what: str) -> NoReturn:
    raise ValueError(f"printed in line {number}: {what}")
