"""The matrix of `nvidia-smi topo -m`. Touches no process and no file."""

import re

from externalresource_gpu.choosing.topology import Links

_STYLE = re.compile(r"\x1b\[[0-9;]*m")  # the first line is underlined, for a terminal and for a pipe
_GPU = re.compile(r"GPU(?P<index>[0-9]{1,9})")
_LINK = re.compile(r"NV[0-9]{1,4}|PIX|PXB|PHB|NODE|SYS|SOC")
_OLD = {"SOC": "SYS"}  # before driver 387


def parse(text: str) -> Links:
    """Return the link of each two GPUs. Network adapters, affinities and what is no known link are left out."""
    found: dict[tuple[int, int], str] = {}
    columns: list[int | None] = []
    for line in _STYLE.sub("", text).splitlines():
        label, *cells = (cell.strip() for cell in line.split("\t"))
        if not label and not columns:
            columns = [_gpu(cell) for cell in cells]
        elif (row := _gpu(label)) is not None:
            for column, cell in zip(columns, cells, strict=False):
                if column is not None and column != row and _LINK.fullmatch(cell):
                    found.setdefault((min(row, column), max(row, column)), _OLD.get(cell, cell))
    return found


def _gpu(cell: str) -> int | None:
    match = _GPU.fullmatch(cell)
    return int(match["index"]) if match else None
