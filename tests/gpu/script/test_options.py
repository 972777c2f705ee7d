from collections.abc import Mapping

import pytest

from externalresource.errors import ConfigurationError
from externalresource_gpu.script.options import OPTIONS, PREFIX, Options, usage, variable

DEFAULTS = {
    "list": False,
    "amount": 2,
    "coordination": False,
    "coordination_file": "/var/tmp/flink-gpu-coordination",
    "simulate": None,
    "backend": "auto",
    "format": "flink",
    "mig": "instances",
    "min_memory": None,
    "name": None,
    "policy": "connected",
    "foreign_use": "ignore",
    "ignore_mask": False,
    "relative": False,
    "topology": False,
    "owner_pid": None,
    "timeout": 9.0,
    "wait": 0.0,
    "log_file": None,
}
# option: a value, another one, and what the first one sets
VALUES: dict[str, tuple[str, str, str, object]] = {
    "coordination-file": ("/a b", "/c", "coordination_file", "/a b"),
    "backend": ("nvml", "nvidia-smi", "backend", "nvml"),
    "simulate": ("dgx-1", "2", "simulate", "dgx-1"),
    "format": ("spark", "json", "format", "spark"),
    "mig": ("1g.10gb", "gpus", "mig", "1g.10gb"),
    "min-memory": ("40960", "1", "min_memory", 40960),
    "name": ("A100", "T4", "name", "A100"),
    "policy": ("pack", "spread", "policy", "pack"),
    "foreign-use": ("exclude", "warn", "foreign_use", "exclude"),
    "ignore-mask": ("true", "false", "ignore_mask", True),
    "relative": ("true", "false", "relative", True),
    "topology": ("true", "false", "topology", True),
    "owner-pid": ("17", "18", "owner_pid", 17),
    "timeout": ("0.5", "3", "timeout", 0.5),
    "wait": ("60", "0", "wait", 60.0),
    "log-file": ("/log", "/other", "log_file", "/log"),
    "enable-coordination-mode": ("true", "false", "coordination", True),
    "enable-coordination": ("true", "false", "coordination", True),
}
SCRIPTS = [*OPTIONS.values()]
VALUED = {option.name: option.help for option in SCRIPTS if option.value}
FLAGS = [option.name for option in SCRIPTS if not option.value]
each_option = pytest.mark.parametrize("name", VALUES)


def parsed(*words: str, environment: Mapping[str, str] | None = None) -> dict[str, object]:
    return vars(Options(words, environment or {}))


