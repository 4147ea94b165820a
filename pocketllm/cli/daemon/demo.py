"""`pocketllm demo`: see it learn, from nothing, in a few minutes."""

from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Json, emit, examples, make_console
from pocketllm.errors import EXIT_ERROR
from pocketllm.home import become_owner

EPILOG = examples("pocketllm demo", "pocketllm demo --steps 50", "pocketllm demo --data-dir ~/try-pocketllm")


def demo(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", envvar="POCKETLLM_DEMO_DIR", help="Folder for the demo; created if missing.")
    ] = Path("demo-data"),
    steps: Annotated[int | None, typer.Option(min=1, help="Number of training steps; more take longer.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Continue from an earlier demo in this folder.")] = False,
    json_wanted: Json = False,
) -> None:
    """Try PocketLLM: from nothing to a personal model in minutes.

    Installs the default model, starts a daemon of its own, adds sample notes, trains, and shows what changed.

    Stops the daemon at the end and touches nothing outside its folder.
    """
    from pocketllm.cli.models.models import install_default
    from pocketllm.demo import run_demo

    become_owner(data_dir)
    # With --json, stdout is for the document alone.
    console = make_console(stderr=json_wanted)
    result = run_demo(console, data_dir=data_dir, steps=steps, keep=keep, install=install_default)
    if json_wanted:
        emit(result)
    if not result["learned"]:
        raise typer.Exit(EXIT_ERROR)
