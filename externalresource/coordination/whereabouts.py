"""What an operator is told of a claim, and whether he may strike it out."""

import os
import re

from externalresource.coordination.claims import Holding, is_here, pid_here, program_of
from externalresource.coordination.process import Owner
from externalresource.errors import ExternalResourceError


def row(holding: Holding) -> dict[str, object]:
    """Return what `status` shows of a claim."""
    pid = pid_here(holding.owner) if holding.living else None
    return {  # in the order of what must find room on a terminal
        "device": holding.claim.token,
        "pid": pid or holding.owner.pid,
        "state": "living" if holding.living else "dead",
        **({"share_of": pid_here(holding.share_of) or holding.share_of.pid} if holding.share_of else {}),
        "user": _user(holding.owner.uid),
        "program": program_of(holding.owner),
        "since": holding.since,
        "container": _container(holding.owner, pid),
        "uuid": holding.claim.uuid,
    }


def _container(owner: Owner, pid: int | None) -> str | None:
    """Return the id by which a container runtime knows an owner's container, else that of its pid namespace."""
    if owner.pid_namespace is None or is_here(owner):
        return None
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            found = re.search(r"[0-9a-f]{64}", file.read())
    except OSError:
        found = None
    return found.group()[:12] if found else f"pid:[{owner.pid_namespace}]"


def _user(uid: int | None) -> str | None:
    import pwd

    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def may_strike(holding: Holding, *, force: bool) -> bool:
    """Return True if the owner is dead, or the user insists and could end it as well; raise if not."""
    if not holding.living:
        return True
    who = f"pid {holding.owner.pid} ({program_of(holding.owner) or 'of an unknown program'})"
    if not force:
        raise ExternalResourceError(f"{who} lives and holds {holding.claim.token}: end it, or use --force")
    if not _may_signal(pid_here(holding.owner)):
        raise ExternalResourceError(f"{who} lives and holds {holding.claim.token}, and you may not signal it")
    return True


def _may_signal(pid: int | None) -> bool:
    try:
        os.kill(pid or 1, 0)  # of a process that is not seen from here: as if it were init's
    except PermissionError:
        return False
    except ProcessLookupError:
        pass  # it has ended this moment
    return True