def refusal(*words: str, **variables: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Options(words, {PREFIX + name: value for name, value in variables.items()})
    return str(caught.value)


# ---- where a value comes from ---------------------------------------------------------------------


def test_defaults_are_flinks() -> None:
    assert parsed("2") == DEFAULTS


def test_every_option_is_in_these_tables() -> None:
    assert {*VALUES, "list"} == {*VALUED, *FLAGS, "enable-coordination"}


@each_option
def test_option_is_given_as_two_words_as_one_or_in_the_environment(name: str) -> None:
    value, _, field, expected = VALUES[name]
    as_words = [f"--{name}"] if expected is True else [f"--{name}", value]
    assert parsed("2", *as_words) == DEFAULTS | {field: expected}
    assert parsed("2", f"--{name}={value}") == DEFAULTS | {field: expected}
    assert parsed("2", environment={variable(name): value}) == DEFAULTS | {field: expected}


@each_option
def test_command_line_wins_over_the_environment(name: str) -> None:
    value, other, field, expected = VALUES[name]
    assert parsed("2", f"--{name}={value}", environment={variable(name): other})[field] == expected


@each_option
def test_last_of_two_wins_on_the_command_line(name: str) -> None:
    value, other, field, expected = VALUES[name]
    assert parsed("2", f"--{name}={other}", f"--{name}={value}")[field] == expected


def test_both_spellings_of_coordination_are_one_option() -> None:
    environment = {f"{PREFIX}ENABLE_COORDINATION": "true"}
    assert parsed("2", "--enable-coordination-mode=false", environment=environment)["coordination"] is False
    environment = {f"{PREFIX}ENABLE_COORDINATION_MODE": "true"}
    assert parsed("2", "--enable-coordination=false", environment=environment)["coordination"] is False


@pytest.mark.parametrize("words", [("2", "--timeout=3"), ("--timeout=3", "2"), ("--timeout", "3", "2")])
def test_amount_may_stand_anywhere(words: tuple[str, ...]) -> None:
    assert parsed(*words) == DEFAULTS | {"timeout": 3.0}


def test_amount_comes_from_the_environment_where_an_engine_passes_none() -> None:
    assert parsed(environment={f"{PREFIX}AMOUNT": "2"}) == DEFAULTS
    assert parsed("2", environment={f"{PREFIX}AMOUNT": "5"}) == DEFAULTS


@pytest.mark.parametrize("words", [("2", "null"), ("null", "2"), ("2", "null", "null")])
def test_null_is_ignored(words: tuple[str, ...]) -> None:
    assert parsed(*words) == DEFAULTS


@pytest.mark.parametrize("word", ["Null", "NULL", "nul", "null ", "", "none"])
def test_nothing_but_null_is_ignored(word: str) -> None:
    assert refusal("2", word).startswith(f"unexpected argument {word!r}: one amount is allowed, then options")


def test_null_after_an_option_is_its_value() -> None:
    assert parsed("2", "--log-file", "null") == DEFAULTS | {"log_file": "null"}


def test_value_may_hold_equals_signs_and_dashes() -> None:
    assert parsed("2", "--log-file=--a=b") == DEFAULTS | {"log_file": "--a=b"}
    assert parsed("2", "--log-file", "-a=b") == DEFAULTS | {"log_file": "-a=b"}


def test_empty_coordination_file_is_flinks_default() -> None:
    assert parsed("2", "--coordination-file", "") == DEFAULTS


def test_other_variables_are_not_ours() -> None:
    assert parsed("2", environment={"EXTERNALRESOURCE_AMOUNT": "x", "EXTERNALRESOURCE_GPU": "x"}) == DEFAULTS


@pytest.mark.parametrize("words", [("--list",), ("--list=true",), ("2", "--list")])
def test_listing_needs_no_amount(words: tuple[str, ...]) -> None:
    assert parsed(*words) == DEFAULTS | {"list": True, "amount": 0, "policy": "first"}


@pytest.mark.parametrize("backend", ["auto", "simulated"])
def test_simulation_goes_with_its_own_backend(backend: str) -> None:
    assert parsed("2", "--simulate=2", f"--backend={backend}")["simulate"] == "2"


# ---- what is not allowed --------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "amount"), [("0", 0), ("1", 1), ("010", 10), ("999999999", 999_999_999)])
def test_amount_is_a_whole_number(text: str, amount: int) -> None:
    assert parsed(text)["amount"] == amount


@pytest.mark.parametrize(
    "text", ["-1", "two", "1.5", "+1", "1e1", "1_0", " 1", "0x1", "²", "٣", "1000000000", "9" * 5000]
)
def test_amount_that_is_no_whole_number_is_refused(text: str) -> None:
    expected = f"the amount must be a whole number from 0 to 999999999, not {text!r}"
    assert refusal(text) == expected
    assert refusal(AMOUNT=text) == expected


def test_missing_amount_is_refused_with_both_places_for_it() -> None:
    assert refusal() == ("no amount given, as the first argument or in EXTERNALRESOURCE_GPU_AMOUNT; see --help")


def test_second_amount_is_refused() -> None:
    assert refusal("2", "3") == "unexpected argument '3': one amount is allowed, then options"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("--enable-coordination-mod", "--enable-coordination-mode"),
        ("--coordination-files=/a", "--coordination-file"),
        ("--time-out", "--timeout"),
        ("--Simulate", "--simulate"),
    ],
)
def test_unknown_option_is_refused_with_the_nearest(word: str, nearest: str) -> None:
    assert refusal("2", word) == f"unknown option {word!r}, did you mean {nearest!r}?"


def test_option_without_its_dashes_is_refused_with_the_nearest() -> None:
    assert refusal("2", "enable-coordination-mode").endswith(", did you mean '--enable-coordination-mode'?")


def test_unknown_option_that_is_near_to_none_is_refused_without_a_guess() -> None:
    assert refusal("2", "--x") == "unknown option '--x'"


