"""The options of the discovery script and of the driver, each declared once.

They come from arguments, or from the environment where an engine passes none, and are parsed by hand: argparse costs a
third of what the rest of the script does, and Flink's protocol (the word `null`, an option misspelt by its own
documentation) would fight it.
"""

import os

from externalresource.api import LONGEST, record
from externalresource.errors import ConfigurationError, did_you_mean
from externalresource_gpu import backends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PREFIX = "EXTERNALRESOURCE_GPU_"
DEFAULT_COORDINATION_FILE = "/var/tmp/flink-gpu-coordination"  # noqa: S108 - Flink's; what is opened there is checked
FORMATS = ("flink", "uuid", "env", "json", "spark", "yaml")
_BESIDE = ("", ".lock", ".queue", ".new", ".queue.new")  # the files in which claims are kept, but for the witnesses
_LARGEST = 999_999_999  # amount or pid; int() refuses very long ones with an error of its own
_FLAG, _TEXT, _NUMBER = "true or false", "a text", "a number"
_BACKEND, _FORMAT = "|".join(backends.NAMES), "|".join(FORMATS)
_POLICY, _FOREIGN_USE = "first|connected|pack|spread", "ignore|warn|exclude"
# Flink's documentation writes the first where its own script wants the other and ignores the unknown in silence.
ALIASES = {"enable-coordination": "enable-coordination-mode"}


@record
class Declared:
    """One option."""

    name: str
    #: `a text`, `a number`, `a whole number`, `true or false`, or the words that are allowed: `a|b`.
    kind: str
    #: What it does.
    help: str
    #: What --help calls its value; empty for a flag.
    value: str = ""
    default: "str | None" = None
    #: Whether the driver takes it, too.
    driver: bool = True

    @property
    def words(self) -> "list[str]":
        return self.kind.split("|")


# The order is that of --help.
# fmt: off
OPTIONS = {
    option.name: option
    for option in (
        Declared("enable-coordination-mode", _FLAG, "hand out only devices that no other living process holds"),
        Declared("ignore-mask", _FLAG, "hand out what an inherited CUDA_VISIBLE_DEVICES hides, too"),
        Declared("relative", _FLAG,
            "name devices by their number under CUDA_VISIBLE_DEVICES, for frameworks that count from 0"),
        Declared("list", _FLAG, "show all devices, whoever holds them, and claim none", driver=False),
        Declared("topology", _FLAG, "ask how they are connected, too, and show it with --list"),
        Declared("coordination-file", _TEXT, f"where the claims are kept (default: {DEFAULT_COORDINATION_FILE})",
            "PATH", DEFAULT_COORDINATION_FILE),
        Declared("backend", _BACKEND, f"{_BACKEND} (default: auto, which takes NVML, then nvidia-smi)", "NAME", "auto"),
        Declared("simulate", _TEXT,
            "a count, the name of a machine (dgx-a100) or a YAML file, instead of real devices", "MACHINE"),
        Declared(
            "format", _FORMAT, f"{_FORMAT} (default: flink, indices joined by commas)", "NAME", "flink", driver=False
        ),
        Declared("mig", "instances|gpus|a profile",
            "instances (default: those of a GPU with MIG, else the GPU), gpus, or a profile: 1g.10gb", "WHAT",
            "instances"),
        Declared("min-memory", "a whole number", "only devices with that much memory in all", "MIB"),
        Declared("name", _TEXT, "only devices with these words in their name: A100", "TEXT"),
        Declared("policy", _POLICY, f"which of the free ones: {_POLICY} (default: connected, for one first)", "NAME",
            "connected"),
        Declared("foreign-use", _FOREIGN_USE,
            f"{_FOREIGN_USE} what is in use though nobody claimed it (default: ignore)", "WHAT", "ignore"),
        Declared("owner-pid", "a whole number",
            "the process that is to own the devices (default: the one that started this script)", "PID",
            driver=False),
        Declared("wait", _NUMBER,
            "queue for devices that others hold, first come, first served, a day at most (default: 0)", "SECONDS",
            "0"),
        Declared("timeout", _NUMBER,
            "for the driver and the lock together (default: 9, as Flink kills the script after 10)", "SECONDS", "9"),
        Declared("log-file", _TEXT, "append each decision to this file, one line each", "PATH"),
    )
}
# fmt: on


def usage() -> str:
    """Return what the script says of itself."""
    shown = [(f"--{option.name} {option.value}", option.help) for option in OPTIONS.values()]
    return f"""\
Usage: nvidia-gpu-discovery AMOUNT [OPTION]...
Print AMOUNT GPUs of this host in one line, as Flink's external-resource.gpu.param.discovery-script.path wants it.

Options (each also as --name=value, or in the environment as {PREFIX}NAME):
""" + "".join(f"  {option:<27}{text}\n" for option, text in [*shown, ("--help", "show this and exit")])


