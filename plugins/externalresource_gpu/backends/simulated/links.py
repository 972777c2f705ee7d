"""How the GPUs of a simulated machine are connected, as a person writes it down."""

import re
from collections.abc import Sequence
from itertools import combinations

from externalresource_gpu.backends.simulated.yaml_file import Entry
from externalresource_gpu.choosing.topology import Links

#: In a matrix. The `?` that we show to people means something to YAML.
UNKNOWN = "N/A"
LEVEL = re.compile(r"NV[1-9]\d?|PSB|PIX|PXB|PHB|NODE|SYS|SOC", re.ASCII)  # PSB and SOC are of old drivers
_LEVELS = "NV1, NV2, ... (so many NVLinks), PIX, PXB, PHB, NODE or SYS"


def read(entry: Entry, indices: Sequence[int]) -> Links:
    """Return the links of a matrix, whose rows are named; or the one that all pairs have."""
    if entry.scalar is not None:
        level = _level(entry, entry.scalar)
        return dict.fromkeys(combinations(indices, 2), level)
    rows = entry.fields([f"GPU{index}" for index in indices])
    columns = [int(name.removeprefix("GPU")) for name in rows]
    links: dict[tuple[int, int], str] = {}
    seen: dict[tuple[int, int], str] = {}
    for index, row in zip(columns, rows.values(), strict=True):
        for other, cell in zip(columns, _cells(row, index, columns), strict=True):
            pair = min(index, other), max(index, other)
            if seen.setdefault(pair, cell) != cell:
                raise row.wrong(f"GPU{index} to GPU{other} is {cell} here, and {seen[pair]} the other way round")
            if index != other and cell != UNKNOWN:
                links[pair] = _level(row, cell)
    return links


def _cells(row: Entry, index: int, columns: Sequence[int]) -> list[str]:
    cells = (row.scalar or "").split()
    if len(cells) != len(columns):
        raise row.wrong(f"GPU{index} must have {len(columns)} links, one for each row, not {len(cells)}")
    if [other for other, cell in zip(columns, cells, strict=True) if cell == "X"] != [index]:
        raise row.wrong(f"GPU{index} must have X, the link to itself, in column {columns.index(index) + 1} alone")
    return cells


def _level(entry: Entry, word: str) -> str:
    if not LEVEL.fullmatch(word):
        raise entry.wrong(f"a link must be {_LEVELS}, not {word!r}; N/A in a matrix is an unknown one")
    return word
