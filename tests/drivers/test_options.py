"""A driver's options: what a dataclass of them takes, and what is said of the rest."""

from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import pytest

from externalresource.drivers.options import Option, describe, parse
from externalresource.errors import ConfigurationError


@dataclass(frozen=True)
class Everything:
    sysfs_root: str = "/sys"
    most: int = 8
    share: float = 0.5
    strict: bool = False
    order: Literal["first", "last"] = "first"
    name: str | None = None
    pool: Optional[int] = None  # noqa: UP045 - as an author may still write it
    hosts: tuple[str, ...] = ("a", "b")
    seen: list[str] = field(default_factory=list, init=False)


@dataclass(frozen=True)
class Needy:
    path: str


@dataclass(frozen=True)
class Dotted:
    path: str = field(metadata={"option": "discovery-script.path"})
    most: int = field(default=1, metadata={"option": "discovery-script.most"})


@dataclass(frozen=True)
class Judging:
    least: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"option 'least' must not be above 'most' ({self.most}), and is {self.least}")


def parsed(kind: type[Any], **options: str) -> Any:
    [made] = parse({name.replace("_", "-"): text for name, text in options.items()}, [kind], "the fpga driver")
    return made


def refusal(kind: type[Any], **options: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parsed(kind, **options)
    return str(caught.value)


def test_what_is_not_given_has_its_default() -> None:
    assert parsed(Everything) == Everything()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("sysfs_root", "/a b", "/a b"),
        ("sysfs_root", "", ""),
        ("most", "-3", -3),
        ("share", "1e-3", 0.001),
        ("share", "2", 2.0),
        ("strict", "true", True),
        ("strict", "false", False),
        ("order", "last", "last"),
        ("name", "x", "x"),
        ("pool", "7", 7),
        ("hosts", "c, d,,", ("c", "d")),
        ("hosts", "", ()),
    ],
)
def test_text_becomes_what_the_field_is(name: str, text: str, value: object) -> None:
    made = parsed(Everything, **{name: text})
    assert made == Everything(**{name: value})  # type: ignore[arg-type] # what the field is, the table says
    assert type(getattr(made, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("most", "3.0", "option 'most' must be a whole number, not '3.0'"),
        ("most", "", "option 'most' must be a whole number, not ''"),
        ("pool", "x", "option 'pool' must be a whole number, not 'x'"),
        ("most", "9" * 5000, "option 'most' must be a whole number, not '999"),
        ("share", "nan", "option 'share' must be a number, not 'nan'"),
        ("share", "inf", "option 'share' must be a number, not 'inf'"),
        ("strict", "yes", "option 'strict' must be true or false, not 'yes'"),
        ("strict", "True", "option 'strict' must be true or false, not 'True'"),
        ("order", "frist", "option 'order' must be first or last, not 'frist', did you mean 'first'?"),
    ],
)
def test_text_of_another_kind_is_refused_with_what_is_allowed(name: str, text: str, expected: str) -> None:
    assert refusal(Everything, **{name: text}).startswith(f"the fpga driver: {expected}")


def test_unknown_option_is_refused_with_the_nearest_and_all() -> None:
    assert refusal(Everything, sysfs_rot="/x") == (
        "the fpga driver has no option 'sysfs-rot' "
        "(allowed: sysfs-root, most, share, strict, order, name, pool, hosts), did you mean 'sysfs-root'?"
    )


def test_field_that_is_no_option_of_the_constructor_is_none_here() -> None:
    assert "has no option 'seen'" in refusal(Everything, seen="x")


def test_option_without_a_default_must_be_given() -> None:
    assert refusal(Needy) == "the fpga driver needs the option 'path': a text"
    assert parsed(Needy, path="/x").path == "/x"


def test_dataclass_may_refuse_by_itself() -> None:
    assert refusal(Judging, least="2") == ("the fpga driver: option 'least' must not be above 'most' (1), and is 2")


def test_each_of_several_dataclasses_takes_its_own() -> None:
    needy, judging = parse({"path": "/x", "most": "4"}, [Needy, Judging], "the fpga driver")
    assert (needy, judging) == (Needy("/x"), Judging(most=4))
    with pytest.raises(ConfigurationError, match="allowed: path, least, most"):
        parse({"path": "/x", "mots": "4"}, [Needy, Judging], "the fpga driver")


def test_options_are_described_for_people() -> None:
    assert describe(Everything) == [
        Option("sysfs-root", "a text", "/sys", required=False),
        Option("most", "a whole number", "8", required=False),
        Option("share", "a number", "0.5", required=False),
        Option("strict", "true or false", "false", required=False),
        Option("order", "first|last", "first", required=False),
        Option("name", "a text", None, required=False),
        Option("pool", "a whole number", None, required=False),
        Option("hosts", "texts with commas between", "a,b", required=False),
    ]
    assert describe(Needy) == [Option("path", "a text", None, required=True)]


def test_field_of_a_type_that_no_option_can_have_is_the_authors_mistake() -> None:
    @dataclass
    class Wrong:
        numbers: dict[str, int] = field(default_factory=dict)

    with pytest.raises(TypeError, match="no option can be of type"):
        describe(Wrong)


def test_option_may_have_a_name_that_no_field_can_have() -> None:
    options = {"discovery-script.path": "/fpga.sh", "discovery-script.most": "2"}
    assert parse(options, [Dotted], "the fpga driver") == [Dotted("/fpga.sh", 2)]
    assert [option.name for option in describe(Dotted)] == list(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the fpga driver needs the option 'discovery-script.path': a text"),
        (
            {"discovery-script.path": "a", "discovery-script.most": "b"},
            "the fpga driver: option 'discovery-script.most' must be a whole number, not 'b'",
        ),
        (
            {"path": "a"},
            "the fpga driver has no option 'path' (allowed: discovery-script.path, discovery-script.most)",
        ),
    ],
    ids=["missing", "wrong", "by the field's name"],
)
def test_error_names_an_option_as_it_is_written(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(options, [Dotted], "the fpga driver")
    assert str(caught.value) == message
