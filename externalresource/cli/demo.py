"""`demo`: processes that share a host, to be watched."""

import sys

import click


@click.command()
@click.option("--task-managers", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes to start.")
@click.option(
    "--gpus", type=click.IntRange(1, 64), default=2, show_default=True, help="Simulated if the host has fewer."
)
@click.option(
    "--flink", is_flag=True, help="Real TaskManagers, and a PyFlink job on them. Needs apache-flink and Java."
)
def demo(task_managers: int, gpus: int, *, flink: bool) -> None:
    """Watch TaskManagers get different GPUs, die and be replaced."""
    from externalresource.demo import on_flink, stand_ins

    demonstration = on_flink if flink else stand_ins
    sys.exit(demonstration.run(task_managers, gpus, click.echo))
