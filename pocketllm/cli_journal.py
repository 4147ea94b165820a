"""`pocketllm journal`: what a job's steps came to, and their file for safe keeping or a replay elsewhere."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli_common import DataDir, Json, Url, common, connected, emit, examples, make_console
from pocketllm.cli_errors import CommandError, Document

if TYPE_CHECKING:
    from pocketllm.storage.journal_codec import JournalRow

#: Losses are shown as means over this many steps: one batch says little.
MEAN_STEPS = 20

EPILOG = examples("pocketllm journal JOB", "pocketllm journal JOB --export job.journal", "pocketllm journal JOB --json")


def journal(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as `pocketllm jobs` shows it.")],
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write the steps to this file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    url: Url = None,
    data_dir: DataDir = None,
    json_wanted: Json = False,
) -> None:
    """Show what a job's steps came to, or write them to a file.

    The file holds a few bytes a step and no text. With the base model it is enough to do the learning again.
    """
    options = common(ctx, url, data_dir, json_wanted)
    if export is not None:
        check_target(export, force=force)
    with connected(options) as client:
        data = client.journal(job_id)
    document = summary(job_id, data)
    if export is not None:
        write_whole(export, data)
        document["file"] = str(export)
    if options.json:
        emit(document)
    elif export is None:
        show(document)
    else:
        sizes = f"{document['bytes']:,} bytes, {document['bytes_per_step']:.1f} a step"
        make_console().print(f"Wrote {export}: {document['steps']:,} steps in {sizes}.", soft_wrap=True)


def summary(job_id: str, data: bytes) -> Document:
    """Return what is in an export, for people and for --json. Raises CommandError when it is not sound."""
    from pocketllm.storage.journal_export import read_export

    try:
        found = read_export(data)
    except ValueError as error:
        raise CommandError(f"The daemon's journal of {job_id} cannot be read: {error}") from error
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


def mean_loss(rows: "Sequence[JournalRow]") -> float:
    """Return the mean training loss of some steps, in nats per token."""
    return round(sum(row.loss for row in rows) / len(rows), 4)


def show(document: Document) -> None:
    """Print a summary as a short table."""
    from rich.table import Table

    from pocketllm.views import loss_text

    shown = min(MEAN_STEPS, document["steps"])
    grid = Table.grid(padding=(0, 2))
    grid.add_row("Job", document["job"])
    grid.add_row("Steps", f"{document['steps']:,} of {document['total_steps']:,}")
    grid.add_row(f"Loss, first {shown}", f"{loss_text(document['first_loss'])} nats per token")
    grid.add_row(f"Loss, last {shown}", f"{loss_text(document['last_loss'])} nats per token")
    grid.add_row("Export", f"{document['bytes']:,} bytes, {document['bytes_per_step']:.1f} a step")
    make_console().print(grid)


def check_target(path: Path, *, force: bool) -> None:
    """Refuse, before anything is asked for, a file that cannot be written. Raises CommandError."""
    if path.is_dir():
        raise CommandError(f"{path} is a folder. Give the name of a file.")
    if not path.parent.is_dir():
        raise CommandError(f"There is no folder {path.parent}. Make it first.")
    if path.exists() and not force:
        raise CommandError(f"{path} is there already. Give another name, or --force to replace it.")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that under its name stands all of it or what stood there before."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".pocketllm-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        Path(scratch).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(scratch).unlink()
        raise
