"""A Python worker's own share of its TaskManager's devices: two workers of one TaskManager never have the same one.

A share is a holder in the TaskManager's own line of the coordination file, and gone with the worker.
"""

import os
import threading
from collections.abc import Sequence

from externalresource import task_manager
from externalresource.coordination import Claim, Coordination, Holding, identify, run_variable
from externalresource.errors import ConfigurationError
from externalresource.grants import Grants

_PATIENCE = 10.0  # seconds: a worker of the job before may end at this moment

#: What this process has, by coordination file; it ends with the process.
_grants: dict[str, Grants] = {}
_one_at_a_time = threading.Lock()  # a worker opens several operators at once


def own(held: Sequence[Holding], manager: int) -> list[Claim]:
    """Return what is this worker's own of all that is held: its process's, or that of one which started it.

    `manager` is the pid of its TaskManager.
    """
    workers = [identify(pid) for pid in _workers(manager)]
    shares = [holding for holding in held if holding.share_of and any(map(holding.owner.same_process, workers))]
    return list({holding.claim.token: holding.claim for holding in shares}.values())


def take(path: str, held: Sequence[Holding], mine: Sequence[Holding], manager: int, amount: int) -> list[Claim]:
    """Return `amount` devices that are this worker's own, taken now of the TaskManager's as far as it has not so many.

    `held` is all that the file at `path` tells, `mine` what of it is the TaskManager's. ConfigurationError if there
    could never be so many, NotEnoughDevicesError if other workers still have them after 10 s.
    """
    if os.getpid() == manager:
        raise ConfigurationError(
            "exclusive devices are for process mode: in thread mode all operators are one process, the TaskManager's"
        )
    if amount < 1:
        raise ConfigurationError(f"the number of exclusive devices must be positive, not {amount}")
    if amount > len(mine):
        raise ConfigurationError(f"{amount} exclusive devices wanted, the TaskManager has {len(mine)}")
    with _one_at_a_time:
        has = own(held, manager)
        wanted = amount - len(has)
        if wanted > 0:
            has += _grants_of(path, mine).claim([holding.claim for holding in mine], wanted, wait=_PATIENCE)
    return has[:amount]


def keep_over_exec() -> dict[str, str]:
    """Let the shares outlast an exec of this process; return the variable for that program."""
    names = [name for grants in _grants.values() for name in grants.keep_over_exec()]
    return run_variable(names) if names else {}


def _grants_of(path: str, mine: Sequence[Holding]) -> Grants:
    names = frozenset(holding.owner.grant for holding in mine if holding.owner.grant)
    device_class = mine[0].claim.details["class"]
    return _grants.setdefault(path, Grants(Coordination(path, device_class, runs=[names])))


def _workers(manager: int) -> list[int]:
    """Return this process and those between it and its TaskManager."""
    pids = [pid for pid, _ in task_manager.ancestors()]
    return pids[: pids.index(manager)]
