"""The PyFlink job of the demo: an operator that reads handwritten digits, on the GPU of its TaskManager.

Flink's client starts it with PARALLELISM and LIBRARIES. It prints one line of JSON: what subtasks were told and read.
"""

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from pyflink.common import Configuration
from pyflink.datastream import RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.functions import MapFunction

from externalresource.demo.digits import Classifier, learned_and_unread
from externalresource.flink import environment, find_task_manager, get_external_resource_infos


class ReadDigit(MapFunction):  # type: ignore[misc] # PyFlink carries no types
    def __init__(self, libraries: str) -> None:
        self._libraries = libraries.split(",")

    def open(self, runtime_context: RuntimeContext) -> None:
        infos = get_external_resource_infos("gpu")
        os.environ.update(environment(find_task_manager()))  # CUDA reads it once, when the array library initialises
        learned, _ = learned_and_unread(0)
        self._classifier = Classifier(self._libraries, learned)
        self._told = {
            "number": runtime_context.get_index_of_this_subtask() + 1,
            "pid": os.getpid(),
            "task_manager": find_task_manager().pid,
            "devices": sorted(str(info.get_property("index")) for info in infos),
            "library": self._classifier.library,
        }

    def map(self, value: tuple[int, Any]) -> tuple[dict[str, Any], int, int]:
        place, image = value
        (answer,) = self._classifier.read(image[None])
        return self._told, place, answer


def main() -> None:
    parallelism, libraries = sys.argv[1:]
    _, unread = learned_and_unread(0)
    stream_environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    images = stream_environment.from_collection(list(enumerate(unread.images)))
    read = images.rebalance().map(ReadDigit(libraries)).set_parallelism(int(parallelism))
    with read.execute_and_collect("externalresource demo") as rows:
        reports = _reports(rows)
    sys.stdout.write(json.dumps(reports) + "\n")


def _reports(rows: Iterable[tuple[dict[str, Any], int, int]]) -> list[dict[str, Any]]:
    """Return what subtasks were told, with its answers: pairs of a digit's place and what was read."""
    reports: dict[int, dict[str, Any]] = {}
    for told, place, answer in rows:
        reports.setdefault(told["number"], told | {"answers": []})["answers"].append((place, answer))
    return [reports[number] for number in sorted(reports)]


if __name__ == "__main__":
    main()