class Options:
    """What was asked for; ConfigurationError if that is not allowed. The arguments win over the environment.

    The driver, which decides itself what the answer is and whose the devices are, takes other options than the script.
    """

    def __init__(self, words: "Sequence[str]", environment: "Mapping[str, str]", *, driver: bool = False) -> None:
        said = _merged(_from_environment(environment, driver=driver), _from_words(words, driver=driver))
        given = {option.name: option.default for option in OPTIONS.values()} | said
        self.list: bool = _flag(given, "list")
        self.amount: int = 0 if self.list else _amount(given.get("amount"))
        self.coordination: bool = _flag(given, "enable-coordination-mode")
        self.coordination_file: str = _absolute(given["coordination-file"] or DEFAULT_COORDINATION_FILE)
        self.simulate: str | None = given["simulate"]
        self.backend: str = _one_of(given, "backend")
        self.format: str = _one_of(given, "format")
        self.mig: str = _mig(given["mig"] or "")
        self.min_memory: int | None = _whole(given["min-memory"], "min-memory", "a whole number of MiB")
        self.name: str | None = given["name"]
        if "policy" not in said and self.amount <= 1:
            given["policy"] = "first"  # which looks at no topology: that takes time
        self.policy: str = _one_of(given, "policy")
        self.foreign_use: str = _one_of(given, "foreign-use")
        self.ignore_mask: bool = _flag(given, "ignore-mask")
        self.relative: bool = _flag(given, "relative")
        self.topology: bool = _flag(given, "topology")
        self.owner_pid: int | None = _whole(given["owner-pid"], "owner-pid", "the number of a process", least=1)
        self.timeout: float = seconds("option --timeout", given["timeout"] or "")
        self.wait: float = seconds("option --wait", given["wait"] or "", zero=True)
        self.log_file: str | None = _log_file(given["log-file"], self.coordination_file)
        if self.simulate is not None and self.backend not in ("auto", "simulated"):
            raise ConfigurationError(f"--simulate {self.simulate} and --backend {self.backend} exclude each other")
        if self.relative and self.format in ("env", "uuid"):
            raise ConfigurationError(f"--relative and --format {self.format} exclude each other: that names UUIDs")
        if self.format == "yaml" and not self.list:
            raise ConfigurationError("--format yaml belongs to --list: it describes the whole host, for --simulate")


