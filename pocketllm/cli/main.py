"""The `pocketllm` command. This file says which commands there are; what each does is in a module of its name.

Nothing heavy is imported here: a command imports what it needs when it runs, so that `--help` comes at once and the
daemon's process never holds torch or an HTTP client.
"""

import io
import sys
from typing import Annotated

import typer

from pocketllm import __version__
from pocketllm.cli import adapters, ask, backup, daemon, doctor, importing, models, texts
from pocketllm.cli.common import program
from pocketllm.cli.jobs import plan as cli_plan
from pocketllm.cli.jobs import replay as cli_replay
from pocketllm.cli.jobs import report as cli_report
from pocketllm.cli.jobs import train as cli_train
from pocketllm.cli.jobs.jobs import jobs_app

TRAINING = "Training"

#: Imported for the commands that they add.
MODULES = (daemon, models, adapters, importing, texts, ask, doctor, backup)
app = program.app


def show_version(show: bool) -> None:
    """Print the version and exit if --version was given."""
    if show:
        typer.echo(f"pocketllm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train a small language model to write like you, on this device."""


app.command("plan", epilog=cli_plan.EPILOG, rich_help_panel=TRAINING)(cli_plan.plan)
app.command("train", epilog=cli_train.EPILOG, rich_help_panel=TRAINING)(cli_train.train)
app.add_typer(jobs_app, name="jobs", rich_help_panel=TRAINING)
app.command("report", epilog=cli_report.EPILOG, rich_help_panel=TRAINING)(cli_report.report)
app.command("replay", epilog=cli_replay.EPILOG, rich_help_panel="Checks and backups")(cli_replay.replay)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 shows a question mark for what it cannot show; that is no reason to fail.
            stream.reconfigure(errors="replace")
    app()
