"""`pocketllm snooze`: run no job for a while."""

from datetime import datetime
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.cli.errors import UsageError

EPILOG = examples("pocketllm snooze 90", "pocketllm snooze --off")


@shared_options
def snooze(
    options: Common,
    minutes: Annotated[
        float | None, typer.Argument(metavar="[MINUTES]", help="For how long.", min=0.1, max=60 * 24 * 366)
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="End the snooze.")] = False,
) -> None:
    """Run no job for a while. A running job pauses at once and loses nothing."""
    if off == (minutes is not None):
        raise UsageError("Say for how many minutes, or --off.")
    with connected(options) as client:
        document = client.snooze(None if off else minutes)
    if options.json:
        emit(document)
        return
    until = document["snoozed_until"]
    said = "Jobs run again when they may." if until is None else f"Nothing runs until {_local(until)}."
    make_console().print(said)


def _local(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%a %d %b %H:%M}"
