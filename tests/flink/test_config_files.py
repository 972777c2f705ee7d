"""Which files are read, in which of the two formats, and what wins over them."""

import logging
import os
from pathlib import Path

import pytest

from externalresource.errors import ConfigurationError
from externalresource.flink.configuration import load
from tests.support.flink.config import GPU, GPU_TEXT, Write, amounts, names, refusal

pytestmark = pytest.mark.usefixtures("no_flink_environment")


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
