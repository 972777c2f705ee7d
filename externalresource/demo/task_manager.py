"""A TaskManager of the demo: it claims its GPU, learns to read handwritten digits on it, and holds it until the end.

Started as `python -m externalresource.demo.task_manager CONFIGURATION NUMBER LIBRARIES [KEY=VALUE]...`. It prints one
line of JSON, what it got and learned or why it was refused, and ends on SIGTERM.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence

from externalresource.context import RuntimeContext, runtime_context
from externalresource.demo.digits import Classifier, learned_and_unread
from externalresource.errors import ExternalResourceError

_SHOWN = 8


def main() -> None:
    config, number, libraries, *overrides = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until it is waited for
    try:
        context = runtime_context(config, overrides=dict(override.split("=", 1) for override in overrides))
    except ExternalResourceError as error:
        _say({"refused": str(error)})
        return
    with context:
        os.environ.update(context.environment())  # CUDA reads it once, when the array library initialises
        granted = {"refused": None, "devices": _devices(context), "mask": os.environ["CUDA_VISIBLE_DEVICES"]}
        _say(granted | _read_digits(libraries.split(","), int(number)))


def _say(report: dict[str, object]) -> None:
    """Print it, and return when this process is to end."""
    print(json.dumps(report), flush=True)  # noqa: T201 - stdout is the way to the demo
    signal.sigwait([signal.SIGTERM])


def _devices(context: RuntimeContext) -> list[str]:
    indices = [info.get_property("index") or "" for info in context.get_external_resource_infos("gpu")]
    return sorted(indices, key=lambda index: (len(index), index))


def _read_digits(libraries: Sequence[str], number: int) -> dict[str, object]:
    """Return the share of the digits that are read correctly, and the first few with their answers."""
    learned, unread = learned_and_unread(number)
    classifier = Classifier(libraries, learned)
    answers = classifier.read(unread.images)
    right = sum(answer == label for answer, label in zip(answers, unread.labels.tolist(), strict=True))
    return {
        "library": classifier.library,
        "accuracy": right / len(answers),
        "answers": answers[:_SHOWN],
        "images": unread.images[:_SHOWN].tolist(),
    }


if __name__ == "__main__":
    main()
