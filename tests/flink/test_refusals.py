"""What is refused of a configuration, in which words, and what leniency passes over."""

import logging

import pytest

from externalresource.flink.configuration import ResourceConfig, load
from tests.support.flink.config import FULL, GPU, GPU_TEXT, Write, amounts, refusal

pytestmark = pytest.mark.usefixtures("no_flink_environment")


# ---- what is refused, and where it stands --------------------------------------------------------

ALLOWED = "allowed are amount, driver-factory.class, kubernetes.config-key, yarn.config-key and param.*"
REFUSED = {
    "an amount that is a word": (
        "external-resources: gpu\nexternal-resource.gpu.amount: two\n",
        ":2: external-resource.gpu.amount must be a positive integer, not 'two'",
    ),
    "an amount without value": (
        "external-resources: gpu\nexternal-resource:\n  gpu:\n    amount:\n",
        ":4: external-resource.gpu.amount has no value",
    ),
    "an amount that is a list": (
        "external-resources: gpu\nexternal-resource.gpu.amount: [1]\n",
        ":2: external-resource.gpu.amount must be one value, not ['1']",
    ),
    "a list without value": ("external-resources:\n", ":1: external-resources has no value"),
    "a list with null": ("external-resources: [gpu, ~]\n", ":1: an element of external-resources has no value"),
    "a list of lists": (
        "external-resources: [[a]]\n",
        ":1: an element of external-resources must be one value, not ['a']",
    ),
    "no amount": (
        "\nexternal-resources: gpu\n",
        ":2: external-resources lists 'gpu', but external-resource.gpu.amount is not set",
    ),
    "a name twice": ("external-resources: gpu;a;gpu\n", ":1: external-resources lists 'gpu' twice"),
    "an empty name": ("external-resources: a;;b\n", ":1: external-resources lists an empty name"),
    "literal quotes": (
        "external-resources: '\"gpu;fpga\"'\n",
        ":1: external-resources lists 'gpu;fpga', one name with ';' in it: join names by ';', unquoted",
    ),
    "a key misspelt": (
        GPU_TEXT + "external-resource.gpu.driver-factory: x\n",
        ":3: external-resource.gpu.driver-factory: unknown key, did you mean 'driver-factory.class'?",
    ),
    "a parameter without param": (
        GPU_TEXT + "external-resource.gpu.discovery-script.path: x\n",
        ":3: external-resource.gpu.discovery-script.path: unknown key, did you mean 'param.discovery-script.path'?",
    ),
    "parameters instead of param": (
        GPU_TEXT + "external-resource.gpu.params.script.path: x\n",
        ":3: external-resource.gpu.params.script.path: unknown key, did you mean 'param.script.path'?",
    ),
    "a key like no other": (
        GPU_TEXT + "external-resource:\n  gpu.x: y\n",
        ":4: external-resource.gpu.x: unknown key, " + ALLOWED,
    ),
    "a resource that is one value": (
        "external-resources: gpu\nexternal-resource.gpu: 2\n",
        ":2: external-resource.gpu: unknown key, " + ALLOWED,
    ),
    "the list's name misspelt": (
        "external-resource: gpu\n",
        ":1: external-resource: unknown key, did you mean 'external-resources'?",
    ),
    "the list as a mapping": (
        "external-resources: {gpu: 2}\n",
        ":1: external-resources.gpu: unknown key, did you mean 'external-resources'?",
    ),
    "merged keys": (
        GPU_TEXT + "external-resource:\n  gpu:\n    <<: {amount: 3}\n",
        ":5: external-resource.gpu.<<.amount: unknown key, did you mean 'amount'?",
    ),
    "a class without name": (
        GPU_TEXT + "external-resource.gpu.driver-factory.class: ' '\n",
        ":3: external-resource.gpu.driver-factory.class must not be empty",
    ),
    "an option without value": (
        GPU_TEXT + "external-resource.gpu.param.a: ~\n",
        ":3: external-resource.gpu.param.a has no value",
    ),
    "a key twice": (
        "a: 1\n\n" + GPU_TEXT + "external-resource.gpu.amount: 2\n",
        ":5: external-resource.gpu.amount is set twice, first in line 4",
    ),
    "a nested key twice": (
        "a:\n  b:\n    c: 1\n    c: 2\n",
        ":4: a.b.c is set twice, first in line 3",
    ),
    "a group twice": ("a: {b: 1}\na: {c: 1}\n", ":2: a is set twice, first in line 1"),
    "a key twice within a list": ("a:\n- b: 1\n  b: 2\n", ":3: b is set twice, first in line 2"),
    "a key that is a list": ("? [a]\n: b\n", ":1: a key must be a word, not a list or a mapping"),
    "a list for a file": ("\n- a\n", ":2: must be a mapping of keys to values"),
    "a word for a file": ("a\n", ":1: must be a mapping of keys to values"),
    "an empty file": ("", " is empty: it sets no key"),
    "a file of comments": ("# external-resources: gpu\n", " is empty: it sets no key"),
    "bad YAML": ("a: 1\nb: c: d\n", ":2: not YAML: mapping values are not allowed here"),
    "an unknown alias": ("a: *b\n", ":1: not YAML: found undefined alias 'b'"),
    "two documents": (
        "a: 1\n---\nb: 1\n",
        ":2: not YAML: expected a single document in the stream, but found another document",
    ),
    "a control character": ("a: 1\nb: \x07\n", ":2: not YAML: '\\x07' is not allowed"),
    "an alias of what it is in": ("a: &a\n  b: *a\n", ": nested too deeply, or an alias stands within what it names"),
    "nesting without end": ("a: " + "[" * 2000, ": nested too deeply, or an alias stands within what it names"),
    "a version without end": (f"%YAML {5000 * '9'}.1\n---\na: 1\n", ": not YAML: its version has too many digits"),
    "latin 1": (b"a: 1\n# caf\xe9\n", ":2: not UTF-8: byte 0xe9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_with_file_line_and_key(case: str, write: Write) -> None:
    text, expected = REFUSED[case]
    file = write(text)
    assert refusal(file) == file + expected


@pytest.mark.parametrize("amount", ["two", "1.5", "", " ", "0x10", "1e3", "1_0", "2 ", "२", "9" * 19, True, 1.0])
def test_an_amount_that_is_no_integer_is_refused_always(amount: object) -> None:
    source = {"external-resources": "gpu", "external-resource.gpu.amount": amount}
    assert refusal(source) == refusal(source, lenient=True)
    assert refusal(source).startswith("external-resource.gpu.amount must be a positive integer, not ")


@pytest.mark.parametrize("amount", ["0", "-1", "-0", -3])
def test_an_amount_that_is_not_positive_is_refused(amount: object) -> None:
    source = {"external-resources": "gpu", "external-resource.gpu.amount": amount}
    assert refusal(source) == f"external-resource.gpu.amount must be a positive integer, not '{amount}'"


@pytest.mark.parametrize(("amount", "expected"), [("1", 1), ("+2", 2), ("010", 10), (16, 16), ("9" * 18, 10**18 - 1)])
def test_an_amount_is_a_decimal_integer(amount: object, expected: int) -> None:
    (gpu,) = load({"external-resources": "gpu", "external-resource.gpu.amount": amount})
    assert gpu.amount == expected


def test_a_key_both_nested_and_dotted_is_refused_naming_both_lines(write: Write) -> None:
    file = write(
        "external-resources: gpu\nexternal-resource:\n  gpu:\n    amount: 1\nexternal-resource.gpu.amount: 2\n"
    )
    assert refusal(file) == f"{file}:5: external-resource.gpu.amount is set twice, first in {file}:4"
    nested = {
        "external-resources": "gpu",
        "external-resource": {"gpu.amount": 1},
        "external-resource.gpu": {"amount": 1},
    }
    assert refusal(nested) == "external-resource.gpu.amount is set twice"


@pytest.mark.parametrize("kind", ["kubernetes", "yarn"])
def test_two_resources_with_one_config_key_are_refused(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    key = {f"external-resource.{name}.{kind}.config-key": "nvidia.com/gpu" for name in ("a", "b")}
    source = {**amounts("a", "b"), **key, "external-resources": "a;b"}
    expected = (
        f"external-resource.b.{kind}.config-key must not be 'nvidia.com/gpu': "
        f"external-resource.a.{kind}.config-key is that already"
    )
    assert refusal(source) == expected
    a, b = load(source, lenient=True)
    keys = [(each.kubernetes_config_key, each.yarn_config_key) for each in (a, b)]
    only = ("nvidia.com/gpu", None) if kind == "kubernetes" else (None, "nvidia.com/gpu")
    assert keys == [(None, None), only]
    assert caplog.messages == [expected]


def test_a_kubernetes_and_a_yarn_key_may_be_the_same() -> None:
    keys = {f"external-resource.gpu.{kind}.config-key": "gpu" for kind in ("kubernetes", "yarn")}
    (gpu,) = load({**GPU, **keys})
    assert (gpu.kubernetes_config_key, gpu.yarn_config_key) == ("gpu", "gpu")


def test_secrets_of_other_keys_are_not_shown(write: Write) -> None:
    assert "hunter2" not in refusal(write("s3.secret-key: hunter2: x\n"))
    assert "hunter2" not in refusal(write("s3.secret-key: hunter2\ns3.secret-key: hunter2\n"))
    assert "hunter2" not in refusal(write("s3.secret-key:hunter2\n", "flink-conf.yaml"))


# ---- leniency ------------------------------------------------------------------------------------

LENIENT: dict[str, tuple[dict[str, object], list[str]]] = {
    "no amount": ({"external-resources": "gpu;a"}, ["lists 'a', but external-resource.a.amount is not set"]),
    "an amount of 0": ({"external-resource.a.amount": 0, "external-resources": "a;gpu"}, ["not '0'"]),
    "a negative amount": ({"external-resource.a.amount": -1, "external-resources": "a;gpu"}, ["not '-1'"]),
    "a name twice": ({"external-resources": "gpu;gpu"}, ["lists 'gpu' twice"]),
    "an empty name": (
        {"external-resources": "gpu;;gpu"},
        ["'gpu' twice", "an empty name", "external-resource..amount"],
    ),
    "an unknown key": ({"external-resource.gpu.x": 1}, ["external-resource.gpu.x: unknown key"]),
    "an unknown family": ({"external-resource-x": 1}, ["external-resource-x: unknown key"]),
    "an empty class": ({"external-resource.gpu.driver-factory.class": ""}, ["class must not be empty"]),
    "an empty config key": ({"external-resource.gpu.yarn.config-key": ""}, ["config-key must not be empty"]),
    "literal quotes": (
        {"external-resources": 'gpu;"a;b"'},
        ["one name with ';' in it", "external-resource.a;b.amount is not set"],
    ),
}


@pytest.mark.parametrize("case", LENIENT)
def test_lenient_warns_and_goes_on_as_flink_does(case: str, caplog: pytest.LogCaptureFixture) -> None:
    more, warnings = LENIENT[case]
    assert load({**GPU, **more}, lenient=True) == [ResourceConfig("gpu", 2, None, {}, None, None)]
    assert len(caplog.records) == len(warnings)
    for record, part in zip(caplog.records, warnings, strict=True):
        assert part in record.getMessage()
        assert (record.name, record.levelno) == ("externalresource", logging.WARNING)
    assert refusal({**GPU, **more}) == caplog.messages[0]


def test_lenient_takes_an_empty_file_for_no_resources(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    file = write("")
    assert load(file, lenient=True) == []
    assert caplog.messages == [f"{file} is empty: it sets no key"]


def test_nothing_is_logged_of_what_is_right(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    load(write(FULL))
    load(write(FULL), lenient=True)
    assert caplog.records == []
