"""The `pocketllm` command, with the commands of the modules beside this one.

Nothing heavy is imported here: a command imports what it needs when it runs, so that `--help` comes at once and the
daemon's process never holds torch or an HTTP client.
"""

import io
import sys
from importlib import import_module
from typing import Annotated

import typer

from pocketllm import __version__
from pocketllm.cli.program import program

app = program.app
# Each adds its commands; the help lists them in this order.
for _module in ("daemon", "models", "adapters", "importing", "texts", "jobs", "ask", "checks"):
    import_module(f"pocketllm.cli.{_module}")


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


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 shows a question mark for what it cannot show; that is no reason to fail.
            stream.reconfigure(errors="replace")
    app()
