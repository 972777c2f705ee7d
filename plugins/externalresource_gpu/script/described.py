"""The driver's options as they are shown to people: those of the discovery script, with the defaults that it has."""

from collections.abc import Iterable
from typing import Any

from externalresource.api import Option
from externalresource_gpu import backends
from externalresource_gpu.script.options import FLAGS, FOREIGN_USE, POLICIES, Options

_KINDS = {
    "backend": "|".join(backends.NAMES),
    "foreign-use": "|".join(FOREIGN_USE),
    "mig": "instances|gpus|a profile",
    "min-memory": "a whole number",
    "policy": "|".join(POLICIES),
    "timeout": "a number",
    "wait": "a number",
}


def options(names: Iterable[str]) -> list[Option]:
    """Return these options of the discovery script."""
    defaults = Options(["2"], {})  # for one device the policy is another, which is its own business
    return [
        Option(name, "true or false", "false", required=False)
        if name in FLAGS
        else Option(name, _KINDS.get(name, "a text"), _shown(getattr(defaults, name.replace("-", "_"))), required=False)
        for name in names
    ]


def _shown(default: Any) -> str | None:
    return f"{default:g}" if isinstance(default, float) else default and str(default)
