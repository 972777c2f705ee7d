"""Real lines, changed: words exchanged for odd ones, lines lost and doubled, outputs cut off and mixed."""

import random
import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\s,;:()/\"'{}\[\]<>=]+")
_NUMBERS = ("-1", "0", "00", "+1", "1.5", "1e9", "NaN", "7" * 10, "9" * 20, "9" * 5000, "0" * 5000, "²", "٣")
_CELLS = ("", "N/A", "[N/A]", "[Not Supported]", "[GPU is lost]", "[GPU requires reset]", "[Unknown Error]", "X")
_VALUES = ("null", "true", "[]", "{}", '""', "unknown", "Enabled", "Disabled", "NV0", "NV1", "NV99999", "SYS", "PIX")
_NAMES = ("GPU-", "MIG-", "GPU", "MIG", "GPU0", "NIC0", "GPU 0:", "Device", "(UUID:", "WARNING:", "gpus:", "--", "=")
_CHARACTERS = ("\0", "\t", "\r", "\n", "\x1b[4m", "\x85", "\u2028", "\ufeff", "\xa0", " ", ",", "&", "*", "!")
#: What stands where something else should.
ODD = (*_NUMBERS, *_CELLS, *_VALUES, *_NAMES, *_CHARACTERS)


def mutate(seeds: Sequence[str], chance: random.Random) -> str:
    """Return one of the seeds, changed in some places."""
    text = chance.choice(seeds)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        text = chance.choice(_EDITS)(text, seeds, chance)
    return text


def _exchange_word(text: str, _seeds: Sequence[str], chance: random.Random) -> str:
    words = list(_WORD.finditer(text))
    if not words:
        return chance.choice(ODD)
    word = chance.choice(words)
    other = chance.choice(words)[0] if chance.random() < 1 / 4 else chance.choice(ODD)
    return text[: word.start()] + other + text[word.end() :]


def _put_in(text: str, _seeds: Sequence[str], chance: random.Random) -> str:
    place = chance.randint(0, len(text))
    return text[:place] + chance.choice(ODD) + text[place + chance.choice((0, 0, 1, 5)) :]


def _change_lines(text: str, _seeds: Sequence[str], chance: random.Random) -> str:
    lines = text.split("\n")
    place = chance.randrange(len(lines))
    changed = chance.choice(([], [lines[place]] * 2, [lines[place], chance.choice(lines)], [f" {lines[place]}"]))
    return "\n".join([*lines[:place], *changed, *lines[place + 1 :]])


def _cut_off(text: str, _seeds: Sequence[str], chance: random.Random) -> str:
    place = chance.randint(0, len(text))
    return chance.choice((text[:place], text[place:]))


def _mix(text: str, seeds: Sequence[str], chance: random.Random) -> str:
    other = chance.choice(seeds)
    return text[: chance.randint(0, len(text))] + other[chance.randint(0, len(other)) :]


def _repeat(text: str, _seeds: Sequence[str], chance: random.Random) -> str:
    place = chance.randint(0, len(text))
    part = text[place : place + chance.choice((1, 1, 8, 40))]
    return text[:place] + part * chance.choice((2, 3, 30, 2000 // (len(part) or 1))) + text[place:]


_EDITS = (*[_exchange_word] * 4, *[_put_in] * 3, *[_change_lines] * 2, _cut_off, _mix, _repeat)
