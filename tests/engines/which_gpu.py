"""A PyFlink job: each operator says for which TaskManager it works, and which GPUs it is told of, and sees."""

import os
import sys
import time

from pyflink.common import Types
from pyflink.datastream import RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.functions import MapFunction
from pyflink.table import DataTypes, FunctionContext, ScalarFunction, StreamTableEnvironment, expressions
from pyflink.table.udf import udf

VALUES = [(value,) for value in range(40)]


def told() -> str:
    from externalresource.flink import find_task_manager, get_external_resource_infos

    infos = get_external_resource_infos("gpu")
    indices = ",".join(sorted(str(info.get_property("index")) for info in infos))
    return f"{find_task_manager().pid}:{indices}:{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}"


class OfDataStream(MapFunction):  # type: ignore[misc] # PyFlink carries no types
    def open(self, runtime_context: RuntimeContext) -> None:
        self.told = told()

    def map(self, value: object) -> str:
        time.sleep(0.05)  # so that both TaskManagers get some
        return self.told


class OfTable(ScalarFunction):  # type: ignore[misc] # PyFlink carries no types
    def open(self, function_context: FunctionContext) -> None:
        self.told = told()

    def eval(self, value: object) -> str:
        return self.told


class OfPandas(ScalarFunction):  # type: ignore[misc] # PyFlink carries no types
    def open(self, function_context: FunctionContext) -> None:
        self.told = told()

    def eval(self, values: object) -> object:
        return values.map(lambda _: self.told)  # type: ignore[attr-defined] # a pandas.Series


def main() -> None:
    """Print what the operators of each kind said, in one job: thread mode can run only one in a TaskManager's life."""
    environment = StreamExecutionEnvironment.get_execution_environment()
    environment.set_parallelism(2)
    stream = environment.from_collection(VALUES, type_info=Types.ROW([Types.INT()])).rebalance()
    told_in_stream = stream.map(OfDataStream(), output_type=Types.STRING())
    table = StreamTableEnvironment.create(environment).from_data_stream(told_in_stream).alias("told")
    of_table = udf(OfTable(), result_type=DataTypes.STRING())
    of_pandas = udf(OfPandas(), result_type=DataTypes.STRING(), func_type="pandas")
    told = expressions.col("told")
    with table.select(told, of_table(told), of_pandas(told)).execute().collect() as rows:
        for row in sorted({tuple(row) for row in rows}):
            sys.stdout.write(f"told {' '.join(row)}\n")


if __name__ == "__main__":
    main()
