"""What the lines of a coordination file say, and those that say nothing."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from externalresource.coordination import Claim, ledger
from externalresource.errors import CoordinationError
from tests.support.claiming import error_of
from tests.support.devices import claim_of


def bytes_of(path: str) -> bytes:
    return Path(path).read_bytes()


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
details = st.fixed_dictionaries(
    {},
    optional={
        "uuid": st.text(),
        "parent_uuid": st.text(),
        "parent_token": st.text(),
        "class": st.text(),
        "since": st.text(),
        "program": st.text(),
        "boot_id": st.text(),
        "start_time": st.integers(0, 2**63),
        "pid_namespace": st.integers(0, 2**32),
        "time_namespace": st.integers(0, 2**32),
        "uid": st.integers(0, 2**32),
        "a later field": st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    },
)
tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
claims = st.lists(st.builds(claim_of, tokens, st.integers(1, 999_999_999), details))


@given(claims)
@example(
    [
        claim_of("a b", 1),
        claim_of("50%", 2),
        claim_of("%20", 3),
        claim_of("\N{GREEK SMALL LETTER MU}\n\r\t\x00\ufeff", 4),
    ]
)
@example([claim_of("#!{}", 1, {"uuid": "\u2028\x85\n"})])
def test_what_is_written_is_read(written: list[Claim]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger.write(f"{folder}/ledger", written)
        assert ledger.read(f"{folder}/ledger") == written


@given(claims)
def test_each_claim_is_one_line_of_plain_words(written: list[Claim]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger.write(f"{folder}/ledger", written)
        lines = bytes_of(f"{folder}/ledger").splitlines()
    assert len(lines) == len(written)
    for line, claim in zip(lines, written, strict=True):
        token, pid, *_ = line.split(b" ")
        assert re.fullmatch(rb"[!-~]+", token)
        assert int(pid) == claim.owner.process.pid


@pytest.mark.parametrize(
    ("claim", "line"),
    [
        (claim_of("0", 7), b"0 7\n"),
        (claim_of("0", 7, {"uuid": "GPU-a", "start_time": 5}), b'0 7 {"uuid":"GPU-a","start_time":5}\n'),
        (claim_of("MIG-1/2:3", 7), b"MIG-1/2:3 7\n"),
        (claim_of("a b%", 7), b"a%20b%25 7\n"),
        (claim_of("\N{GREEK SMALL LETTER MU}", 7), b"%CE%BC 7\n"),
    ],
)
def test_line_looks_as_documented(claim: Claim, line: bytes, path: str) -> None:
    ledger.write(path, [claim])
    assert bytes_of(path) == line


def test_lines_of_flinks_own_script_are_read(path: str) -> None:
    Path(path).write_text("0 4711\n11 4712\n", encoding="ascii")
    assert ledger.read(path) == [claim_of("0", 4711), claim_of("11", 4712)]


def test_no_file_claims_nothing(path: str) -> None:
    assert ledger.read(path) == []


@pytest.mark.parametrize("content", ["", "\n", "\n\n  \n\t\n"])
def test_blank_lines_claim_nothing(content: str, path: str) -> None:
    Path(path).write_text(content, encoding="ascii")
    assert ledger.read(path) == []


def test_last_line_needs_no_end(path: str) -> None:
    Path(path).write_text("0 4711\n1 4712", encoding="ascii")
    assert ledger.read(path) == [claim_of("0", 4711), claim_of("1", 4712)]


def test_fields_that_are_not_known_are_kept(path: str) -> None:
    line = '0 7 {"uuid":"GPU-a","shares":[{"pid":9}],"later":{"x":null}}\n'
    Path(path).write_text(line, encoding="ascii")
    ledger.write(path, ledger.append(ledger.read(path), [claim_of("1", 8, {"uuid": "GPU-b"})]))
    assert Path(path).read_text(encoding="ascii").startswith(line)


UNREADABLE = {
    "one column": "0",
    "no pid": "0 {}",
    "pid of letters": "0 x",
    "pid 0": "0 0",
    "negative pid": "0 -1",
    "pid with a leading zero": "0 07",
    "pid in other digits": "0 \N{ARABIC-INDIC DIGIT FIVE}",
    "pid that goes on in other digits": "0 1\N{ARABIC-INDIC DIGIT FIVE}",
    "endless pid": "0 1234567890",
    "no device": " 7",
    "two blanks": "0  7",
    "tab": "0\t7",
    "blank at the end": "0 7 ",
    "carriage return": "0 7\r",
    "carriage return after JSON": '0 7 {"uuid":"GPU-a"}\r',
    "third word": "0 7 more",
    "JSON cut short": '0 7 {"uuid":"GPU-',
    "JSON cut short behind a brace": '0 7 {"uuid":{}',
    "two objects": "0 7 {} {}",
    "list": "0 7 []",
    "single quotes": "0 7 {'uuid': 'GPU-a'}",
    "JSON nested too deeply": '0 7 {"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "number too long": '0 7 {"a":' + "1" * 5000 + "}",
    "byte order mark": "\ufeff0 7",
    "blank that nobody sees": "0\u200b 7",
    "no-break space": "0\u00a07",
    "NUL": "0 7\x00",
    "only NUL": "\x00" * 40,
    "merge conflict": "<<<<<<< HEAD",
    "start of a command that is no number": '0 7 {"left_by":{"start_time":"x"}}',
}


@pytest.mark.parametrize("line", UNREADABLE.values(), ids=UNREADABLE)
def test_line_that_cannot_be_read_is_an_error_with_file_line_and_remedy(line: str, path: str) -> None:
    Path(path).write_text(f"0 5\n\n{line}\n1 6\n", encoding="utf-8", newline="")
    message = error_of(CoordinationError, lambda: ledger.read(path))
    assert message.startswith(f"{path}, line 3: cannot read ")
    assert "nothing is granted" in message
    assert "mend the line, or empty the file once no owner lives" in message
    assert len(message) < 500


OTHER_TYPES: Sequence[Any] = (None, 1.5, [], {})
OF_OTHER_TYPES = [
    (key, value) for key, kind in ledger._TYPES.items() for value in OTHER_TYPES if type(value) is not kind
]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *OF_OTHER_TYPES,
        *[("uuid", 5), ("start_time", "5"), ("class", 5), ("pid_namespace", "5"), ("uuid", True), ("start_time", True)],
    ],
)
def test_field_of_a_wrong_type_is_an_error(key: str, value: Any, path: str) -> None:
    Path(path).write_text(f"0 7 {json.dumps({key: value})}\n", encoding="ascii")
    assert "line 1: cannot read" in error_of(CoordinationError, lambda: ledger.read(path))


@pytest.mark.parametrize(
    ("content", "line"), [(b"\xff", 1), (b"\n\xff\n", 2), (b"0 5\n\xff\n", 2), (b"0 5\n1 6\n\xff\xfe\x00\n", 3)]
)
def test_bytes_that_are_no_utf8_are_an_error_with_their_line(content: bytes, line: int, path: str) -> None:
    Path(path).write_bytes(content)
    message = error_of(CoordinationError, lambda: ledger.read(path))
    assert message.startswith(f"{path}, line {line}: cannot read bytes that are not UTF-8")


@pytest.mark.parametrize("line", [1, 2, 3])
def test_line_that_cannot_be_read_is_named_by_its_number_and_its_first_80_characters(line: int, path: str) -> None:
    Path(path).write_text("0 5\n" * (line - 1) + "x" * 100, encoding="ascii")
    message = error_of(CoordinationError, lambda: ledger.read(path))
    assert message.startswith(f"{path}, line {line}: cannot read '{'x' * 80}', so nothing is granted")


def test_claim_knows_its_device_and_that_of_which_it_is_a_slice() -> None:
    claim = claim_of("MIG-x", 7, {"uuid": "MIG-x", "parent_uuid": "GPU-a", "parent_token": "0"})
    assert (claim.uuid, claim.parent_uuid, claim.parent_token) == ("MIG-x", "GPU-a", "0")
    whole = claim_of("0", 7)
    assert (whole.uuid, whole.parent_uuid, whole.parent_token) == (None, None, None)
