"""A TaskManager of the demo: it claims its GPU, learns to read handwritten digits on it, and holds it until the end.

Started as `python -m externalresource.demo_taskmanager CONFIGURATION NUMBER LIBRARIES [KEY=VALUE]...`. It prints one
line of JSON, what it got and learned or why it was refused, and ends when its stdin does.
"""

import importlib
import json
import os
import random
import sys
from typing import Any

from externalresource.context import RuntimeContext, runtime_context
from externalresource.errors import ExternalResourceError

_TRAINED = 1200  # of the 1,797 digits; the others are read
_SHOWN = 8
_STEPS, _RATE = 100, 5.0
_SEED = 47  # what comes first is then not twice the same digit


def main() -> None:
    config, number, libraries, *overrides = sys.argv[1:]
    try:
        context = runtime_context(config, overrides=dict(override.split("=", 1) for override in overrides))
    except ExternalResourceError as error:
        _say({"refused": str(error)})
        return
    with context:
        os.environ.update(context.environment())  # CUDA reads it once, when the array library initialises
        xp, where = _array_module(libraries.split(","))
        _say(
            {"devices": _devices(context), "mask": os.environ["CUDA_VISIBLE_DEVICES"], "library": xp.__name__}
            | _read_digits(xp, where, int(number))
        )
        sys.stdin.buffer.read()


def _say(report: dict[str, object]) -> None:
    print(json.dumps(report), flush=True)  # noqa: T201 - stdout is the way to the demo


def _devices(context: RuntimeContext) -> list[str]:
    indices = [info.get_property("index") or "" for info in context.get_external_resource_infos("gpu")]
    return sorted(indices, key=lambda index: (len(index), index))


def _array_module(names: list[str]) -> tuple[Any, dict[str, str]]:
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


def _read_digits(xp: Any, where: dict[str, str], number: int) -> dict[str, object]:
    """Return the share of the digits that are read correctly, and the first few with their answers."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = random.Random(_SEED + number).sample(range(len(digits.target)), len(digits.target))  # noqa: S311 - no secret
    labels = digits.target[order]
    images = xp.asarray(digits.data[order] / 16, **where)
    targets = xp.asarray((labels[:, None] == range(10)) * 1.0, **where)
    weights = _train(xp, images[:_TRAINED], targets[:_TRAINED])
    answers = (images[_TRAINED:] @ weights).argmax(1).tolist()
    right = sum(answer == label for answer, label in zip(answers, labels[_TRAINED:].tolist(), strict=True))
    shown = digits.images[order[_TRAINED : _TRAINED + _SHOWN]].tolist()
    return {"accuracy": right / len(answers), "answers": answers[:_SHOWN], "images": shown}


def _train(xp: Any, images: Any, targets: Any) -> Any:
    """Return the weights of a softmax regression, by gradient descent: one code for every array library."""
    weights = 0 * (images.T @ targets)
    for _ in range(_STEPS):
        odds = xp.exp(images @ weights)
        error = targets - odds / odds.sum(1)[:, None]
        weights = weights + images.T @ error * (_RATE / len(images))
    return weights


if __name__ == "__main__":
    main()
