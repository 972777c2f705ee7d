import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from externalresource.errors import ConfigurationError
from externalresource.flink.configuration import ResourceConfig, load

GPU_TEXT = "external-resources: gpu\nexternal-resource.gpu.amount: 2\n"
GPU = {"external-resources": "gpu", "external-resource.gpu.amount": "2"}
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one file; what it returns is the file's path."""

    def write(text: str | bytes, name: str = "config.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.fixture(autouse=True)
def no_flink_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLINK_CONF_DIR", raising=False)
    monkeypatch.delenv("FLINK_HOME", raising=False)


def names(*resources: ResourceConfig) -> list[str]:
    return [resource.name for resource in resources]


def amounts(*listed: str) -> dict[str, object]:
    return {f"external-resource.{name}.amount": 1 for name in listed}


def refusal(source: str | Mapping[str, object], *overrides: str, lenient: bool = False) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(source, overrides=overrides, lenient=lenient)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- what a record holds -------------------------------------------------------------------------

FULL = """
external-resources: [gpu, fpga]
external-resource:
  gpu:
    amount: 2
    driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory
    param:
      discovery-script:
        path: /opt/discover   # a comment
        args: "--enable-coordination-mode --coordination-file /x"
    kubernetes.config-key: nvidia.com/gpu
    yarn.config-key: yarn.io/gpu
external-resource.fpga.amount: 1
"""


def test_every_key_of_a_resource_reaches_its_record(write: Write) -> None:
    gpu, fpga = load(write(FULL))
    assert gpu == ResourceConfig(
        name="gpu",
        amount=2,
        driver_factory="org.apache.flink.externalresource.gpu.GPUDriverFactory",
        options={
            "discovery-script.path": "/opt/discover",
            "discovery-script.args": "--enable-coordination-mode --coordination-file /x",
        },
        kubernetes_config_key="nvidia.com/gpu",
        yarn_config_key="yarn.io/gpu",
    )
    assert fpga == ResourceConfig("fpga", 1, None, {}, None, None)


def test_records_are_read_only() -> None:
    (gpu,) = load({**GPU, "external-resource.gpu.param.a": "b"})
    with pytest.raises(FrozenInstanceError):
        gpu.amount = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        gpu.options["a"] = "c"  # type: ignore[index]


def test_the_order_is_that_of_the_list() -> None:
    listed = ["z", "a", "m", "b"]
    assert names(*load({**amounts(*sorted(listed)), "external-resources": listed})) == listed


def test_a_resource_that_is_not_listed_is_passed_over() -> None:
    assert names(*load({**GPU, "external-resource.fpga.amout": "x", "external-resource.gpux": None})) == ["gpu"]


def test_without_a_list_there_are_no_resources() -> None:
    assert load({"external-resource.gpu.amount": 2}) == []


# ---- spelling ------------------------------------------------------------------------------------

SPELLINGS = {
    "nested": "external-resources: gpu\nexternal-resource:\n  gpu:\n    amount: 2\n    param:\n      a: {b: c}\n",
    "dotted": "external-resources: gpu\nexternal-resource.gpu.amount: 2\nexternal-resource.gpu.param.a.b: c\n",
    "mixed": "external-resources: gpu\nexternal-resource.gpu:\n  amount: 2\nexternal-resource: {gpu.param: {a.b: c}}\n",
    "braces": '{"external-resources":["gpu"],"external-resource":{"gpu":{"amount":2,"param":{"a":{"b":"c"}}}}}',
    "aliases": "x: &x\n  amount: 2\n  param.a.b: c\nexternal-resources: [gpu]\nexternal-resource: {gpu: *x}\n",
    "byte order mark": "\ufeffexternal-resources: gpu\nexternal-resource.gpu: {amount: 2, param.a.b: c}\n",
    "windows": "external-resources: gpu\r\nexternal-resource.gpu:\r\n  amount: 2\r\n  param.a.b: c\r\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_nested_dotted_and_mixed_keys_mean_the_same(spelling: str, write: Write) -> None:
    assert load(write(SPELLINGS[spelling])) == [ResourceConfig("gpu", 2, None, {"a.b": "c"}, None, None)]


def spell(flat: dict[str, str], data: st.DataObject) -> dict[str, object]:
    """Nest the dotted keys at some of their dots."""
    spelt: dict[str, object] = {}
    groups: dict[str, dict[str, str]] = {}
    for key, value in flat.items():
        dots = [place for place, letter in enumerate(key) if letter == "."]
        cut = data.draw(st.sampled_from([None, *dots]))
        if cut is None:
            spelt[key] = value
        else:
            groups.setdefault(key[:cut], {})[key[cut + 1 :]] = value
    for head, group in groups.items():
        spelt.update(
            {f"{head}.{key}": value for key, value in group.items()} if head in spelt else {head: spell(group, data)}
        )
    return spelt


WORDS = st.text("abcdef-", min_size=1, max_size=3)
PARAMS = st.dictionaries(st.lists(WORDS, min_size=1, max_size=3).map(".".join), st.text("ab1:#,;'\"- é", max_size=6))


@given(data=st.data(), names=st.lists(WORDS, min_size=1, max_size=3, unique=True), params=PARAMS)
def test_however_keys_are_nested_the_records_are_the_same(
    data: st.DataObject, names: list[str], params: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    flat = {f"external-resource.{name}.amount": str(place) for place, name in enumerate(names, start=1)}
    flat |= {f"external-resource.{names[0]}.param.{key}": value for key, value in params.items()}
    flat |= {"external-resources": ";".join(names)}
    spelt = spell(flat, data)
    file = tmp_path_factory.getbasetemp() / "spelt.yaml"
    file.write_text(json.dumps(spelt, ensure_ascii=False), encoding="utf-8")
    expected = [
        ResourceConfig(name, place, None, {} if place > 1 else params, None, None)
        for place, name in enumerate(names, start=1)
    ]
    assert load(flat) == load(spelt) == load(file) == load({}, overrides=flat) == expected


@pytest.mark.parametrize(
    "text",
    ["010", "on", "yes", "1:30", "0x10", "1_000", "1.50", "2001-01-01", "TRUE", "=", "a: b", "a #b", "none", "'"],
)
def test_scalars_keep_their_text(text: str, write: Write) -> None:
    plain = text if not set(text) & set("' ") else json.dumps(text)
    (gpu,) = load(write(f"external-resources: gpu\nexternal-resource.gpu: {{amount: 1, param.a: {plain}}}\n"))
    assert gpu.options == {"a": text}


@pytest.mark.parametrize("null", ["", "~", "null", "Null", "NULL"])
def test_null_is_no_value(null: str, write: Write) -> None:
    file = write(GPU_TEXT + f"external-resource.gpu.param.a: {null}\n")
    assert refusal(file) == f"{file}:3: external-resource.gpu.param.a has no value"


def test_empty_text_is_a_value_where_null_is_none(write: Write) -> None:
    (gpu,) = load(write('external-resources: gpu\nexternal-resource.gpu:\n  amount: 1\n  param: {a: "", b: "~"}\n'))
    assert gpu.options == {"a": "", "b": "~"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (True, "true"), (False, "false"), (1.5, "1.5"), (Path("/a"), "/a"), ("a", "a"), ("", "")],
)
def test_a_mapping_may_hold_numbers_bools_and_paths(value: object, text: str) -> None:
    (gpu,) = load({**GPU, "external-resource": {"gpu": {"param": {"a": value}}}})
    assert gpu.options == {"a": text}


# ---- the list ------------------------------------------------------------------------------------

LISTS: list[tuple[object, list[str]]] = [  # as Flink 1.20 and 2.3 read them
    ("gpu", ["gpu"]),
    ("gpu;fpga", ["gpu", "fpga"]),
    (" gpu ; fpga ", ["gpu", "fpga"]),
    ("gpu;", ["gpu"]),
    (";gpu", ["gpu"]),
    ("", []),
    (" ", []),
    (";", []),
    ("'gpu';\"fpga\"", ["gpu", "fpga"]),
    ('"gpu" ; fpga', ["gpu", "fpga"]),
    ("[gpu, fpga]", ["gpu", "fpga"]),
    (" [gpu, fpga]", ["gpu", "fpga"]),
    ("- gpu\n- fpga", ["gpu", "fpga"]),
    ("[]", []),
    (["gpu", "fpga"], ["gpu", "fpga"]),
    (("gpu", 1), ["gpu", "1"]),
    ([], []),
    ("none", []),
    (12, ["12"]),
]


@pytest.mark.parametrize(("value", "expected"), LISTS)
def test_a_list_is_one_in_yaml_or_a_text_with_semicolons(value: object, expected: list[str]) -> None:
    assert names(*load({**amounts("gpu", "fpga", "1", "12"), "external-resources": value})) == expected


ODD_LISTS: list[tuple[object, list[str]]] = [  # ... of names that are refused unless one is lenient
    ('"gpu;fpga"', ["gpu;fpga"]),
    ('"a;b";c', ["a;b", "c"]),
    ("gpu,fpga", ["gpu,fpga"]),
    ("gpu fpga", ["gpu fpga"]),
    ('"a""b"', ['a"b']),
    ("'a''b'", ["a'b"]),
    ("a'b", ["a'b"]),
    ("gpu;;fpga", ["gpu", "", "fpga"]),
    ('""', [""]),
    ("[gpu", ["[gpu"]),
    ("[*a]", ["[*a]"]),
    ("[{a: 1, a: 2}]", ["[{a: 1, a: 2}]"]),
    ("- gpu: 1\nx", ["- gpu: 1\nx"]),
    ("[gpu;fpga]", ["gpu;fpga"]),
    (["none"], ["none"]),
    ("none;gpu", ["none", "gpu"]),
    ('"none"', ["none"]),
    ("a=b", ["a=b"]),
]


@pytest.mark.parametrize(("value", "expected"), ODD_LISTS)
def test_a_name_that_flink_breaks_on_is_refused(value: object, expected: list[str]) -> None:
    source = {**amounts(*expected), "external-resources": value}
    assert names(*load(source, lenient=True)) == expected
    assert refusal(source).startswith("external-resources lists ")


@pytest.mark.parametrize("value", ['"gpu', '"gpu"fpga', "gpu;'fpga", "'gpu' fpga;x"])
def test_a_quote_that_does_not_close_an_element_is_refused_always(value: str) -> None:
    expected = f"external-resources must have quotes around a whole element or not at all, not {value!r}"
    assert refusal({"external-resources": value}, lenient=True) == refusal({"external-resources": value}) == expected


def test_yaml_quotes_are_not_part_of_the_list(write: Write) -> None:
    rest = "\nexternal-resource.gpu.amount: 1\nexternal-resource.fpga.amount: 1\n"
    assert names(*load(write('external-resources: "gpu;fpga"' + rest))) == ["gpu", "fpga"]
    assert "one name with ';' in it" in refusal(write("external-resources: '\"gpu;fpga\"'" + rest))


def test_none_is_only_the_bare_word() -> None:
    assert load({**GPU, "external-resources": "none"}) == []
    assert "reserves" in refusal({**GPU, "external-resources": ["none"]})
    assert "lists 'None'" in refusal({**GPU, "external-resources": "None"})


# ---- names with dots -----------------------------------------------------------------------------


def test_of_two_names_one_may_begin_with_the_other() -> None:
    source = {
        "external-resources": "a;a.b;a.param",
        "external-resource": {
            "a": {"amount": 1, "b.amount": 2, "param.amount": 3, "b.param.x": "y", "param.param.z": "w"}
        },
    }
    a, a_b, a_param = load(source)
    assert (a.amount, a_b.amount, a_param.amount) == (1, 2, 3)
    assert (dict(a_b.options), dict(a_param.options)) == ({"x": "y"}, {"z": "w"})
    assert a.options == {"amount": "3", "param.z": "w"}  # as in Flink, where a key may belong to two resources


def test_an_unknown_key_is_that_of_the_longest_name() -> None:
    source = {**amounts("a", "a.b"), "external-resources": "a;a.b", "external-resource.a.b.amout": 1}
    assert refusal(source) == "external-resource.a.b.amout: unknown key, did you mean 'amount'?"


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
    "nesting without end": ("a: " + "[" * 5000, ": nested too deeply, or an alias stands within what it names"),
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


# ---- the rest of a Flink configuration -----------------------------------------------------------


def test_the_rest_of_the_file_does_not_disturb(write: Write) -> None:
    rest = """
env.java.opts.all: --add-exports=java.base/sun.net.util=ALL-UNNAMED --add-opens=java.base/java.lang=ALL-UNNAMED
taskmanager: {numberOfTaskSlots: 4, memory: {process.size: 1728m}, host: localhost}
taskmanager.numberOfTaskSlots: 8
nothing:
nulls: [~, {a: ~}, [b]]
pipeline.serialized: [{org.example.A: {type: pojo}}, {org.example.A: {type: kryo}}]
tagged: !custom x
text: |
  external-resources: not this
"""
    assert names(*load(write(rest + GPU_TEXT))) == ["gpu"]


# ---- flink-conf.yaml -----------------------------------------------------------------------------


def legacy(write: Write, text: str) -> str:
    return write(text, "flink-conf.yaml")


def test_flink_conf_is_lines_and_not_yaml(write: Write) -> None:
    lines = """# a comment
external-resources: gpu;fpga   # and another
  # indented

  external-resource.gpu.amount :  2
external-resource.gpu.param.args: --key: value "quoted" [x
external-resource.fpga.amount: 1#no blank needed\r
other: @not yaml\rexternal-resource.fpga.param.a: b
"""
    gpu, fpga = load(legacy(write, lines))
    assert (gpu.amount, dict(gpu.options)) == (2, {"args": '--key: value "quoted" [x'})
    assert (fpga.amount, dict(fpga.options)) == (1, {"a": "b"})


@pytest.mark.parametrize(
    "line", ["external-resource.gpu.amount:2", "gpu", "key:", "key: ", ": value", "key: # value", "a:\tb", "- a"]
)
def test_a_line_of_flink_conf_that_is_no_pair_is_refused(
    line: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    file = legacy(write, f"{GPU_TEXT}\n{line}\n")
    expected = f"{file}:4: not of the form `key: value`"
    assert refusal(file) == expected
    assert names(*load(file, lenient=True)) == ["gpu"]
    assert caplog.messages == [expected]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_flink_conf_are_counted_whatever_ends_them(end: str, write: Write) -> None:
    file = legacy(write, end.join(["# a", "", "b: c", "d"]))
    assert refusal(file) == f"{file}:4: not of the form `key: value`"


def test_of_a_key_twice_in_flink_conf_the_last_wins_if_lenient(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    file = legacy(write, GPU_TEXT + "x: 1\nx: 2\nexternal-resource.gpu.amount: 3\n")
    expected = f"{file}:5: external-resource.gpu.amount is set twice, first in {file}:2"
    assert refusal(file) == expected
    (gpu,) = load(file, lenient=True)
    assert (gpu.amount, caplog.messages) == (3, [expected])


@pytest.mark.parametrize("value", ["[gpu, fpga]", '"gpu;fpga"'])
def test_flink_conf_knows_no_yaml_list_and_keeps_quotes(value: str, write: Write) -> None:
    file = legacy(write, f"external-resources: {value}\n")
    assert refusal(file).startswith(f"{file}:1: external-resources lists '{value.strip(chr(34))}', one name with ")


# ---- which file ----------------------------------------------------------------------------------


def test_a_folder_stands_for_the_file_in_it(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert names(*load(Path(write(GPU_TEXT)).parent)) == ["gpu"]
    assert caplog.records == []


def test_flink_conf_wins_over_config_yaml_with_a_warning(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    write("external-resources: none\n")
    file = legacy(write, GPU_TEXT)
    assert names(*load(os.path.dirname(file))) == ["gpu"]
    assert caplog.record_tuples == [
        (
            "externalresource",
            logging.WARNING,
            f"{file} is used and config.yaml beside it is not, as in Flink 1.20; Flink 2 does the opposite",
        )
    ]


def test_any_other_name_is_yaml(write: Write) -> None:
    assert names(*load(write("external-resources: [gpu]\nexternal-resource: {gpu.amount: 1}\n", "my.conf"))) == ["gpu"]


def test_the_environment_names_the_folder_if_nobody_does(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "conf").mkdir(parents=True)
    (home / "conf" / "config.yaml").write_text("external-resources: none\n")
    monkeypatch.setenv("FLINK_HOME", str(home))
    assert load() == []
    monkeypatch.setenv("FLINK_CONF_DIR", os.path.dirname(write(GPU_TEXT)))
    assert names(*load()) == ["gpu"]
    monkeypatch.setenv("FLINK_CONF_DIR", "")
    assert load() == []


def test_without_file_and_environment_the_error_says_what_was_looked_for() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert str(caught.value) == "no configuration is named, and neither FLINK_CONF_DIR nor FLINK_HOME is set"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, loop = tmp_path / "missing.yaml", tmp_path / "config.yaml"
    assert refusal(str(missing)) == f"{missing} cannot be read: No such file or directory"
    assert refusal(str(tmp_path)) == f"{tmp_path} contains neither config.yaml nor flink-conf.yaml"
    loop.mkdir()
    assert refusal(str(tmp_path)) == f"{loop} cannot be read: Is a directory"


# ---- overrides -----------------------------------------------------------------------------------


def test_an_override_wins_over_the_file_and_the_last_over_the_others(write: Write) -> None:
    overrides = ["external-resource.gpu.amount=3", "external-resource.gpu.amount=4", "other=x"]
    (gpu,) = load(write(GPU_TEXT), overrides=overrides)
    assert gpu.amount == 4


def test_an_override_is_cut_at_its_first_equals_sign() -> None:
    (gpu,) = load(GPU, overrides=[" external-resource.gpu.param.a =b=c ", "external-resource.gpu.param.d="])
    assert gpu.options == {"a": "b=c ", "d": ""}


def test_overrides_may_be_a_mapping_nested_or_dotted() -> None:
    (gpu,) = load(GPU, overrides={"external-resource": {"gpu": {"amount": 5}}})
    assert gpu.amount == 5


@pytest.mark.parametrize(("value", "expected"), [("gpu;a", ["gpu", "a"]), ("[a, gpu]", ["a", "gpu"]), ("none", [])])
def test_the_list_may_be_overridden(value: str, expected: list[str]) -> None:
    assert names(*load({**GPU, **amounts("a")}, overrides=[f"external-resources={value}"])) == expected


def test_an_override_repairs_what_the_file_has_wrong(write: Write) -> None:
    file = write("external-resources: '\"a'\nexternal-resource.gpu.amount: two\n")
    overrides = ["external-resources=gpu", "external-resource.gpu.amount=2"]
    assert names(*load(file, overrides=overrides)) == ["gpu"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("gpu", "-D must be followed by key=value, not 'gpu'"),
        (" =2", "-D must be followed by key=value, not ' =2'"),
        ("", "-D must be followed by key=value, not ''"),
        ("external-resource.gpu.amount=x", "-D external-resource.gpu.amount must be a positive integer, not 'x'"),
        ("external-resource.gpu.amout=1", "-D external-resource.gpu.amout: unknown key, did you mean 'amount'?"),
        ("external-resources=a", "-D external-resources lists 'a', but external-resource.a.amount is not set"),
        ("external-resources=a;a", "-D external-resources lists 'a' twice"),
    ],
)
def test_an_error_from_an_override_says_so(override: str, expected: str, write: Write) -> None:
    assert refusal(write(GPU_TEXT), override) == expected


def test_an_error_from_a_mapping_of_overrides_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"^overrides: external-resource\.gpu\.amount must be a positive"):
        load(GPU, overrides={"external-resource.gpu.amount": "x"})


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


# ---- cost ----------------------------------------------------------------------------------------


def test_a_mapping_needs_no_yaml() -> None:
    program = (
        "import sys; from externalresource.flink.configuration import load; "
        "load({'external-resources': 'gpu', 'external-resource.gpu.amount': 1}); assert 'yaml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
