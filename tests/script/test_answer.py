"""What a discovery script printed, as devices, and what is said of anything else that it printed."""

import json

import pytest
from hypothesis import example, given, strategies as st

from externalresource.api import Device
from externalresource_script.answer import KEYS, devices

ALLOWED = "must name a device by letters, digits and ._:/@+=#~- without blanks"


def refusal(out: str) -> str:
    with pytest.raises(ValueError, match="printed") as caught:
        devices(out)
    return str(caught.value)


def indices(out: str) -> list[str]:
    return [device.index for device in devices(out)]


@pytest.mark.parametrize(
    ("out", "found"),
    [
        ("0\n", ["0"]),
        ("0", ["0"]),
        ("0\n1\n10\n", ["0", "1", "10"]),
        ("\n  b \n\na\r\n\n", ["b", "a"]),
        ("0,1,2\n", ["0", "1", "2"]),
        (" 0 , 1 \n", ["0", "1"]),
        ("0,\n", ["0"]),
        ("/dev/fpga0\n0000:3b:00.0\neui.0025-38#2=~@+_\n", ["/dev/fpga0", "0000:3b:00.0", "eui.0025-38#2=~@+_"]),
        ('{"index": "a"}\n{"index": 1}\n', ["a", "1"]),
        ("x" * 255, ["x" * 255]),
        ("[]\n", []),
        ("\n[]\n\n", []),
    ],
)
def test_tokens_in_lines_or_with_commas_and_objects_in_lines_are_devices(out: str, found: list[str]) -> None:
    assert indices(out) == found


def test_object_says_all_that_there_is_to_say_of_a_device() -> None:
    out = (
        '{"index": 0, "uuid": "u-0", "properties": {"name": "Big board", "gib": 1.50, "warm": true, "room": null},'
        ' "environment": {"FPGA": "/dev/fpga0"}, "unusable": "too hot", "parent_uuid": "p-0", "parent_token": "p"}'
    )
    assert devices(out) == [
        Device(
            "0",
            "u-0",
            {"name": "Big board", "gib": "1.50", "warm": "true"},
            {"FPGA": "/dev/fpga0"},
            "too hot",
            "p-0",
            "p",
        )
    ]


def test_null_is_not_known() -> None:
    assert devices('{"index": "0", "uuid": null, "properties": null, "environment": null, "unusable": null}') == [
        Device("0")
    ]


@pytest.mark.parametrize("out", ["", "\n", " \r\n\t\n"])
def test_nothing_is_no_answer(out: str) -> None:
    assert refusal(out) == "printed nothing; where there are no devices it must print []"


@pytest.mark.parametrize(
    "token",
    ["No devices", "a,b", "{}x", "[1]", "-", "*", "é", "a\x00b", "\ufeff0", "\ufffd", "0%", '"0"', "x" * 256],
)
def test_what_names_no_device_is_refused(token: str) -> None:
    assert refusal(f"7\n\n{token}\n") == f"printed in line 3: {token[:60]!r}; it {ALLOWED}"


@pytest.mark.parametrize("word", ["none", "None", "NULL", "n/a", "undefined", "unknown", "error", "nil"])
def test_word_for_want_of_a_device_is_none(word: str) -> None:
    expected = f"printed in line 1: {word!r}, which is no name of a device; where there are no devices it must print []"
    assert refusal(word) == expected


@pytest.mark.parametrize(
    ("out", "line", "name"),
    [("0\n1\n0\n", 3, "0"), ("0,1,0\n", 1, "0"), ('{"index": "a"}\n{"index": "a", "uuid": "b"}', 2, "a")],
    ids=["lines", "commas", "objects"],
)
def test_device_that_is_printed_twice_is_refused(out: str, line: int, name: str) -> None:
    assert refusal(out) == f"printed in line {line}: device {name!r} again"


@pytest.mark.parametrize("out", ["0,,1", ",0", ","])
def test_nothing_between_commas_is_no_device(out: str) -> None:
    assert refusal(out) == f"printed in line 1: ''; it {ALLOWED}"


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("0", "'0' after lines that are JSON objects"),
        ("[]", "'[]' after lines that are JSON objects"),
        ("fpga1", "'fpga1', which is no JSON object in one line (Expecting value)"),
        ('{"index": NaN}', "'{\"index\": NaN}', which is no JSON object in one line (NaN is no number)"),
        (
            '{"index": 1, "index": 2}',
            '\'{"index": 1, "index": 2}\', which is no JSON object in one line (a key stands there twice)',
        ),
        ('{"index": 1}, {"index": 2}', None),
        ('{"a":' + "[" * 100_000, None),
    ],
    ids=["number", "list", "token", "NaN", "key twice", "two in one line", "deep"],
)
def test_every_line_is_an_object_if_the_first_is(second: str, said: str | None) -> None:
    message = refusal('{"index": "first"}\n' + second)
    assert message.startswith(f"printed in line 2: {said or second[:60].__repr__()}")
    assert len(message) < 200


