"""`pocketllm adapters` and `pocketllm rollback`: what was learned, which of it is served, and going back."""

from typing import Annotated

import typer

from pocketllm.cli_common import Common, DataDir, Json, Url, common, connected, emit, examples, make_console
from pocketllm.cli_errors import Document

EPILOG = examples("pocketllm rollback", "pocketllm rollback --model NAME", "pocketllm rollback --json")

adapters_app = typer.Typer(invoke_without_command=True)


@adapters_app.callback(
    epilog=examples("pocketllm adapters", "pocketllm adapters serve ID", "pocketllm adapters --json")
)
def adapters(ctx: typer.Context, url: Url = None, data_dir: DataDir = None, json_wanted: Json = False) -> None:
    """List what was learned, each with what it started from, or have one served.

    Without a command the list is shown.
    """
    ctx.obj = common(ctx, url, data_dir, json_wanted)
    if ctx.invoked_subcommand is None:
        show_list(ctx.obj)


@adapters_app.command("list", epilog=examples("pocketllm adapters list", "pocketllm adapters list --json"))
def list_adapters(ctx: typer.Context, url: Url = None, data_dir: DataDir = None, json_wanted: Json = False) -> None:
    """List the adapters, newest first; the star is what is served, and the ones that it goes back to have dots."""
    show_list(common(ctx, url, data_dir, json_wanted))


@adapters_app.command("serve", epilog=examples("pocketllm adapters serve ID"))
def serve_adapter(
    ctx: typer.Context,
    adapter_id: Annotated[
        str, typer.Argument(metavar="ID", help="The adapter's id, as `pocketllm adapters` shows it.")
    ],
    url: Url = None,
    data_dir: DataDir = None,
    json_wanted: Json = False,
) -> None:
    """Have an adapter served: to take a rollback back, or one that was kept and not served."""
    options = common(ctx, url, data_dir, json_wanted)
    with connected(options) as client:
        tell(client.serve_adapter(adapter_id), options)


def rollback(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which model's; else the one that the daemon teaches.")
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    json_wanted: Json = False,
) -> None:
    """Go back to what the served adapter was made from; done again and again, to the base model.

    Nothing is deleted: `pocketllm adapters serve ID` takes it back. What only the job taken back has learned is set
    aside and not learned again until then.
    """
    options = common(ctx, url, data_dir, json_wanted)
    with connected(options) as client:
        tell(client.roll_back(model=model), options)


def show_list(options: Common) -> None:
    """Print the adapters."""
    with connected(options) as client:
        found = client.adapters()
    if options.json:
        emit({"data": found})
        return
    from pocketllm.views_adapters import adapters_table

    make_console().print(adapters_table(found))


def tell(change: Document, options: Common) -> None:
    """Print what was served and what is now."""
    if options.json:
        emit(change)
        return
    from pocketllm.views_adapters import served_text

    make_console().print(served_text(change), soft_wrap=True)
