"""`pocketllm replay`: replay a MeZO job from its steps, and compare the adapters. Needs no daemon."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, examples, local_options, make_console, show, stored
from pocketllm.errors import EXIT_ERROR, CommandError, Document, NotReplayed
from pocketllm.home import configured_data_dir

if TYPE_CHECKING:
    from rich.console import Console

#: Told of the steps done and of all there are.
Progress = Callable[[int, int], None]
PLAIN_LINE_SECONDS = 5.0

EPILOG = examples("pocketllm replay JOB", "pocketllm replay JOB --output ./rebuilt", "pocketllm replay JOB --json")


@local_options
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

    console = make_console(stderr=options.json)
    with progress(console, quiet=options.json and not console.is_terminal) as on_row:
        document = rebuilt(options.data_dir or configured_data_dir(), job_id, output, on_row)
    show(options, document, replay_view(document))
    if not document["identical"]:
        raise typer.Exit(EXIT_ERROR)


def rebuilt(data_dir: Path, job_id: str, output: Path | None, on_row: Progress) -> Document:
    """Return what a replay found. Raises NotReplayed for whatever kept it from being done."""
    from pocketllm.daemon.errors import DaemonError
    from pocketllm.daemon.paths import DataFolder
    from pocketllm.engine.errors import MezoError
    from pocketllm.storage.errors import StorageError

    folder = DataFolder(data_dir)
    try:
        with stored(folder.database) as store:
            store.jobs.get(job_id)  # an id that is mistyped shows before torch is imported, which takes a while
            from pocketllm.daemon.tools.replay import rebuild

            found = rebuild(folder, store, job_id, output=output, on_row=on_row)
    except (CommandError, DaemonError, MezoError, StorageError) as error:
        raise NotReplayed(str(error)) from error
    except OSError as error:
        raise NotReplayed(f"{error.filename}: {error.strerror}." if error.filename else str(error)) from error
    shown = None if output is None else str(output)
    return asdict(found) | {"differing": list(found.differing), "identical": found.identical, "output": shown}


@contextmanager
def progress(console: "Console", *, quiet: bool) -> Iterator[Progress]:
    """Yield a function that shows how far a replay is: a moving bar on a terminal, else a plain line now and then."""
    if quiet:
        yield lambda done, of: None
    elif not console.is_terminal:
        yield PlainLines(console.print, time.monotonic).show
    else:
        from rich.progress import Progress as Bars

        with Bars(console=console, transient=True) as bars:
            task = bars.add_task("Replaying", total=None)
            yield lambda done, of: bars.update(task, completed=done, total=of)


class PlainLines:
    """Prints how far a replay is every few seconds; nothing for a short one."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self._next_at = clock() + PLAIN_LINE_SECONDS

    def show(self, done: int, of: int) -> None:
        """Print the line if the last one is old."""
        if (now := self._clock()) >= self._next_at:
            self._write(f"Replayed {done} of {of} steps.")
            self._next_at = now + PLAIN_LINE_SECONDS
