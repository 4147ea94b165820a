"""Commands about training: plan, train, jobs and report."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.program import (
    Common,
    Method,
    ShowByDefault,
    connected,
    daemon_settings,
    given,
    make_console,
    program,
    progress,
    show,
    stored,
)
from pocketllm.errors import (
    EXIT_ERROR,
    CommandError,
    DaemonLost,
    DaemonRefused,
    DaemonSlow,
    Document,
    Interrupted,
    NoDaemon,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pocketllm.client import Client

PANEL = "Training"
POLL_SECONDS = 0.5
# A daemon that is being restarted is away for a few seconds, and the job goes on after it.
FAILED_POLLS_ALLOWED = 20
#: How long a report is waited for that the worker is making, and how often it is asked for.
REPORT_SECONDS, REPORT_POLL_SECONDS = 120.0, 1.0
#: Jobs that are searched for one with a report.
NEWEST_JOBS = 100


# What `train` and `plan` have in common; without it the daemon's setting stands.
Steps = Annotated[int | None, typer.Option(min=1, help="Number of steps. Default: the daemon's setting.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Job id or its first characters; see `pocketllm jobs`.")]


@program.command(
    "pocketllm plan", "pocketllm plan --model NAME --steps 1000", "pocketllm plan --json", panel=PANEL, without=("url",)
)
def plan(
    options: Common,
    method: Method = None,
    steps: Steps = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Installed model (see `pocketllm models`). Default: the daemon's."),
    ] = None,
) -> None:
    """Show the memory and time a job would take, and what would be reduced to make it fit. Needs no daemon.

    Starts nothing. Uses the settings of the daemon running on the data folder, or those that it would start with.
    """
    from pocketllm.api.native.schemas import PlanOut
    from pocketllm.cli.job_views import plan_view
    from pocketllm.daemon.scheduling.night import NOT_KNOWN, Ahead
    from pocketllm.daemon.scheduling.planning import JobRequest, plan_job, with_request
    from pocketllm.daemon.scheduling.runs import RunRecorder
    from pocketllm.engine.formats.model_folder import open_model_folder

    settings, folder = daemon_settings(options, model=model), options.folder
    requested = given(steps=steps, method=method)
    texts, ahead = 0, NOT_KNOWN
    if folder.database.exists():
        with stored(folder) as store:
            counts = store.texts.counts()
            texts, night = counts.texts, RunRecorder(store.runs).usual_night()
            ahead = Ahead(words=counts.new_words, seconds=night)
    training = with_request(settings.training, JobRequest(**requested))
    planned = plan_job(open_model_folder(folder.models / settings.model), training, ahead)
    document = PlanOut.of(planned, model=settings.model, texts=texts, new_words=ahead.words).model_dump(mode="json")
    show(options, document, plan_view(document))


@program.command(
    "pocketllm train",
    "pocketllm train --steps 200 --seed 7",
    "pocketllm train --no-follow",
    "pocketllm train --json > job.json",
    panel=PANEL,
)
def train(
    options: Common,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed and texts give the same adapter.")] = None,
    method: Method = None,
    follow_job: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Follow the job until it ends, or only start it.")
    ] = True,
) -> None:
    """Train on the stored texts now, and show the progress.

    Does not wait for the charger, an idle device or more words; low battery, heat or too little memory still block it.
    Without options, continues an open job, even a paused one. `pocketllm plan` shows what a job would take.

    Ctrl-C stops the display, not the job.
    """
    from pocketllm.cli.job_views import outcome

    with connected(options) as client:
        job = client.post("jobs", body=given(steps=steps, seed=seed, method=method))
        if not follow_job:
            show(options, job, f"Job {job['id']} is {job['state']}. Watch it with `pocketllm jobs {job['id']}`.")
            return
        try:
            with job_display(make_console(stderr=options.json), plain=not options.json) as shown:
                job = follow(client, job, shown)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped watching. Job {job['id']} continues in the daemon. See it with `pocketllm jobs {job['id']}`, "
                f"cancel it with `pocketllm jobs cancel {job['id']}`."
            ) from None
    show(options, job, outcome(job))
    if job["state"] != "succeeded":
        raise typer.Exit(EXIT_ERROR)


@contextmanager
def job_display(console: "Console", *, plain: bool = True) -> Iterator[Callable[[Document], None]]:
    """Yield a function that shows a job's progress, as `progress` does."""
    from pocketllm.cli.job_views import progress_line

    with progress(console, plain=plain) as report:
        yield lambda job: report(job["state"], progress_line(job), job["step"], job["total_steps"])


