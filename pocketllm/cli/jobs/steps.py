"""`pocketllm steps`: a job's steps as a file, for safe keeping or a replay elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, examples, shared_options, show
from pocketllm.cli.errors import CommandError
from pocketllm.cli.files import check_target, whole_file

EPILOG = examples("pocketllm steps JOB job.steps", "pocketllm replay JOB --steps job.steps")


@shared_options
def steps(
    options: Common,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Job id; see `pocketllm jobs`.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a job's steps to a file.

    The file has one line per step and no text. With the base model, it is enough to rebuild a MeZO job's adapter.
    """
    from pocketllm.storage.step_log_export import read_export

    check_target(file, force=force)
    with connected(options) as client:
        data = client.steps(job_id)
    try:
        found = read_export(data)
    except ValueError as error:
        raise CommandError(f"The daemon's steps of {job_id} cannot be read: {error}") from error
    with whole_file(file) as target:
        target.write(data)
    document = {"job": found.header["job"], "steps": len(found.rows), "bytes": len(data), "file": str(file)}
    show(options, document, f"Wrote {file}: {len(found.rows):,} steps in {len(data):,} bytes.")