def test_depth_that_cannot_be_read_is_no_object() -> None:
    text = '{"a":' + "[" * 100_000
    assert refusal(text) == f"printed in line 1: {text[:60]!r}, which is nested too deeply"


def test_object_over_several_lines_is_refused() -> None:
    assert refusal('{\n"index": 0\n}\n').startswith("printed in line 1: '{', which is no JSON object in one line (")


def test_object_after_tokens_is_refused() -> None:
    assert refusal('0\n{"index": 1}\n') == f"printed in line 2: '{{\"index\": 1}}'; it {ALLOWED}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"uuid": "u"}', "a device without 'index'"),
        ('{"index": null}', "a device without 'index'"),
        ('{"index": ""}', f"''; 'index' {ALLOWED}"),
        ('{"index": true}', f"true; 'index' {ALLOWED}"),
        ('{"index": ["0"]}', f"[\"0\"]; 'index' {ALLOWED}"),
        ('{"index": "0", "uuid": "a b"}', f"'a b'; 'uuid' {ALLOWED}"),
        ('{"index": "0", "parent_uuid": {}}', f"{{}}; 'parent_uuid' {ALLOWED}"),
        ('{"index": "0", "properties": []}', "[] as 'properties', which must be an object of texts"),
        (
            '{"index": "0", "properties": {"a": {}}}',
            "{} as a value in 'properties', which must be a text, without line ends and the like",
        ),
        (
            '{"index": "0", "environment": {"A": "b\\nc"}}',
            "'b\\nc' as a value in 'environment', which must be a text, without line ends and the like",
        ),
        (
            '{"index": "0", "properties": {"a": "\ufffd"}}',
            "'\ufffd' as a value in 'properties', which must be a text, without line ends and the like",
        ),
        (
            '{"index": "0", "properties": {"uuid": "b"}}',
            "'uuid' in 'properties', where it must stand beside them",
        ),
        *(
            (
                json.dumps({"index": "0", "unusable": f"a{char}b"}),
                f"{f'a{char}b'!r} as 'unusable', which must be a text, without line ends and the like",
            )
            for char in "\r\x7f\x85\u2028\u2029\ud800"
        ),
        ('{"index": "0", "properties": {"": "b"}}', "'' as a name in 'properties'"),
        ('{"index": "0", "properties": {"a\\nb": "b"}}', "'a\\nb' as a name in 'properties'"),
        (
            '{"index": "0", "environment": {"A B": "c"}}',
            "'A B' in 'environment', which is no name of a variable",
        ),
        (
            '{"index": "0", "unusable": []}',
            "[] as 'unusable', which must be a text, without line ends and the like",
        ),
        ('{"index": "0", "unusable": " "}', "an empty 'unusable'; it is a reason, to be left out if there is none"),
        (
            '{"index": "0", "propertys": {}}',
            (
                "the key 'propertys' (allowed: index, uuid, properties, environment, unusable, parent_uuid, "
                "parent_token; others in properties), did you mean 'properties'?"
            ),
        ),
    ],
)
def test_object_that_is_no_device_is_told_why(text: str, said: str) -> None:
    assert refusal(text) == f"printed in line 1: {said}"


def test_more_than_any_list_of_devices_is_refused_before_what_was_cut_is_read() -> None:
    assert refusal("".join(f"{number}\n" for number in range(1_000_000))) == (
        "printed more than 512 KiB, which no list of devices has"
    )
    assert len(indices("".join(f"{number}\n" for number in range(50_000)))) == 50_000


TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS) | TEXTS, VALUES, max_size=5).map(json.dumps)
TOKENS = st.text(alphabet="a0:/,. {}[]-\n", max_size=12)


@given(st.lists(TOKENS | OBJECTS | st.text(max_size=20), max_size=4).map("\n".join))
@example('{"index": "0", "properties": {"\\u2028": ""}}')
def test_whatever_is_printed_is_devices_or_one_line_that_says_why_not(out: str) -> None:
    try:
        found = devices(out)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - most are refused, some are not
        return
    assert len({device.index for device in found}) == len(found)
    for device in found:
        texts = [device.index, device.uuid or "", *device.properties.values(), *device.environment.values()]
        assert len(" ".join(texts).splitlines()) == 1
        assert " ".join(texts).encode()
