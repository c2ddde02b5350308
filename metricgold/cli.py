"""The command ``metricgold``. Each command imports what it needs itself, so that help is quick."""

from __future__ import annotations

import typer

from metricgold.commands.data import data
from metricgold.commands.demo import demo
from metricgold.commands.evaluate import evaluate
from metricgold.commands.infer import infer
from metricgold.commands.info import info
from metricgold.commands.plan import plan
from metricgold.commands.serve import serve
from metricgold.commands.train import train
from metricgold.errors import run_cli

app = typer.Typer(
    help="Metric depth from a single image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(infer)
app.command()(demo)
app.command()(serve)
app.command()(evaluate)
app.command()(train)
app.command()(info)
app.command()(plan)
app.add_typer(data, name="data")


def main() -> None:
    """Entry point of ``metricgold`` and ``python -m metricgold``."""
    run_cli(app)


if __name__ == "__main__":
    main()
