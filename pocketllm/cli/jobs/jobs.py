"""`pocketllm jobs`: list, show, pause, resume and cancel jobs."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from pocketllm.cli.common import Common, ShowByDefault, connected, examples, make_console, shared_options, show

DEFAULT_LIMIT = 20

JobId = Annotated[str, typer.Argument(metavar="ID", help="Job id or its first characters; see `pocketllm jobs`.")]
Limit = Annotated[int, typer.Option(min=1, max=200, help="Number of jobs to show.")]

jobs_app = typer.Typer(cls=ShowByDefault, invoke_without_command=True)


@jobs_app.callback(
    epilog=examples(
        "pocketllm jobs",
        "pocketllm jobs ID",
        "pocketllm jobs cancel ID",
        "pocketllm jobs --json",
    )
)
@jobs_app.command(
    "list",
    help="List the jobs, newest first.",
    epilog=examples("pocketllm jobs list --limit 100", "pocketllm jobs list --json"),
)
@shared_options
def jobs(
    options: Common,
    ctx: typer.Context,
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """List, show (`pocketllm jobs ID`), pause, resume or cancel training jobs.

    Without a command, lists them.
    """
    if ctx.invoked_subcommand is None:
        show_list(options, limit)


@jobs_app.command("show", epilog=examples("pocketllm jobs show ID", "pocketllm jobs ID", "pocketllm jobs ID --json"))
@shared_options
def show_job(options: Common, job_id: JobId) -> None:
    """Show one job with its reasons, settings, events and runs."""
    from pocketllm.cli.job_views import job_details

    with connected(options) as client:
        job = client.get("jobs", job_id)
    show(options, job, job_details(job, datetime.now(UTC)))


@jobs_app.command("cancel", epilog=examples("pocketllm jobs cancel ID"))
@shared_options
def cancel_job(options: Common, job_id: JobId) -> None:
    """Cancel a job that has not finished. Its progress is deleted."""
    change(options, job_id, "cancel", "Job {id} is {state}.")


@jobs_app.command("pause", epilog=examples("pocketllm jobs pause ID"))
@shared_options
def pause_job(options: Common, job_id: JobId) -> None:
    """Pause a job until you resume it. It keeps its progress."""
    sentence = "Job {id} is paused at step {step}. Resume it with `pocketllm jobs resume {id}`."
    change(options, job_id, "pause", sentence)


@jobs_app.command("resume", epilog=examples("pocketllm jobs resume ID"))
@shared_options
def resume_job(options: Common, job_id: JobId) -> None:
    """Resume a job that you paused; it continues when the conditions allow it."""
    sentence = "Job {id} continues when the conditions allow it; `pocketllm jobs {id}` shows its state."
    change(options, job_id, "resume", sentence)


def change(options: Common, job_id: str, action: str, sentence: str) -> None:
    """Change a job and print the sentence, filled with the job's fields."""
    with connected(options) as client:
        job = client.post("jobs", job_id, action)
    show(options, job, sentence.format(**job))


def show_list(options: Common, limit: int) -> None:
    """Print the newest jobs."""
    from pocketllm.cli.job_views import jobs_table

    with connected(options) as client:
        page = client.get("jobs", limit=limit)
    show(options, page, jobs_table(page, width=make_console().width, now=datetime.now(UTC)))
