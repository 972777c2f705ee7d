"""The digits that the demos read, and the classifier that learns to: one code for every array library."""

import importlib
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from externalresource.errors import ExternalResourceError

_LEARNED = 1200  # of the 1,797 digits; the others are read
_STEPS, _RATE = 100, 5.0
_SEED = 47  # what comes first is then not twice the same digit


@dataclass(frozen=True, slots=True)
class Digits:
    images: Any  # NumPy's; 8 rows of 8 pixels each, from 0 (paper) to 16 (ink)
    labels: Any


def check_installed() -> None:
    if not all(map(importlib.util.find_spec, ("numpy", "sklearn"))):
        raise ExternalResourceError("the demo needs NumPy and scikit-learn: pip install 'externalresource[demo]'")


def learned_and_unread(number: int) -> tuple[Digits, Digits]:
    """Return the digits to learn from and those to read, shuffled: differently for each number, always the same."""
    from sklearn.datasets import load_digits

    every = load_digits()
    order = random.Random(_SEED + number).sample(range(len(every.target)), len(every.target))  # noqa: S311 - no secret
    first, rest = order[:_LEARNED], order[_LEARNED:]
    return Digits(every.images[first], every.target[first]), Digits(every.images[rest], every.target[rest])


class Classifier:
    """Reads digits, on the GPU that CUDA shows first to the first of the array libraries that works here."""

    def __init__(self, libraries: Sequence[str], learned: Digits) -> None:
        self._xp, self._where = _array_module(libraries)
        self.library: str = self._xp.__name__
        targets = self._xp.asarray((learned.labels[:, None] == range(10)) * 1.0, **self._where)
        self._weights = _train(self._xp, self._pixels(learned.images), targets)

    def read(self, images: Any) -> list[int]:
        answers: list[int] = (self._pixels(images) @ self._weights).argmax(1).tolist()
        return answers

    def _pixels(self, images: Any) -> Any:
        return self._xp.asarray(images.reshape(len(images), -1) / 16, **self._where)


def _array_module(names: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Return the first library that works here, and the arguments that put an array onto the GPU."""
    for name in names:
        where = {"device": "cuda"} if name == "torch" else {}
        try:
            xp = importlib.import_module(name)
            xp.exp(xp.asarray([0.0], **where))
        except Exception:  # noqa: BLE001, S112 - not installed, or built for another CUDA: the next one may work
            continue
        return xp, where
    raise ExternalResourceError(f"none of {', '.join(names)} works here")


def _train(xp: Any, images: Any, targets: Any) -> Any:
    """Return the weights of a softmax regression, by gradient descent."""
    weights = 0 * (images.T @ targets)
    for _ in range(_STEPS):
        odds = xp.exp(images @ weights)
        error = targets - odds / odds.sum(1)[:, None]
        weights = weights + images.T @ error * (_RATE / len(images))
    return weights
