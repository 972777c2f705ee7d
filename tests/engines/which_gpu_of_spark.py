"""A PySpark job: the page's; then each task says which GPU it was told of, and which processes it descends from."""

import json
import os
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import embed  # type: ignore[import-not-found] # the page's
from pyspark.sql import SparkSession


def told(rows: Iterable[int]) -> Iterator[dict[str, object]]:
    yield {"said": list(embed.embed(rows)), "ancestors": ancestors(), "order": os.environ.get("CUDA_DEVICE_ORDER")}


def ancestors() -> list[int]:
    """The pids of this process's parent, of its parent, and so on."""
    pids = [os.getpid()]
    while pids[-1] > 1:
        pids.append(int(Path(f"/proc/{pids[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    return pids[1:]


def main() -> None:
    runpy.run_path(embed.__file__, run_name="__main__")
    context = SparkSession.builder.getOrCreate().sparkContext
    driver = {name: resource.addresses for name, resource in context.resources.items()}
    # As a barrier, or one executor might do the work of both.
    tasks = context.parallelize(range(2), 2).barrier().mapPartitions(told).collect()
    sys.stdout.write(f"{json.dumps({'driver': driver, 'ancestors': ancestors(), 'tasks': tasks})}\n")


if __name__ == "__main__":
    main()
