"""A Python worker's own share of its TaskManager's devices: two workers of one TaskManager never have the same one.

A share is a holder in the TaskManager's own line of the coordination file, and gone with the worker. Most workers of
PyFlink do not end when their TaskManager is killed, and would keep their share for ever: those that have one are ended.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Sequence

from externalresource import task_manager
from externalresource.coordination import Claim, Coordination, Holding, identify, run_variable
from externalresource.errors import ConfigurationError
from externalresource.grants import Grants

_PATIENCE = 10.0  # seconds: a worker of the job before may end at this moment
_GRACE = 5.0  # seconds that a worker has to end by itself when its TaskManager has

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


def take(path: str, mine: Sequence[Holding], manager: int, amount: int) -> list[Claim]:
    """Return `amount` devices that are this worker's own, taken now of the TaskManager's as far as it has not so many.

    `mine` is what the TaskManager holds by the file at `path`. ConfigurationError if there could never be so many,
    NotEnoughDevicesError if other workers still have them after 10 s.
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
        grants = _grants.get(path) or Grants(Coordination(path, mine[0].claim.details["class"], runs=[_names(mine)]))
        has = own(grants.coordination.held(), manager)
        if len(has) < amount:
            if path not in _grants:
                threading.Thread(target=_end_with, args=(manager, os.getpid()), daemon=True).start()
                _grants[path] = grants
            has += grants.claim([holding.claim for holding in mine], amount - len(has), wait=_PATIENCE)
    return has[:amount]


def keep_over_exec(manager: int) -> dict[str, str]:
    """Let the shares outlast an exec of this process; return the variable for that program.

    A process beside it ends it with its TaskManager, as no thread outlasts an exec. Nothing happens if it has none.
    """
    names = [name for grants in _grants.values() for name in grants.keep_over_exec()]
    if not names:
        return {}
    _start_beside(manager, os.getpid())
    return run_variable(names)


def _start_beside(manager: int, worker: int) -> None:
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:  # whose child the worker never sees
            os.closerange(0, os.sysconf("SC_OPEN_MAX"))
            _end_with(manager, worker)
    finally:
        os._exit(0)


def _end_with(manager: int, worker: int) -> None:
    """Kill the worker if it lives on for some seconds when its TaskManager has ended."""
    with contextlib.suppress(OSError):  # the worker has ended, or this kernel has no pidfds
        of_worker = os.pidfd_open(worker)
        with contextlib.suppress(ProcessLookupError):
            if of_worker in select.select([os.pidfd_open(manager), of_worker], [], [])[0]:
                return
        if not select.select([of_worker], [], [], _GRACE)[0]:
            signal.pidfd_send_signal(of_worker, signal.SIGKILL)


def _names(mine: Sequence[Holding]) -> frozenset[str]:
    return frozenset(holding.owner.grant for holding in mine if holding.owner.grant)


def _workers(manager: int) -> list[int]:
    """Return this process and those between it and its TaskManager."""
    pids = [pid for pid, _ in task_manager.ancestors()]
    return pids[: pids.index(manager)]
