"""`pocketllm replay`: replay a MeZO job from its steps, and compare the adapters. Needs no daemon."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, Report, make_console, program, progress, show, stored
from pocketllm.errors import EXIT_ERROR, CommandError, Document, NotReplayed


@program.command(
    "pocketllm replay JOB",
    "pocketllm replay JOB --output ./rebuilt",
    "pocketllm replay JOB --json",
    panel="Checks and backups",
    without=("url",),
)
def replay(
    options: Common,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Job id; see `pocketllm jobs`.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the rebuilt adapter to this new folder.")
    ] = None,
) -> None:
    """Rebuild a MeZO job's adapter from its steps, and compare it bit for bit with the stored one.

    Needs neither your texts nor the daemon. Exit code 0: identical. 1: different. 2: the job could not be replayed.
    """
    from pocketllm.cli.job_views import replay_view

    with progress(make_console(stderr=options.json), plain=not options.json) as report:
        document = rebuilt(options, job_id, output, report)
    show(options, document, replay_view(document))
    if not document["identical"]:
        raise typer.Exit(EXIT_ERROR)


def rebuilt(options: Common, job_id: str, output: Path | None, report: Report) -> Document:
    """Return what a replay found. Raises NotReplayed for whatever kept it from being done."""
    from pocketllm.daemon.errors import DaemonError
    from pocketllm.engine.errors import MezoError
    from pocketllm.storage.errors import StorageError

    def on_row(done: int, total: int) -> None:
        report("", f"Replayed {done} of {total} steps.", done, total)

    try:
        with stored(options.folder.database) as store:
            store.jobs.get(job_id)  # an id that is mistyped shows before torch is imported, which takes a while
            from pocketllm.daemon.tools.replay import rebuild

            found = rebuild(options.folder, store, job_id, output=output, on_row=on_row)
    except (CommandError, DaemonError, MezoError, StorageError) as error:
        raise NotReplayed(str(error)) from error
    except OSError as error:
        raise NotReplayed(f"{error.filename}: {error.strerror}." if error.filename else str(error)) from error
    written = None if output is None else str(output)
    return asdict(found) | {"differing": list(found.differing), "identical": found.identical, "output": written}
