"""`pocketllm watch`: the daemon's activity, live."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pocketllm.cli.common import Common, connected, examples, make_console, shared_options
from pocketllm.cli.errors import Document

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pocketllm.client import Client

EPILOG = examples("pocketllm watch", "pocketllm watch --json | jq .kind")

_LOOK_SECONDS = 1.0
_JOBS = 8


@shared_options
def watch(options: Common) -> None:
    """Show what the daemon does, live, until Ctrl-C.

    In a pipe, or with --json, a line for each thing that happens to a job.
    """
    console = make_console()
    with connected(options) as client:
        try:
            if console.is_terminal and not options.json:
                _live(client, console)
            else:
                _lines(client, as_json=options.json)
        except KeyboardInterrupt:
            return  # which is how it ends


def _live(client: "Client", console: "Console") -> None:
    from rich.live import Live

    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_view(client, console.width), refresh=True)
            time.sleep(_LOOK_SECONDS)


def _view(client: "Client", width: int) -> "RenderableType":
    from rich.console import Group

    from pocketllm.cli.views import jobs_table, status_panel

    now = datetime.now(UTC)
    status, (jobs, _) = client.status(), client.jobs(limit=_JOBS)
    return Group(status_panel(status, now), jobs_table(jobs, has_more=False, width=width, now=now))


def _lines(client: "Client", *, as_json: bool) -> None:
    last = client.events(after=None)["last"]
    while True:
        page = client.events(after=last)
        last = page["last"]
        for event in page["data"]:
            sys.stdout.write((json.dumps(event) if as_json else _line(event)) + "\n")
        sys.stdout.flush()


def _line(event: Document) -> str:
    from pocketllm.cli.views import printable

    at = datetime.fromisoformat(event["at"]).astimezone()
    return printable(f"{at:%H:%M:%S} {event['job']} {event['kind']}: {event['message']}")