def follow(
    client: "Client",
    job: Document,
    shown: Callable[[Document], None],
    *,
    stall_seconds: float | None = None,
    pause: Callable[[], None] = lambda: time.sleep(POLL_SECONDS),
) -> Document:
    """Ask for a job again and again until it has finished; returns it with its events.

    shown: is called with each answer. pause: is called between two questions. A daemon that is away for a moment is
    waited for. Raises CommandError where it stays away, and where the job has waited for longer than `stall_seconds`.
    """
    from pocketllm.cli.job_views import FINISHED_STATES

    failed, running_at = 0, time.monotonic()
    while True:
        shown(job)
        pause()
        try:
            job, failed = client.get("jobs", job["id"]), 0
        except (NoDaemon, DaemonLost, DaemonSlow) as error:
            failed += 1
            if failed > FAILED_POLLS_ALLOWED:
                raise CommandError(
                    f"{error} Job {job['id']} continues when the daemon runs again; "
                    f"see it with `pocketllm jobs {job['id']}`."
                ) from error
        if job["state"] in FINISHED_STATES:
            return job
        now = time.monotonic()
        if job["state"] == "running":
            running_at = now
        if stall_seconds is not None and now - running_at > stall_seconds:
            reasons = "; ".join(job["reasons"]) or "the daemon gave no reason"
            raise CommandError(
                f"The job has been {job['state']} for {stall_seconds:.0f} seconds: {reasons}. "
                "Training starts when that is over; try again then."
            )


@program.group(
    "pocketllm jobs",
    "pocketllm jobs ID",
    "pocketllm jobs cancel ID",
    "pocketllm jobs --json",
    panel=PANEL,
    cls=ShowByDefault,
)
def jobs(
    options: Common,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Number of jobs to show.")] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Start after this job, the last one of the previous page.")
    ] = None,
) -> None:
    """List, show (`pocketllm jobs ID`), pause, resume or cancel training jobs.

    Without a command, lists them, newest first.
    """
    from pocketllm.cli.job_views import jobs_table

    candidate = None
    with connected(options) as client:
        page = client.get("jobs", limit=limit, after=after)
        with suppress(DaemonRefused):  # the list is open to everybody, the status is not
            candidate = client.get("status")["model"]["candidate"]
    show(options, page, jobs_table(page, candidate))


@jobs.command("pocketllm jobs show ID", "pocketllm jobs ID", "pocketllm jobs ID --json", name="show")
def show_job(options: Common, job_id: JobId) -> None:
    """Show one job with its reasons, settings, events and runs."""
    from pocketllm.cli.job_views import job_details

    with connected(options) as client:
        job = client.get("jobs", job_id)
    show(options, job, job_details(job))


@jobs.command("pocketllm jobs cancel ID", name="cancel")
def cancel_job(options: Common, job_id: JobId) -> None:
    """Cancel a job that has not finished. Its progress is deleted."""
    change(options, job_id, "cancel", "Job {id} is {state}.")


@jobs.command("pocketllm jobs pause ID", name="pause")
def pause_job(options: Common, job_id: JobId) -> None:
    """Pause a job until you resume it. It keeps its progress."""
    sentence = "Job {id} is paused at step {step}. Resume it with `pocketllm jobs resume {id}`."
    change(options, job_id, "pause", sentence)


@jobs.command("pocketllm jobs resume ID", name="resume")
def resume_job(options: Common, job_id: JobId) -> None:
    """Resume a job that you paused; it continues when the conditions allow it."""
    sentence = "Job {id} continues when the conditions allow it; `pocketllm jobs {id}` shows its state."
    change(options, job_id, "resume", sentence)


def change(options: Common, job_id: str, action: str, sentence: str) -> None:
    """Change a job and print the sentence, filled with the job's fields."""
    with connected(options) as client:
        job = client.post("jobs", job_id, action)
    show(options, job, sentence.format(**job))


@program.command("pocketllm report", "pocketllm report JOB", "pocketllm report --json", panel=PANEL)
def report(
    options: Common,
    job_id: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Job id. Default: the newest job with a report.")
    ] = None,
) -> None:
    """Show what a job learned: verdict, held-out loss, likelier words, completions by both models, verbatim recall.

    The report contains words of your texts and of the model. Deleting a text deletes them from its jobs' reports.
    """
    from pocketllm.cli.job_views import report_view

    with connected(options) as client:
        if job_id is not None:
            found: Document | None = client.get("jobs", job_id, "report")
        else:
            ended = (job["id"] for job in client.get("jobs", limit=NEWEST_JOBS)["data"] if job["state"] == "succeeded")
            found = next(filter(None, (find_report(client, one) for one in ended)), None)
    if found is None:
        raise CommandError("No job has a report yet. A job writes one when it succeeds: `pocketllm train`.")
    show(options, found, report_view(found))


def find_report(client: "Client", job_id: str) -> Document | None:
    """Return an ended job's report, waiting while it is being made; None when it has none."""
    deadline = time.monotonic() + REPORT_SECONDS
    while True:
        try:
            return client.get("jobs", job_id, "report")
        except DaemonRefused as error:
            if error.document.get("error", {}).get("code") == "wrong_state":
                return None
            if error.status != HTTPStatus.CONFLICT or time.monotonic() >= deadline:
                raise
        time.sleep(REPORT_POLL_SECONDS)
