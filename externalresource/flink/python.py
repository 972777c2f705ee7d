"""The Python of a Flink worker: sees the devices of its TaskManager, and is Python in all else.

For `python.executable`: code that knows nothing of this project, as PyTorch's, then uses the right GPUs. It becomes the
interpreter of the environment that it is installed in, so that pid, signals, streams and exit status are that one's.
Outside a TaskManager nothing is changed, and nothing is read but the command lines of the ancestors.

With `--exclusive NAME=AMOUNT` before all that is Python's, or EXTERNALRESOURCE_EXCLUSIVE=NAME=AMOUNT,... where an
engine takes no options, it sees so many of the devices, which no other worker of the TaskManager has.
"""

import os
import sys

from externalresource.flink import task_manager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


_OPTION, _VARIABLE = "--exclusive", "EXTERNALRESOURCE_EXCLUSIVE"


def main() -> "NoReturn":
    """Become Python. Exit with 1 and the reason if nothing tells the TaskManager's devices: all would be too many."""
    variables = dict(os.environ)
    given, words = _split(sys.argv[1:])
    found = task_manager.find()
    if found is not None:
        from externalresource.errors import ExternalResourceError
        from externalresource.flink import operators, worker_end, worker_share

        try:
            variables |= operators.environment(found, _exclusive(given))
            variables |= worker_share.keep_over_exec()
            worker_end.end_with_over_exec(found.pid)
        except ExternalResourceError as error:
            sys.exit(f"externalresource-python: {error}")
    os.execve(sys.executable, [sys.executable, *words], variables)  # noqa: S606 - to become Python is the point


def _split(words: "Sequence[str]") -> "tuple[list[str], list[str]]":
    """Return the values of our option, and the words that are Python's own."""
    given, rest = [], list(words)
    while rest and rest[0].partition("=")[0] == _OPTION:
        _, equals, value = rest.pop(0).partition("=")
        given.append(value if equals or not rest else rest.pop(0))
    return given, rest


def _exclusive(given: "Sequence[str]") -> dict[str, int]:
    """Return the amounts by name, of the option or else the variable; ConfigurationError if they are not like gpu=1."""
    from externalresource.errors import ConfigurationError

    source = _OPTION if given else _VARIABLE
    amounts: dict[str, int] = {}
    for text in given or filter(None, os.environ.get(_VARIABLE, "").split(",")):
        name, _, amount = text.partition("=")
        if not (name and amount.isascii() and amount.isdigit() and len(amount) < 10 and int(amount)):  # noqa: PLR2004
            raise ConfigurationError(f"{source}: {text!r} is not allowed: write it like gpu=1")
        if name in amounts:
            raise ConfigurationError(f"{source}: {name!r} is given twice")
        amounts[name] = int(amount)
    return amounts


if __name__ == "__main__":
    main()
