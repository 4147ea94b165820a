"""`pocketllm texts`: list, show and delete texts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, ShowByDefault, connected, examples, make_console, shared_options, show
from pocketllm.daemon.paths import DataFolder
from pocketllm.errors import CommandError, UsageError
from pocketllm.home import configured_data_dir

DEFAULT_LIMIT = 20
MAX_LISTED = 500  # the most that the daemon gives in a page

TextId = Annotated[str, typer.Argument(metavar="ID", help="Text id or its first characters; see `pocketllm texts`.")]

texts_app = typer.Typer(cls=ShowByDefault, invoke_without_command=True)


@texts_app.callback(
    epilog=examples(
        "pocketllm texts",
        "pocketllm texts ID",
        "pocketllm texts delete ID ID",
        'pocketllm texts --query "ferry timetable"',
        "pocketllm texts --limit 100 --after ID",
        "pocketllm texts --json",
    )
)
@texts_app.command(
    "list",
    help="List the texts with their first words, newest first.",
    epilog=examples(
        "pocketllm texts list --limit 100", "pocketllm texts list --after ID", "pocketllm texts list --json"
    ),
)
@shared_options
def texts(
    options: Common,
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="Number of texts to show.")] = DEFAULT_LIMIT,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Start after this text, the last one of the previous page.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="WORDS", help="Show texts that contain any of these words, best match first."),
    ] = None,
) -> None:
    """List, show (`pocketllm texts ID`) or delete texts.

    Without a command, lists them. `pocketllm export` writes them all to a file.
    """
    if ctx.invoked_subcommand is not None:
        return
    from pocketllm.cli.text_views import texts_table

    with connected(options) as client:
        page = client.get("texts", limit=limit, after=after, query=query)
    show(options, page, texts_table(page, width=make_console().width, now=datetime.now(UTC), query=query))


@texts_app.command(
    "show", epilog=examples("pocketllm texts show ID", "pocketllm texts ID", "pocketllm texts ID --json")
)
@shared_options
def show_text(options: Common, text_id: TextId) -> None:
    """Show a whole text."""
    from pocketllm.cli.text_views import text_details

    with connected(options) as client:
        text = client.get("texts", text_id)
    show(options, text, text_details(text, datetime.now(UTC)), soft_wrap=True)


@texts_app.command(
    "delete",
    epilog=examples(
        "pocketllm texts delete ID ID", "pocketllm texts delete --source notes", "pocketllm texts delete ID --yes"
    ),
)
@shared_options
def delete_texts(
    options: Common,
    text_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Text ids; see `pocketllm texts`.")
    ] = None,
    source: Annotated[str, typer.Option(help="Delete every text from this source.")] = "",
    app: Annotated[str, typer.Option(metavar="NAME", help="Delete every text that only this app sent.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Delete every text from this watched folder's source.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete texts, all or none, and overwrite their bytes on disk.

    Adapters that learned from the texts are no longer served, and a job is queued to train again on the rest. If an
    adapter is affected, or you use --source, --app or --folder, the command shows the cost and asks for confirmation.
    """
    if folder is not None:
        source = source_of(folder, options)
    if sum(map(bool, (text_ids, source, app))) != 1:
        raise UsageError("Give ids, or one of --source, --app and --folder.")
    which = {"id": text_ids, "source": source or None}
    with connected(options) as client:
        cost = client.get("deletions", "cost", app=app or None, **which)
        said = (f"{cost['texts']:,} texts. " * bool(source or app) + cost["summary"]).strip()
        if said and not yes:
            if options.json:
                raise UsageError(f"{said} Give --yes to delete anyway.")
            typer.confirm(f"{said} Delete?", abort=True)
        receipt = client.delete("apps", app, "texts") if app else client.delete("texts", **which)
    show(options, receipt, receipt["summary"])


def source_of(folder: Path, options: Common) -> str:
    """Return the source of a watched folder's texts. Raises CommandError for another folder."""
    from pocketllm.daemon.folders import watched_folders

    path = str(folder.expanduser().resolve())
    for one in watched_folders(DataFolder(options.data_dir or configured_data_dir())):
        if one.path == path:
            return one.name
    raise CommandError(f"{path} is not watched. Give its source with --source; `pocketllm texts` shows the sources.")
