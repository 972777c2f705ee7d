"""What the demos show, as text."""

import sys
from collections.abc import Collection, Sequence

from externalresource.coordination import Claim

LIBRARIES = {"cupy": "CuPy", "torch": "PyTorch", "numpy": "NumPy"}
_INK = 8  # of 16: darker pixels are shown
# Two pixels, one above the other, by which of them are dark.
_BLOCKS = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
_ASCII = {(False, False): " ", (True, False): "'", (False, True): ".", (True, True): ":"}


def pictures(images: Sequence[Sequence[Sequence[float]]], answers: Sequence[int]) -> str:
    """Return digits side by side, each above what it was read as."""
    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    halves = _BLOCKS if utf8 else _ASCII
    lines = (
        "".join(
            "  "
            + "".join(halves[above > _INK, below > _INK] for above, below in zip(*image[row : row + 2], strict=True))
            for image in images
        ).rstrip()
        for row in range(0, 8, 2)
    )
    return "\n".join([*lines, "".join(f"  {answer:^8}" for answer in answers).rstrip()])


def claims(held: Collection[Claim]) -> str:
    rows = (  # of a line of Flink's script neither program nor time is known
        f"  {claim.token:<3}  {holder.process.pid:<7}  {holder.process.program or '?':<12}  "
        f"{holder.since or '?':<20}  "
        f"{'lives' if holder.living else 'is gone'}"
        for claim in held
        for holder in claim.holders
    )
    return "\n".join(["  GPU  PID      program       since                 the process", *rows])


def count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
