"""A device as those that claim one see it, without anything of a driver, and a claim as the file says it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from externalresource.coordination import Claim, ledger
from externalresource.records import replace


@dataclass(frozen=True)
class Device:
    token: str
    uuid: str | None = None
    parent_uuid: str | None = None
    parent_token: str | None = None


def claim_of(token: str, pid: int, details: Mapping[str, Any] | None = None) -> Claim:
    """Return the claim that a line with these columns is, as if it had not been written yet."""
    text = f" {json.dumps(details)}" if details else ""
    (claim,) = ledger.parse(f"{ledger.quoted(token)} {pid}{text}", "a test")
    return replace(claim, line="", flinks=False)
