"""A program that stands in for nvidia-smi."""

from collections.abc import Callable
from pathlib import Path

from externalresource_gpu.backends.nvidia_smi.backend import FIELDS, NvidiaSmi

StandIn = Callable[[str], NvidiaSmi]

# Answers any query from a table with a header, as nvidia-smi would.
REPLAY = """
import csv
units = "nounits" not in " ".join(argv)
rows = list(csv.reader(open({table!r}), skipinitialspace=True))
column = {{name.partition(" [")[0]: number for number, name in enumerate(rows[0])}}
[wanted] = [word.partition("=")[2].split(",") for word in argv if word.startswith("--query-gpu=")]
for field in wanted:
    if field not in column:
        print('Field "' + field + '" is not a valid field to query.\\n')
        sys.exit(2)
def cell(row, field):
    value = row[column[field]]
    unit = rows[0][column[field]].partition(" [")[2].rstrip("]")
    return value if units or not unit else value.removesuffix(" " + unit)
for row in rows[1:]:
    print(", ".join(cell(row, field) for field in wanted))
"""


def row(**cells: str) -> str:
    """One line of the answer to FIELDS, of a healthy A100 unless said otherwise."""
    healthy = {
        "gpu_recovery_action": "None",
        "mig.mode.current": "Disabled",
        "index": "0",
        "uuid": f"GPU-{cells.get('index', '0')}",
        "pci.bus_id": "00000000:07:00.0",
        "memory.total": "40960",
        "memory.used": "17",
        "compute_mode": "Default",
        "utilization.gpu": "0",
        "temperature.gpu": "31",
        "name": "NVIDIA A100-SXM4-40GB",
    }
    return ", ".join((healthy | {name.replace("__", "."): cell for name, cell in cells.items()})[f] for f in FIELDS)


def table(tmp_path: Path, fields: tuple[str, ...], *rows: str) -> str:
    """A recording made by hand, with units as nvidia-smi writes them."""
    path = tmp_path / "table.csv"
    units = {field: f"{field} [MiB]" for field in ("memory.total", "memory.used")}
    path.write_text("\n".join([", ".join(units.get(field, field) for field in fields), *rows]) + "\n")
    return REPLAY.format(table=str(path))