def test_unknown_variable_is_refused_with_the_nearest() -> None:
    assert refusal("2", COORDINATION_FIEL="/a") == (
        "unknown option EXTERNALRESOURCE_GPU_COORDINATION_FIEL in the environment, "
        "did you mean 'EXTERNALRESOURCE_GPU_COORDINATION_FILE'?"
    )
    assert refusal(AMOUNTS="1").endswith("did you mean 'EXTERNALRESOURCE_GPU_AMOUNT'?")


@pytest.mark.parametrize("name", VALUED)
def test_option_without_its_value_is_refused(name: str) -> None:
    expected = f"option --{name} needs a value: {VALUED[name]}"
    assert refusal("2", f"--{name}") == expected
    assert refusal("2", f"--{name}", "--enable-coordination-mode") == expected


@pytest.mark.parametrize("name", [*OPTIONS, "enable-coordination"])
@pytest.mark.parametrize("own", ["--coordination-file=/x", "--coordination-file /x", "--enable-coordination-mode"])
def test_word_that_has_another_option_in_it_is_refused(name: str, own: str) -> None:
    said = f"{own}--{name}"
    known = {"enable-coordination": "enable-coordination-mode"}.get(name, name)
    assert refusal("2", *said.split()) == (
        f"the blank is missing before --{name} in {said!r}: write it there, or, where blanks get lost, as in "
        f"FLINK_PROPERTIES of Flink's Docker image, set {variable(known)}={OPTIONS[known].value or 'true'} "
        "in the environment"
    )


@pytest.mark.parametrize("more", ["--wait5", "--wait=5", "--wait=5--timeout=3", "--wait", "=true--wait5"])
def test_what_follows_the_second_option_does_not_matter(more: str) -> None:
    assert refusal("2", f"--enable-coordination-mode{more}").startswith("the blank is missing before --wait in ")


@pytest.mark.parametrize("name", VALUES)
def test_variable_that_has_another_option_in_it_is_refused(name: str) -> None:
    value = f"{VALUES[name][0]}--enable-coordination-mode"
    assert refusal("2", **{variable(name).removeprefix(PREFIX): value}) == (
        f"'{variable(name)}={value}' has a second option in it, --enable-coordination-mode: set "
        "EXTERNALRESOURCE_GPU_ENABLE_COORDINATION_MODE=true instead"
    )


@pytest.mark.parametrize("driver", [False, True])
def test_lost_blank_is_refused_to_the_driver_as_to_the_script(*, driver: bool) -> None:
    with pytest.raises(ConfigurationError, match=r"^the blank is missing before --enable-coordination-mode in "):
        Options(["2", "--coordination-file", "/x--enable-coordination-mode"], {}, driver=driver)


@pytest.mark.parametrize("value", ["1", "yes", "True", "", "on"])
@pytest.mark.parametrize("name", FLAGS)
def test_flag_is_true_or_false(name: str, value: str) -> None:
    expected = f"option --{name} must be true or false, not {value!r}"
    assert refusal("2", f"--{name}={value}") == expected
    assert refusal("2", **{name.upper().replace("-", "_"): value}) == expected


def test_unknown_backend_and_format_are_refused_with_the_nearest() -> None:
    assert refusal("2", "--backend=nvidia_smi").endswith("not 'nvidia_smi', did you mean 'nvidia-smi'?")
    assert refusal("2", "--backend=smi") == (
        "option --backend must be one of auto, nvml, nvidia-smi, simulated, not 'smi'"
    )
    assert refusal("2", "--format=Spark") == (
        "option --format must be one of flink, uuid, env, json, spark, yaml, not 'Spark', did you mean 'spark'?"
    )


@pytest.mark.parametrize("text", ["1g.10gb", "1c.3g.40gb", "7g.80gb", "1g.10gb+me", "gpus", "instances"])
def test_mig_is_instances_gpus_or_a_profile(text: str) -> None:
    assert parsed("2", f"--mig={text}")["mig"] == text


@pytest.mark.parametrize("text", ["", "gpu", "all", "1g", "10gb", "g.gb", "1g.gb", "1c.", "c.1g.10gb", "²g.1gb"])
def test_mig_that_is_nothing_of_that_is_refused(text: str) -> None:
    expected = "option --mig must be instances, gpus or a profile as `nvidia-smi -L` shows it (1g.10gb), not "
    assert refusal("2", f"--mig={text}").startswith(f"{expected}{text!r}")


