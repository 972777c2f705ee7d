"""What a configuration means: the records, however they are written."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from externalresource.flink.configuration import ResourceConfig, load
from tests.support.flink.config import FULL, GPU, GPU_TEXT, Write, amounts, names, refusal

pytestmark = pytest.mark.usefixtures("no_flink_environment")


# ---- what a record holds -------------------------------------------------------------------------


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


# ---- cost ----------------------------------------------------------------------------------------


def test_a_mapping_needs_no_yaml() -> None:
    program = (
        "import sys; from externalresource.flink.configuration import load; "
        "load({'external-resources': 'gpu', 'external-resource.gpu.amount': 1}); assert 'yaml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
