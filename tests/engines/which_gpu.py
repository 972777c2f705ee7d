"""Jobs in Python: each operator reports, again and again, for which TaskManager it works, and its GPUs."""

import os
import sys
import time
import uuid

from pyflink.common import Types, WatermarkStrategy
from pyflink.datastream import DataStream, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.number_seq import NumberSequenceSource
from pyflink.datastream.functions import MapFunction
from pyflink.table import DataTypes, FunctionContext, ScalarFunction, StreamTableEnvironment, expressions
from pyflink.table.udf import udf

WORKERS = 4  # that have a GPU of their own at one time


class Report:
    """A file that an operator adds to; its name begins with the kind of operator."""

    def __init__(self, folder: str, kind: str, exclusive: int | None = None) -> None:
        from externalresource.flink import find_task_manager, get_external_resource_infos

        infos = get_external_resource_infos("gpu", exclusive=exclusive)
        indices = ",".join(sorted(str(info.get_property("index")) for info in infos))
        mask = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        self._told = f"{os.getpid()} {find_task_manager().pid} {indices} {mask}"
        self._path = os.path.join(folder, f"{kind}-{uuid.uuid4()}")
        self.write()

    def write(self) -> None:
        """One line: when, the reporter, its TaskManager, its GPUs, its mask."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{time.monotonic_ns()} {self._told}\n")


class OfDataStream(MapFunction):  # type: ignore[misc] # PyFlink carries no types
    def __init__(self, folder: str, exclusive: int | None) -> None:
        self._folder, self._exclusive = folder, exclusive

    def open(self, runtime_context: RuntimeContext) -> None:
        self._report = Report(self._folder, "stream", self._exclusive)
        end = time.monotonic() + 60
        while self._exclusive and len(os.listdir(self._folder)) < WORKERS and time.monotonic() < end:
            time.sleep(0.05)  # a share is free for the next worker when this one has ended

    def map(self, value: object) -> object:
        time.sleep(0.01)
        self._report.write()
        return value


class OfTable(ScalarFunction):  # type: ignore[misc] # PyFlink carries no types
    def __init__(self, folder: str, kind: str) -> None:
        self._folder, self._kind = folder, kind

    def open(self, function_context: FunctionContext) -> None:
        Report(self._folder, self._kind)

    def eval(self, value: object) -> object:  # a pandas function is given a series, and gives one back
        return value


def main(kinds: str, folder: str, count: str) -> None:
    """Run a job of a DataStream (`stream`), that and one of a Table beside each other (`each`), or both as one (`one`).

    In a job `own` each worker takes one GPU for itself.

    In thread mode Flink runs only one Python job in a TaskManager's life.
    """
    environment = StreamExecutionEnvironment.get_execution_environment()
    tables = StreamTableEnvironment.create(environment)
    source = NumberSequenceSource(1, int(count))
    numbers = environment.from_source(source, WatermarkStrategy.no_watermarks(), "numbers", Types.LONG())
    # Without an exchange between its operators, what runs in one TaskManager goes on when the other one dies; with one,
    # each operator gets a value: without a value, one in Python is not even opened.
    if kinds == "own":
        of_data_stream(numbers.rebalance(), folder, exclusive=1)
        environment.execute("a GPU for each worker")
    elif kinds == "stream":
        of_data_stream(numbers, folder)
        environment.execute("which GPU, in a DataStream")
    elif kinds == "one":
        collect(tables, of_data_stream(numbers.rebalance(), folder), folder)
    else:
        of_data_stream(numbers.rebalance(), folder)
        job = environment.execute_async("which GPU, in a DataStream")
        collect(tables, numbers.rebalance(), folder)
        job.get_job_execution_result().result()


def of_data_stream(numbers: DataStream, folder: str, exclusive: int | None = None) -> DataStream:
    return numbers.map(OfDataStream(folder, exclusive), output_type=Types.LONG())


def collect(tables: StreamTableEnvironment, numbers: DataStream, folder: str) -> None:
    of_table = udf(OfTable(folder, "table"), result_type=DataTypes.BIGINT())
    of_pandas = udf(OfTable(folder, "pandas"), result_type=DataTypes.BIGINT(), func_type="pandas")
    number = expressions.col("number")
    table = tables.from_data_stream(numbers).alias("number").select(of_table(number), of_pandas(number))
    with table.execute().collect() as rows:
        for _ in rows:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
