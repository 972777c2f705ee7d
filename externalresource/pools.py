"""Devices for each process of a pool: an initializer for those of `concurrent.futures` and `multiprocessing`."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack

from externalresource.context import RuntimeContext, claim
from externalresource.errors import ConfigurationError, ExternalResourceError

_BREATH = 2.0  # seconds between a refusal and the next worker, which multiprocessing.Pool starts in place of this one


def claim_for_worker(
    name: str = "gpu",
    amount: int = 1,
    options: Mapping[str, object] | None = None,
    *,
    driver_factory: str | None = None,
) -> RuntimeContext:
    """Claim devices for this process until it ends, however it ends, and set the environment that names them.

    To be called before anything in the process uses the devices: by a pool as the initializer of its workers, with
    `initargs=("gpu", 1, {"wait": "60"})`. The arguments are those of `externalresource.claim`. An initializer that
    fails breaks a ProcessPoolExecutor. A multiprocessing.Pool starts another worker for ever: there the refusal stands
    on stderr, every two seconds. A pool of threads is refused: all of them share one environment.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            f"{name!r} is claimed for a whole process, and this is one of its threads, which all share one "
            "environment: use a pool of processes"
        )
    try:
        with ExitStack() as undoing:
            context = undoing.enter_context(claim(name, amount, driver_factory=driver_factory, options=options))
            os.environ.update(context.environment())
            undoing.pop_all()
            return context
    except ExternalResourceError as error:
        if "PoolWorker-" not in multiprocessing.current_process().name:  # as multiprocessing.Pool names its workers
            raise
        sys.stderr.write(f"externalresource: {multiprocessing.current_process().name} gets no {name!r}: {error}\n")
        sys.stderr.flush()
        time.sleep(_BREATH)
        raise SystemExit(1) from None
