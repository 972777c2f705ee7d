"""The options of the discovery script: from its arguments, or from the environment where an engine passes none.

They are parsed by hand: argparse costs a third of what the rest of the script does, and Flink's protocol (the word
`null`, an option misspelt by its own documentation) would fight it.
"""

from externalresource.errors import ConfigurationError, did_you_mean
from externalresource_gpu import backends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PREFIX = "EXTERNALRESOURCE_GPU_"
DEFAULT_COORDINATION_FILE = "/var/tmp/flink-gpu-coordination"  # noqa: S108 - Flink's; what is opened there is checked
FORMATS = ("flink", "uuid", "env", "json", "spark", "yaml")
POLICIES = ("first", "connected", "pack", "spread")
FOREIGN_USE = ("ignore", "warn", "exclude")
_LARGEST = 999_999_999  # amount or pid; int() refuses very long ones with an error of its own
_DAY = 86400  # seconds, the longest time

# name: what --help says of its value, and what it does
VALUED = {
    "coordination-file": ("PATH", f"where the claims are kept (default: {DEFAULT_COORDINATION_FILE})"),
    "backend": ("NAME", f"{'|'.join(backends.NAMES)} (default: auto, which takes NVML, then nvidia-smi)"),
    "simulate": ("MACHINE", "a count, the name of a machine (dgx-a100) or a YAML file, instead of real devices"),
    "format": ("NAME", f"{'|'.join(FORMATS)} (default: flink, indices joined by commas)"),
    "mig": ("WHAT", "instances (default: those of a GPU with MIG, else the GPU), gpus, or a profile: 1g.10gb"),
    "min-memory": ("MIB", "only devices with that much memory in all"),
    "name": ("TEXT", "only devices with these words in their name: A100"),
    "policy": ("NAME", f"which of the free ones: {'|'.join(POLICIES)} (default: connected, for one first)"),
    "foreign-use": ("WHAT", f"{'|'.join(FOREIGN_USE)} what is in use though nobody claimed it (default: ignore)"),
    "owner-pid": ("PID", "the process that is to own the devices (default: the one that started this script)"),
    "wait": ("SECONDS", "queue for devices that others hold, first come, first served, a day at most (default: 0)"),
    "timeout": ("SECONDS", "for the driver and the lock together (default: 9, as Flink kills the script after 10)"),
    "log-file": ("PATH", "append each decision to this file, one line each"),
    "terminal": ("PATH", "where to show how long this waits; our driver passes it"),
    "witness": ("NAME", "a lock that the owner itself holds; our driver passes it"),
    "grant": ("NAME", "what is granted is recorded under this name; our driver passes it"),
}
FLAGS = {
    "enable-coordination-mode": "hand out only devices that no other living process holds",
    "until-children-exit": "keep the devices until whoever inherited the witness has ended; our driver passes it",
    "ignore-mask": "hand out what an inherited CUDA_VISIBLE_DEVICES hides, too",
    "relative": "name devices by their number under CUDA_VISIBLE_DEVICES, for frameworks that count from 0",
    "list": "show all devices, whoever holds them, and claim none",
    "topology": "ask how they are connected, too, and show it with --list",
}
# Flink's documentation writes the first where its own script wants the other and ignores the unknown in silence.
ALIASES = {"enable-coordination": "enable-coordination-mode"}

USAGE = f"""\
Usage: nvidia-gpu-discovery AMOUNT [OPTION]...
Print AMOUNT GPUs of this host in one line, as Flink's external-resource.gpu.param.discovery-script.path wants it.

Options (each also as --name=value, or in the environment as {PREFIX}NAME):
""" + "".join(
    f"  {option:<27}{text}\n"
    for option, text in [
        *((f"--{name}", text) for name, text in FLAGS.items()),
        *((f"--{name} {value}", text) for name, (value, text) in VALUED.items()),
        ("--help", "show this and exit"),
    ]
)


class Options:
    """What was asked for; ConfigurationError if that is not allowed. The arguments win over the environment."""

    def __init__(self, words: "Sequence[str]", environment: "Mapping[str, str]") -> None:
        given = _merged(_from_environment(environment), _from_words(words))
        self.list: bool = _flag(given, "list")
        self.amount: int = 0 if self.list else _amount(given.get("amount"))
        self.coordination: bool = _flag(given, "enable-coordination-mode")
        self.coordination_file: str = _absolute(given.get("coordination-file") or DEFAULT_COORDINATION_FILE)
        self.simulate: str | None = given.get("simulate")
        self.backend: str = _one_of(given, "backend", backends.NAMES)
        self.format: str = _one_of(given, "format", FORMATS)
        self.mig: str = _mig(given)
        self.min_memory: int | None = _min_memory(given)
        self.name: str | None = given.get("name")
        default = "connected" if self.amount > 1 else "first"  # which looks at no topology: that takes time
        self.policy: str = _one_of({"policy": default, **given}, "policy", POLICIES)
        self.foreign_use: str = _one_of(given, "foreign-use", FOREIGN_USE)
        self.ignore_mask: bool = _flag(given, "ignore-mask")
        self.relative: bool = _flag(given, "relative")
        self.topology: bool = _flag(given, "topology")
        self.owner_pid: int | None = _owner_pid(given)
        self.timeout: float = _seconds(given, "timeout", 9.0)
        self.wait: float = _seconds(given, "wait", 0.0, zero=True)
        self.log_file: str | None = given.get("log-file")
        self.terminal: str | None = given.get("terminal")
        self.witness: str | None = given.get("witness")
        self.grant: str | None = given.get("grant")
        self.until_children_exit: bool = _flag(given, "until-children-exit")
        if self.simulate is not None and self.backend not in ("auto", "simulated"):
            raise ConfigurationError(f"--simulate {self.simulate} and --backend {self.backend} exclude each other")
        if self.relative and self.format in ("env", "uuid"):
            raise ConfigurationError(f"--relative and --format {self.format} exclude each other: that names UUIDs")
        if self.format == "yaml" and not self.list:
            raise ConfigurationError("--format yaml belongs to --list: it describes the whole host, for --simulate")


