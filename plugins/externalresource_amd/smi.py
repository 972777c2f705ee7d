"""Ask amd-smi or rocm-smi, and get JSON or one line that says why there is none."""

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from externalresource.api import Child, Overdue
from externalresource.errors import DiscoveryError
from externalresource_amd.masks import VARIABLES

_SHOWN = 200  # characters of what a command said
_NO_DRIVER = ("driver not initialized", "not found in modules", "amdsmi_status_no_drv", "driver not loaded")
_NO_PERMISSION = ("permission", "required groups", "amdsmi_status_no_perm")


class UnavailableError(DiscoveryError):
    """The command did not answer as it should: another one may."""


class MissingError(UnavailableError):
    """There is no such command."""


def ask(program: str, questions: Sequence[Sequence[str]], deadline: float) -> list[Any]:
    """Return the JSON that the program prints for each of these arguments; it is asked all at once.

    Raises UnavailableError; DiscoveryError if the time is up.
    """
    began = time.monotonic()
    children: list[Child] = []
    try:
        for question in questions:
            children.append(_start(program, question))  # noqa: PERF401 - those that run are ended if one does not
        return [_answer([program, *question], children.pop(0).result(deadline)) for question in questions]
    except Overdue as overdue:
        stuck = f"; it hangs in the kernel as pid {overdue.survivor}" if overdue.survivor else ""
        raise DiscoveryError(
            f"{program} did not answer within {time.monotonic() - began:.1f} s{stuck}; see the option timeout"
        ) from None
    finally:
        _end(children)


def _start(program: str, question: Sequence[str]) -> Child:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}  # it is to tell of all
    try:
        return Child([program, *question], environment)
    except OSError as error:
        kind = MissingError if isinstance(error, FileNotFoundError) else UnavailableError
        raise kind(f"{program} cannot be started: {error.strerror}") from None


def _end(children: Iterable[Child]) -> None:
    """Kill what still runs: nobody would read it."""
    for child in children:
        try:
            child.result(0)
        except (Overdue, ChildProcessError):
            continue


def _answer(command: Sequence[str], result: tuple[int, str, str]) -> Any:
    status, out, err = result
    found = parse(out)
    if isinstance(found, dict) and "error" in found:
        raise _failed(command, f"{found['error']}")
    if isinstance(found, list | dict):
        return found
    if status == 0 and out.strip() and not _reason(err + out):
        raise UnavailableError(f"{' '.join(command)} printed no JSON but {_said(out)}")
    raise _failed(command, err if err.strip() else out, status)


def parse(text: str) -> Any:
    """Return the JSON that begins and ends with a line, after and before lines that are none; None if there is none.

    Warnings stand before it. A part of what was cut off never counts: its lines are indented, or it is not at the
    beginning of one.
    """
    decoder = json.JSONDecoder()
    for match in re.finditer(r"^[\[{]", text, re.MULTILINE):
        try:
            found, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if not text[end:].partition("\n")[0].strip():
            return found
    return None


def _failed(command: Sequence[str], said: str, status: int = 0) -> UnavailableError:
    what = f"{' '.join(command)} failed"
    how = f" (killed by signal {-status})" if status < 0 else f" (exit status {status})" if status else ""
    return UnavailableError(f"{what}{how}: {_reason(said)}{_said(said) if said.strip() else 'it said nothing'}")


def _reason(said: str) -> str:
    lower = said.lower()
    if any(word in lower for word in _NO_DRIVER):
        return "the amdgpu driver is not loaded (try: modprobe amdgpu): "
    if any(word in lower for word in _NO_PERMISSION):
        return "this user may not look at the GPUs (it should be in the groups render and video): "
    return ""


def _said(text: str) -> str:
    """Return the words in one line: of a traceback the last one, which is the error."""
    lines = text.strip().splitlines()
    words = " ".join(" ".join(lines[-1:] if "Traceback (most recent call last):" in text else lines).split())
    return repr(words if len(words) <= _SHOWN else f"{words[:_SHOWN]}...")
