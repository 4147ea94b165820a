"""`pocketllm snooze`: run no job for a while."""

from datetime import datetime
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, examples, shared_options, show
from pocketllm.errors import UsageError

EPILOG = examples("pocketllm snooze 90", "pocketllm snooze --off")


@shared_options
def snooze(
    options: Common,
    minutes: Annotated[
        float | None,
        typer.Argument(metavar="[MINUTES]", help="Length of the snooze, in minutes.", min=0.1, max=60 * 24 * 366),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="End the snooze.")] = False,
) -> None:
    """Run no job for a while. A running job pauses at once and keeps its progress."""
    if off == (minutes is not None):
        raise UsageError("Give the number of minutes, or --off.")
    with connected(options) as client:
        document = client.post("status", "snooze", body={} if off else {"minutes": minutes})
    until = document["snoozed_until"]
    if until is None:
        sentence = "Jobs run again when the conditions allow it."
    else:
        sentence = f"No job runs until {datetime.fromisoformat(until).astimezone():%a %d %b %H:%M}."
    show(options, document, sentence)