def test_one_device_is_the_first_and_several_are_connected_by_default() -> None:
    assert [parsed(amount)["policy"] for amount in ("1", "2")] == ["first", "connected"]
    assert [parsed(amount, "--policy=pack")["policy"] for amount in ("1", "2")] == ["pack", "pack"]


@pytest.mark.parametrize("text", ["", "-1", "40GiB", "1.5", "²", "9" * 5000])
def test_least_memory_is_a_number_of_mib(text: str) -> None:
    expected = f"option --min-memory must be a whole number of MiB, not {text!r}"
    assert refusal("2", f"--min-memory={text}") == expected


@pytest.mark.parametrize("form", ["env", "uuid"])
def test_uuids_are_not_relative_to_a_mask(form: str) -> None:
    expected = f"--relative and --format {form} exclude each other: that names UUIDs"
    assert refusal("2", "--relative", f"--format={form}") == expected


def test_a_machine_is_described_by_a_list_only() -> None:
    assert refusal("2", "--format=yaml").startswith("--format yaml belongs to --list")
    assert parsed("--list", "--format=yaml")["format"] == "yaml"


@pytest.mark.parametrize("text", ["0", "-1", "me", "1.0", "", "1 ", "²", "9" * 5000])
def test_owner_pid_is_the_number_of_a_process(text: str) -> None:
    assert refusal("2", f"--owner-pid={text}") == f"option --owner-pid must be the number of a process, not {text!r}"


@pytest.mark.parametrize("text", ["0", "-1", "soon", "", "nan", "inf", "86401", "10 s"])
def test_timeout_is_a_number_of_seconds_up_to_a_day(text: str) -> None:
    assert refusal("2", f"--timeout={text}") == (
        f"option --timeout must be a number of seconds, above 0 and at most 86400, not {text!r}"
    )
    assert parsed("2", "--timeout=86400")["timeout"] == 86400.0


@pytest.mark.parametrize("backend", ["nvml", "nvidia-smi"])
def test_simulation_excludes_a_real_backend(backend: str) -> None:
    expected = f"--simulate 2 and --backend {backend} exclude each other"
    assert refusal("2", "--simulate=2", f"--backend={backend}") == expected


# ---- what Kubernetes sets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_METRICS", "SERVICE_PORT_HTTPS_WEB", "PORT", "PORT_443_TCP"),
        *("PORT_443_TCP_ADDR", "PORT_443_TCP_PORT", "PORT_443_TCP_PROTO", "PORT_53_UDP", "PORT_9_SCTP_ADDR"),
    ],
)
def test_variable_of_a_service_called_as_we_are_is_no_option(name: str) -> None:
    assert parsed("2", environment={PREFIX + name: "tcp://10.0.0.1:443"}) == DEFAULTS


@pytest.mark.parametrize(
    "name", ["SERVICE", "SERVICES_HOST", "PORTS", "PORT_X_TCP", "PORT_443", "PORT_443_ABC", "PORT_443_TCP_X", "HOST"]
)
def test_variable_that_only_looks_like_one_of_a_service_is_refused(name: str) -> None:
    assert refusal("2", **{name: "1"}).startswith(f"unknown option {PREFIX}{name} in the environment")


# ---- help -----------------------------------------------------------------------------------------


def test_help_shows_every_option_in_lines_that_fit_a_terminal() -> None:
    for name in (*VALUED, *FLAGS, "help"):
        assert f"\n  --{name} " in usage()
    assert max(map(len, usage().splitlines())) <= 120


def test_what_the_arguments_say_of_the_devices_wins_over_all_that_the_environment_says_of_them() -> None:
    assert parsed("2", "--simulate=2", environment={f"{PREFIX}BACKEND": "nvml"})["backend"] == "auto"
    assert parsed("2", "--backend=nvml", environment={f"{PREFIX}SIMULATE": "2"})["simulate"] is None


@pytest.mark.parametrize("path", ["claims", "./claims", '"/var/tmp/claims"'])
def test_a_coordination_file_that_depends_on_the_current_folder_is_refused(path: str) -> None:
    expected = f"option --coordination-file must be an absolute path, not {path!r}"
    assert refusal("2", "--coordination-file", path) == expected
