"""`pocketllm train`: start a job now and follow it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, connected, examples, make_console, shared_options, show
from pocketllm.cli.jobs.plan import Batch, Method, Mode, Probes, Steps, requested_fields
from pocketllm.errors import EXIT_ERROR, CommandError, DaemonLost, DaemonSlow, Document, Interrupted, NoDaemon

if TYPE_CHECKING:
    from rich.console import Console

    from pocketllm.client import Client

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 5.0
# A daemon that is being restarted is away for a few seconds, and the job goes on after it.
FAILED_POLLS_ALLOWED = 20

EPILOG = examples(
    "pocketllm train",
    "pocketllm train --steps 200 --seed 7",
    "pocketllm train --mode full --batch 8",
    "pocketllm train --no-follow",
    "pocketllm train --json > job.json",
)


@shared_options
def train(
    options: Common,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed and texts give the same adapter.")] = None,
    mode: Mode = None,
    method: Method = None,
    batch: Batch = None,
    probes: Probes = None,
    follow_job: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Follow the job until it ends, or only start it.")
    ] = True,
) -> None:
    """Train on the stored texts now, and show the progress.

    Does not wait for the charger, an idle device or more words; low battery, heat or too little memory still block it.
    Without options, continues an open job, even a paused one. `pocketllm plan` shows what a job would take.

    Ctrl-C stops the display, not the job.
    """
    with connected(options) as client:
        requested = requested_fields(steps=steps, mode=mode, method=method, batch=batch, probes=probes)
        job = client.post("jobs", body=requested if seed is None else requested | {"seed": seed})
        if not follow_job:
            show(options, job, f"Job {job['id']} is {job['state']}. Watch it with `pocketllm jobs {job['id']}`.")
            return
        console = make_console(stderr=options.json)
        try:
            job = watch(client, job, console, quiet=options.json and not console.is_terminal)
        except KeyboardInterrupt:
            raise Interrupted(stopped_watching(job)) from None
        folder = adapter_folder(client, job)
    from pocketllm.cli.job_views import outcome

    show(options, job, outcome(job, folder))
    if job["state"] != "succeeded":
        raise typer.Exit(EXIT_ERROR)


def stopped_watching(job: Document) -> str:
    """Return the message after Ctrl-C."""
    return (
        f"Stopped watching. Job {job['id']} continues in the daemon. See it with `pocketllm jobs {job['id']}`, "
        f"cancel it with `pocketllm jobs cancel {job['id']}`."
    )


def adapter_folder(client: "Client", job: Document) -> str | None:
    """Return the folder of the adapter that a job made; None when it made none."""
    if not job.get("adapter"):
        return None
    return next((entry["folder"] for entry in client.get("adapters")["data"] if entry["id"] == job["adapter"]), None)


def watch(client: "Client", job: Document, console: "Console", *, quiet: bool = False) -> Document:
    """Show a job until it has finished and return it as it then is."""
    with job_display(console, quiet=quiet) as show:
        return follow(client, job, show, pause=lambda: time.sleep(POLL_SECONDS))


def follow(client: "Client", job: Document, show: Callable[[Document], None], *, pause: Callable[[], None]) -> Document:
    """Ask for the job again and again, showing each answer, until it has finished; returns it with its events.

    A daemon that is away for a moment is waited for; one that stays away is a CommandError. `pause` is
    called between two questions.
    """
    from pocketllm.cli.job_views import FINISHED_STATES

    failed = 0
    while True:
        show(job)
        pause()
        try:
            job = client.get("jobs", job["id"])
        except (NoDaemon, DaemonLost, DaemonSlow) as error:
            failed += 1
            if failed > FAILED_POLLS_ALLOWED:
                raise CommandError(
                    f"{error} Job {job['id']} continues when the daemon runs again; "
                    f"see it with `pocketllm jobs {job['id']}`."
                ) from error
            continue
        failed = 0
        if job["state"] in FINISHED_STATES:
            return job


@contextmanager
def job_display(console: "Console", *, quiet: bool) -> Iterator[Callable[[Document], None]]:
    """Yield a function that shows a job: a moving bar on a terminal, else a plain line now and then."""
    if quiet:
        yield lambda job: None
    elif not console.is_terminal:
        yield PlainLines(console.print, time.monotonic).show
    else:
        from rich.live import Live
        from rich.spinner import Spinner

        from pocketllm.cli.job_views import live_job

        spinner = Spinner("dots")
        with Live(console=console, transient=True) as live:
            yield lambda job: live.update(live_job(job, spinner))


class PlainLines:
    """Prints a job's progress at each change of state, and every few seconds in between."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._state = ""
        self._line = ""
        self._next_at = 0.0

    def show(self, job: Document) -> None:
        """Print the job if its state is new, or if the last line is old and there is news."""
        from pocketllm.cli.job_views import progress_line

        now, line = self._clock(), progress_line(job)
        if job["state"] != self._state or (now >= self._next_at and line != self._line):
            self._write(line)
            self._state, self._line, self._next_at = job["state"], line, now + PLAIN_LINE_SECONDS
