"""`pocketllm steps`: a summary of a job's steps, and their file for safe keeping or a replay elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, connected, examples, shared_options, show
from pocketllm.cli.errors import CommandError, Document
from pocketllm.cli.files import check_target, whole_file

if TYPE_CHECKING:
    from rich.table import Table

    from pocketllm.storage.step_log_codec import StepRow

#: Losses are shown as means over this many steps: one batch says little.
MEAN_STEPS = 20

EPILOG = examples("pocketllm steps JOB", "pocketllm steps JOB --export job.steps", "pocketllm steps JOB --json")


@shared_options
def steps(
    options: Common,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `pocketllm jobs` shows it.")],
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write the steps to this file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Summarise a job's steps, or write them to a file.

    The file holds a few bytes a step and no text. With the base model it is enough to do the learning again.
    """
    if export is not None:
        check_target(export, force=force)
    with connected(options) as client:
        data = client.steps(job_id)
    document = summary(job_id, data)
    if export is None:
        show(options, document, summary_table(document))
        return
    with whole_file(export) as file:
        file.write(data)
    sizes = f"{document['bytes']:,} bytes, {document['bytes_per_step']:.1f} a step"
    show(options, document | {"file": str(export)}, f"Wrote {export}: {document['steps']:,} steps in {sizes}.")


def summary(job_id: str, data: bytes) -> Document:
    """Return what is in an export, for people and for --json. Raises CommandError when it is not sound."""
    from pocketllm.storage.step_log_export import read_export

    try:
        found = read_export(data)
    except ValueError as error:
        raise CommandError(f"The daemon's steps of {job_id} cannot be read: {error}") from error
    return {
        "job": found.header["job"],
        "model": found.header["model"],
        "mode": found.header["mode"],
        "seed": found.header["seed"],
        "probes": found.header["probes"],
        "steps": len(found.rows),
        "total_steps": found.header["total_steps"],
        "first_loss": mean_loss(found.rows[:MEAN_STEPS]),
        "last_loss": mean_loss(found.rows[-MEAN_STEPS:]),
        "bytes": len(data),
        "bytes_per_step": round(len(data) / len(found.rows), 2),
    }


def mean_loss(rows: "Sequence[StepRow]") -> float:
    """Return the mean training loss of some steps, in nats per token."""
    return round(sum(row.loss for row in rows) / len(rows), 4)


def summary_table(document: Document) -> "Table":
    """Return a summary as a short table."""
    from rich.table import Table

    from pocketllm.cli.views import loss_text

    shown = min(MEAN_STEPS, document["steps"])
    grid = Table.grid(padding=(0, 2))
    grid.add_row("Job", document["job"])
    grid.add_row("Steps", f"{document['steps']:,} of {document['total_steps']:,}")
    grid.add_row(f"Loss, first {shown}", f"{loss_text(document['first_loss'])} nats per token")
    grid.add_row(f"Loss, last {shown}", f"{loss_text(document['last_loss'])} nats per token")
    grid.add_row("Export", f"{document['bytes']:,} bytes, {document['bytes_per_step']:.1f} a step")
    return grid
