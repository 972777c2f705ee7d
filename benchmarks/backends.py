"""How long NVML takes beside nvidia-smi, each asked in turn as the discovery script does. Needs an NVIDIA GPU.

The first of each is shown by itself: where the persistence mode is off and nobody uses the GPUs, it initializes them,
and so does every later one.
"""

import statistics
import subprocess
import sys
import time

import click

import contenders
from externalresource.errors import DiscoveryError
from externalresource_gpu import backends

_PATIENCE = 120  # seconds: cold drivers of many GPUs have been seen to take half a minute


def milliseconds(backend: str) -> float:
    """Return how long one look at the GPUs takes."""
    began = time.perf_counter()
    backends.create(backend).devices(time.monotonic() + _PATIENCE)
    return (time.perf_counter() - began) * 1000


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True)
def main(runs: int) -> None:
    print(contenders.machine())
    try:
        first = {name: milliseconds(name) for name in ("nvidia-smi", "nvml")}
        pairs = [(milliseconds("nvml"), milliseconds("nvidia-smi")) for _ in range(runs)]
    except DiscoveryError as error:
        sys.exit(f"backends.py: {error}")
    print(subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, text=True).stdout, end="")
    print(f"{'':>10}  first ms  then ms")
    for name, column in (("nvml", 0), ("nvidia-smi", 1)):
        print(f"{name:>10}  {first[name]:>8.0f}  {statistics.median(pair[column] for pair in pairs):>7.1f}")
    print(f"NVML to nvidia-smi: {statistics.median(nvml / smi for nvml, smi in pairs):.2f} (median of {runs} pairs)")


if __name__ == "__main__":
    main()
