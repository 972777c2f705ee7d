"""Rows as an aligned table for people. Pure: it touches no terminal."""

from collections.abc import Mapping, Sequence

from externalresource.errors import printable

_GAP = 2


def table(rows: Sequence[Mapping[str, object]], room: int | None = None) -> tuple[list[str], list[str]]:
    """Return the lines, the heading first, and the headings of columns for which there was no room.

    The columns are the keys, each as far to the left as it stands in any row. `room` is the width of a line in
    characters, None for any; what does not fit is left out from the right.
    """
    places: dict[str, int] = {}
    for row in rows:
        for place, key in enumerate(row):
            places[key] = min(place, places.get(key, place))
    keys = sorted(places, key=places.__getitem__)
    columns = [[_heading(key), *(_cell(row.get(key)) for row in rows)] for key in keys]
    widths = [max(map(len, column)) for column in columns]
    shown = len(columns)
    while room is not None and shown > 1 and sum(widths[:shown]) + _GAP * (shown - 1) > room:
        shown -= 1
    padded = [[cell.ljust(width + _GAP) for cell in column] for column, width in zip(columns, widths, strict=True)]
    lines = ["".join(cells).rstrip() for cells in zip(*padded[:shown], strict=True)]
    return lines, [column[0] for column in columns[shown:]]


def _heading(key: str) -> str:
    return key.upper().replace(".", " ").replace("_", " ")


def _cell(value: object) -> str:
    return printable("-" if value is None else str(value))
