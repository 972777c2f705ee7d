"""What an operator is told of a claim, and whether he may strike it out."""

import os
import re
from collections.abc import Iterable

from externalresource.coordination import (
    Claim,
    Holder,
    Process,
    above,
    inside,
    is_here,
    pid_here,
    process as processes,
    program_of,
)
from externalresource.errors import ExternalResourceError


def rows(claims: Iterable[Claim]) -> list[dict[str, object]]:
    """Return what `status` shows: each holder of each claim."""
    return [row(claim, holder) for claim in claims for holder in claim.holders]


def row(claim: Claim, holder: Holder) -> dict[str, object]:
    """Return what `status` shows of one holder of a claim."""
    process, outer, left_by = holder.process, above(claim, holder), holder.left_by
    pid = pid_here(process) if holder.living else None
    return {  # in the order of what must find room on a terminal
        "device": claim.token,
        "pid": pid or process.pid,
        "state": "living" if holder.living else "dead",
        **({"share_of": pid_here(outer.process) or outer.process.pid} if outer else {}),
        **({"left_by": f"{left_by.get('program')} (pid {left_by.get('pid')})"} if left_by else {}),
        "user": _user(process.uid),
        "program": program_of(process),
        "since": holder.since,
        "container": _container(process, pid),
        "uuid": claim.uuid,
    }


def _container(process: Process, pid: int | None) -> str | None:
    """Return the id by which a container runtime knows a process's container, else that of its pid namespace."""
    if process.pid_namespace is None or is_here(process):
        return None
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            found = re.search(r"[0-9a-f]{64}", file.read())
    except OSError:
        found = None
    return found.group()[:12] if found else f"pid:[{process.pid_namespace}]"


def _user(uid: int | None) -> str | None:
    import pwd

    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def may_strike(claim: Claim, holder: Holder, *, force: bool) -> bool:
    """Return True if the holder is dead, or the user insists and could end it as well; raise if not.

    From a container nobody ends a holder that cannot be seen there: it may be another user's.
    """
    if not holder.living:
        return True
    process, here = holder.process, processes.observer()
    who = f"pid {process.pid} ({program_of(process) or 'of an unknown program'})"
    if here.in_container and not here.can_judge(process):
        raise ExternalResourceError(
            f"{who} holds {claim.token} and cannot be seen from this container, where it counts as living: release it "
            "on the host"
        )
    if not force:
        raise ExternalResourceError(
            f"{who} lives and holds {claim.token}: end it; use --force only if it does not use the device"
        )
    if not _may_end(process, pid_here(process)):
        raise ExternalResourceError(f"{who} lives and holds {claim.token}, and you may not signal it")
    return True


def _may_end(process: Process, pid: int | None) -> bool:
    if pid is None:  # it has ended, and others of its user use what it has left
        return inside.is_its_user(process, processes.observer())
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass  # it has ended this moment
    return True