def _merged(environment: "Mapping[str, str]", words: "Mapping[str, str]") -> dict[str, str]:
    """Return both; what was said in words wins, also over what contradicts it in the environment."""
    said = {"backend", "simulate"} & words.keys()
    kept = {name: value for name, value in environment.items() if not (said and name in ("backend", "simulate"))}
    return kept | dict(words)


def _absolute(path: str) -> str:
    if not path.startswith("/"):  # each TaskManager has its own current folder, and Flink keeps quotes in arguments
        raise ConfigurationError(f"option --coordination-file must be an absolute path, not {path!r}")
    return path


def _from_words(words: "Sequence[str]") -> dict[str, str]:
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "null":  # Flink passes it where no arguments are configured
            continue
        if not word.startswith("--"):
            if "amount" in given:
                raise ConfigurationError(
                    f"unexpected argument {word!r}: one amount is allowed, then options"
                    f"{did_you_mean(f'--{word}', _spellings())}"
                )
            given["amount"] = word
            continue
        name, equals, value = word[2:].partition("=")
        name = ALIASES.get(name, name)
        if name in FLAGS:
            given[name] = value if equals else "true"
        elif name in VALUED:
            given[name] = value if equals else _next(rest, name)
        else:
            raise ConfigurationError(f"unknown option {word!r}{did_you_mean(f'--{name}', _spellings())}")
    return given


def _next(rest: "Iterator[str]", name: str) -> str:
    value = next(rest, "--")
    if value.startswith("--"):  # a forgotten value must not swallow --enable-coordination-mode
        raise ConfigurationError(f"option --{name} needs a value: {VALUED[name][1]}")
    return value


def _from_environment(environment: "Mapping[str, str]") -> dict[str, str]:
    given: dict[str, str] = {}
    for key, value in environment.items():
        if key.startswith(PREFIX):
            name = key[len(PREFIX) :].lower().replace("_", "-")
            name = ALIASES.get(name, name)
            if name not in FLAGS and name not in VALUED and name != "amount":
                known = [_variable(known) for known in (*FLAGS, *VALUED, "amount")]
                raise ConfigurationError(f"unknown option {_shown(key)} in the environment{did_you_mean(key, known)}")
            given[name] = value
    return given


def _spellings() -> list[str]:
    return [f"--{name}" for name in (*FLAGS, *VALUED)]


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _variable(name: str) -> str:
    return PREFIX + name.upper().replace("-", "_")


def _amount(text: str | None) -> int:
    if text is None:
        raise ConfigurationError(f"no amount given, as the first argument or in {PREFIX}AMOUNT; see --help")
    if _is_number(text):
        return int(text)
    raise ConfigurationError(f"the amount must be a whole number from 0 to {_LARGEST}, not {text!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST))


def _flag(given: "Mapping[str, str]", name: str) -> bool:
    value = given.get(name, "false")
    if value not in ("true", "false"):
        raise ConfigurationError(f"option --{name} must be true or false, not {value!r}")
    return value == "true"


def _one_of(given: "Mapping[str, str]", name: str, allowed: "Sequence[str]") -> str:
    value = given.get(name, allowed[0])
    if value not in allowed:
        raise ConfigurationError(
            f"option --{name} must be one of {', '.join(allowed)}, not {value!r}{did_you_mean(value, allowed)}"
        )
    return value


def _mig(given: "Mapping[str, str]") -> str:
    text = given.get("mig", "instances")
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


def _min_memory(given: "Mapping[str, str]") -> int | None:
    text = given.get("min-memory")
    if text is None:
        return None
    if _is_number(text):
        return int(text)
    raise ConfigurationError(f"option --min-memory must be a whole number of MiB, not {text!r}")


def _owner_pid(given: "Mapping[str, str]") -> int | None:
    text = given.get("owner-pid")
    if text is None:
        return None
    if _is_number(text) and int(text) > 0:
        return int(text)
    raise ConfigurationError(f"option --owner-pid must be the number of a process, not {text!r}")


def _seconds(given: "Mapping[str, str]", name: str, default: float, *, zero: bool = False) -> float:
    text = given.get(name)
    try:
        seconds = default if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not (0 < seconds <= _DAY or (zero and seconds == 0)):
        raise ConfigurationError(
            f"option --{name} must be a number of seconds, {'0 or more' if zero else 'above 0'} and at most {_DAY}, "
            f"not {text!r}"
        )
    return seconds
