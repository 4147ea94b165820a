"""`pocketllm report`: what a job has learned, in numbers and words."""

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, connected, examples, make_console, shared_options, show
from pocketllm.errors import CommandError, DaemonRefused, Document

if TYPE_CHECKING:
    from pocketllm.client import Client

#: How long a report is waited for that the worker is making, and how often it is asked for.
WAIT_SECONDS, POLL_SECONDS = 120.0, 1.0
#: Jobs that are looked through for one with a report.
NEWEST_JOBS = 100

EPILOG = examples("pocketllm report", "pocketllm report JOB", "pocketllm report --json")


@shared_options
def report(
    options: Common,
    job_id: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Job id. Default: the newest job with a report.")
    ] = None,
) -> None:
    """Show what a job learned: verdict, loss curve, likelier words, both models' completions, verbatim recall.

    The report contains words of your texts and of the model. Deleting a text deletes them from its jobs' reports.
    """
    from pocketllm.cli.report_view import report_view

    with connected(options) as client:
        document = newest_report(client) if job_id is None else client.get("jobs", job_id, "report")
    show(options, document, report_view(document, width=make_console().width))


def newest_report(client: "Client") -> Document:
    """Return the report of the newest job that has one. Raises CommandError where there is none."""
    for job in client.get("jobs", limit=NEWEST_JOBS)["data"]:
        if job["state"] != "succeeded":
            continue
        document = find_report(client, job["id"])
        if document is not None:
            return document
    raise CommandError("No job has a report yet. A job writes one when it succeeds: `pocketllm train`.")


def find_report(client: "Client", job_id: str) -> Document | None:
    """Return an ended job's report, waiting while it is being made; None when it has none."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return client.get("jobs", job_id, "report")
        except DaemonRefused as error:
            if error.document.get("error", {}).get("code") == "wrong_state":
                return None
            if error.status != HTTPStatus.CONFLICT or time.monotonic() >= deadline:
                raise
        time.sleep(POLL_SECONDS)