def seconds(what: str, text: str, *, zero: bool = False) -> float:
    """Return the number of seconds that a text says."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (0 < number <= LONGEST or (zero and number == 0)):
        raise ConfigurationError(
            f"{what} must be a number of seconds, {'0 or more' if zero else 'above 0'} and at most {LONGEST:g}, "
            f"not {text!r}"
        )
    return number


def _merged(environment: "Mapping[str, str]", words: "Mapping[str, str]") -> "dict[str, str | None]":
    """Return both; what was said in words wins, also over what contradicts it in the environment."""
    said = {"backend", "simulate"} & words.keys()
    kept = {name: value for name, value in environment.items() if not (said and name in ("backend", "simulate"))}
    return {**kept, **words}


def _absolute(path: str) -> str:
    if not path.startswith("/"):  # each TaskManager has its own current folder, and Flink keeps quotes in arguments
        raise ConfigurationError(f"option --coordination-file must be an absolute path, not {path!r}")
    return path


def _log_file(path: str | None, coordination_file: str) -> str | None:
    """Return it. ConfigurationError if claims are kept there, under whatever name: its first line would ruin them."""
    if path is None:
        return None
    folder, name = os.path.split(coordination_file)
    real_folder, real_name = os.path.split(os.path.realpath(path))
    beside = real_name in [name + end for end in _BESIDE] or real_name.startswith(f"{name}.witness-")
    if (beside and _same(real_folder, folder)) or any(_same(path, coordination_file + end) for end in _BESIDE):
        raise ConfigurationError(f"option --log-file must not be {path!r}, where claims are kept: choose another file")
    return path


def _same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one is not there
        return False


def _from_words(words: "Sequence[str]", *, driver: bool) -> dict[str, str]:
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "null":  # Flink passes it where no arguments are configured
            continue
        check_blanks(word)
        if driver and word in ("-h", "--help"):
            raise _misplaced(word)
        if not word.startswith("--"):
            if "amount" in given:
                raise ConfigurationError(
                    f"unexpected argument {word!r}: one amount is allowed, then options"
                    f"{did_you_mean(f'--{word}', _spellings())}"
                )
            given["amount"] = word
            continue
        name, equals, value = word[2:].partition("=")
        option = OPTIONS.get(ALIASES.get(name, name))
        if option is None:
            raise ConfigurationError(f"unknown option {word!r}{did_you_mean(f'--{name}', _spellings())}")
        if driver and not option.driver:
            raise _misplaced(f"--{name}")
        if option.value:
            given[option.name] = value if equals else _next(rest, word, option)
        else:
            given[option.name] = value if equals else "true"
    return given


def _misplaced(option: str) -> ConfigurationError:
    return ConfigurationError(
        f"option {option} is for the script only: the driver decides itself what the answer is and who owns the "
        "devices; remove it"
    )


def _next(rest: "Iterator[str]", word: str, option: Declared) -> str:
    value = next(rest, "--")
    if value.startswith("--"):  # a forgotten value must not swallow --enable-coordination-mode
        raise ConfigurationError(f"option --{option.name} needs a value: {option.help}")
    check_blanks(f"{word} {value}")
    return value


def check_blanks(said: str) -> None:
    """Raise ConfigurationError if a second option stands in an argument: it would be taken for a part of a path."""
    if second := _second(said):
        raise ConfigurationError(
            f"the blank is missing before --{second} in {said!r}: write it there, or, where blanks get lost, as in "
            f"FLINK_PROPERTIES of Flink's Docker image, set {_setting(second)} in the environment"
        )


def _second(said: str) -> str | None:
    """Return the first option that stands in what was said of one."""
    found = [(said.find(f"--{name}", 1), -len(name), name) for name in (*OPTIONS, *ALIASES)]
    return min((each for each in found if each[0] > 0), default=(0, 0, None))[2]


def _setting(name: str) -> str:
    """Return what to type to give an option in the environment."""
    option = OPTIONS[ALIASES.get(name, name)]
    return f"{variable(option.name)}={option.value or 'true'}"


def _from_environment(environment: "Mapping[str, str]", *, driver: bool) -> dict[str, str]:
    given: dict[str, str] = {}
    for key, value in environment.items():
        if not key.startswith(PREFIX) or _of_a_service(key[len(PREFIX) :]):
            continue
        name = key[len(PREFIX) :].lower().replace("_", "-")
        name = ALIASES.get(name, name)
        option = OPTIONS.get(name)
        said = f"{key}={value}"
        if second := _second(said):
            raise ConfigurationError(f"{said!r} has a second option in it, --{second}: set {_setting(second)} instead")
        if option is None and name != "amount":
            known = [variable(known) for known in (*OPTIONS, "amount")]
            shown = key if key.isprintable() else repr(key)
            raise ConfigurationError(f"unknown option {shown} in the environment{did_you_mean(key, known)}")
        if option is None or not driver or option.driver:
            given[name] = value
        elif not option.value and value != "false":  # the others are for scripts that this process may start
            raise _misplaced(key)
    return given


def _of_a_service(name: str) -> bool:
    """Return whether Kubernetes makes such a variable for a Service that is called externalresource-gpu."""
    if name in ("SERVICE_HOST", "SERVICE_PORT", "PORT") or name.startswith("SERVICE_PORT_"):
        return True
    first, *rest = name.split("_")
    if first != "PORT" or len(rest) not in (2, 3) or not rest[0].isdecimal():
        return False
    return rest[1] in ("TCP", "UDP", "SCTP") and rest[2:] in ([], ["ADDR"], ["PORT"], ["PROTO"])


def _spellings() -> list[str]:
    return [f"--{name}" for name in OPTIONS]


def variable(name: str) -> str:
    """Return the variable that says what the option of that name says."""
    return PREFIX + name.upper().replace("-", "_")


def _amount(text: str | None) -> int:
    if text is None:
        raise ConfigurationError(f"no amount given, as the first argument or in {PREFIX}AMOUNT; see --help")
    if _is_number(text):
        return int(text)
    raise ConfigurationError(f"the amount must be a whole number from 0 to {_LARGEST}, not {text!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST))


def _whole(text: str | None, name: str, what: str, *, least: int = 0) -> int | None:
    if text is None:
        return None
    if _is_number(text) and int(text) >= least:
        return int(text)
    raise ConfigurationError(f"option --{name} must be {what}, not {text!r}")


def _flag(given: "Mapping[str, str | None]", name: str) -> bool:
    value = "false" if given[name] is None else given[name]
    if value not in ("true", "false"):
        raise ConfigurationError(f"option --{name} must be true or false, not {value!r}")
    return value == "true"


def _one_of(given: "Mapping[str, str | None]", name: str) -> str:
    value, allowed = given[name] or "", OPTIONS[name].words
    if value not in allowed:
        raise ConfigurationError(
            f"option --{name} must be one of {', '.join(allowed)}, not {value!r}{did_you_mean(value, allowed)}"
        )
    return value


def _mig(text: str) -> str:
    if text in ("instances", "gpus"):
        return text
    compute, dot, profile = text.rpartition("c.")  # 1c.3g.40gb is a compute instance of 3g.40gb
    slices, _, memory = profile.partition("g.")
    number, unit, _ = memory.partition("gb")
    if _is_number(slices) and _is_number(number) and unit and (_is_number(compute) or not dot):
        return text
    raise ConfigurationError(
        f"option --mig must be instances, gpus or a profile as `nvidia-smi -L` shows it (1g.10gb), not {text!r}"
        f"{did_you_mean(text, ('instances', 'gpus'))}"
    )
