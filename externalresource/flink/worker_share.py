"""A Python worker's own share of its TaskManager's devices: two workers of one TaskManager never have the same one.

A share is a holder in the TaskManager's own line of the coordination file, and gone with the worker.
"""

import os
import threading
from collections.abc import Sequence

from externalresource.coordination import Claim, Coordination, identify, run_variable
from externalresource.coordination.own_claims import Grants
from externalresource.errors import ConfigurationError, DiscoveryError
from externalresource.flink import task_manager

#: What a TaskManager holds itself, each claim with its grant.
Mine = Sequence[tuple[Claim, str | None]]

_PATIENCE = 10.0  # seconds: a worker of the job before may end at this moment

#: What this process has, by coordination file; it ends with the process.
_grants: dict[str, Grants] = {}
_one_at_a_time = threading.Lock()  # a worker opens several operators at once


def _forget_in_forks() -> None:
    """A fork has what its parent has, as each process that a worker starts; another thread's lock would stay locked."""
    global _one_at_a_time  # noqa: PLW0603 - a new one is the only way to free it
    _one_at_a_time = threading.Lock()
    _grants.clear()


os.register_at_fork(after_in_child=_forget_in_forks)


def own(held: Sequence[Claim], mine: Mine, manager: int) -> list[Claim]:
    """Return what is this worker's own of what its TaskManager has: its process's, or that of one which started it.

    `held` is all that is held, `mine` what of it the TaskManager holds itself, with its grants, `manager` its pid.
    """
    pids = [pid for pid, _ in task_manager.ancestors()]
    if manager not in pids:
        raise DiscoveryError(f"the TaskManager (pid {manager}) has ended")
    workers = [identify(pid) for pid in pids[: pids.index(manager)]]  # this process, and those between the two
    names = {claim.token for claim, _ in mine}
    return [
        claim
        for claim in held
        if claim.token in names and any(not holder.root and holder.process in workers for holder in claim.holders)
    ]


def take(path: str, mine: Mine, manager: int, amount: int) -> list[Claim]:
    """Return `amount` devices that are this worker's own, taken now of the TaskManager's as far as it has not so many.

    `mine` is what the TaskManager holds by the file at `path`. ConfigurationError if there could never be so many,
    NotEnoughDevicesError if other workers still have them after 10 s.
    """
    if os.getpid() == manager:
        raise ConfigurationError(
            "exclusive devices are for process mode: in thread mode all operators are one process, the TaskManager's"
        )
    if not isinstance(amount, int) or amount < 1:
        raise ConfigurationError(f"the number of exclusive devices must be a positive integer, not {amount!r}")
    if amount > len(mine):
        raise ConfigurationError(f"{amount} exclusive devices wanted, the TaskManager has {len(mine)}")
    if not all(grant for _, grant in mine):
        raise ConfigurationError(
            f"the TaskManager's lines in {path} have no grant of which a share could be taken: another version of our "
            "discovery script wrote them; start the TaskManager again"
        )
    with _one_at_a_time:
        runs = [frozenset(grant for _, grant in mine if grant)]
        grants = _grants.get(path) or Grants(Coordination(path, str(mine[0][0].device_class), runs=runs))
        has = own(grants.coordination.held(), mine, manager)
        if len(has) < amount:
            has += grants.claim([claim for claim, _ in mine], amount - len(has), wait=_PATIENCE)
            _grants[path] = grants
        order = [device.token for device in grants.devices]
    # Each operator is told those that were taken first; what a process before this one took came before.
    return sorted(has, key=lambda claim: order.index(claim.token) if claim.token in order else -1)[:amount]


def keep_over_exec() -> dict[str, str]:
    """Let the shares outlast an exec of this process; return the variable for that program."""
    names = [name for grants in _grants.values() for name in grants.keep_over_exec()]
    return run_variable(names) if names else {}
