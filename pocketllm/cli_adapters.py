"""`pocketllm adapters` and `pocketllm rollback`: what was learned, which of it is served, and going back."""

import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli_common import Common, DataDir, Json, Url, common, connected, emit, examples, make_console
from pocketllm.cli_errors import Document, UsageError

EPILOG = examples("pocketllm rollback", "pocketllm rollback --model NAME", "pocketllm rollback --json")

AdapterId = Annotated[str, typer.Argument(metavar="ID", help="The adapter's id, as `pocketllm adapters` shows it.")]

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
    adapter_id: AdapterId,
    url: Url = None,
    data_dir: DataDir = None,
    json_wanted: Json = False,
) -> None:
    """Have an adapter served: to take a rollback back, or one that was kept and not served."""
    options = common(ctx, url, data_dir, json_wanted)
    with connected(options) as client:
        tell(client.serve_adapter(adapter_id), options)


@adapters_app.command("delete", epilog=examples("pocketllm adapters delete ID"))
def delete_adapter(
    ctx: typer.Context, adapter_id: AdapterId, url: Url = None, data_dir: DataDir = None, json_wanted: Json = False
) -> None:
    """Delete an adapter and its files. One that is served, or that others were made from, stays."""
    options = common(ctx, url, data_dir, json_wanted)
    with connected(options) as client:
        gone = client.delete_adapter(adapter_id)
    if options.json:
        emit(gone)
        return
    make_console().print(f"{gone['id']} and its files are gone.")


@adapters_app.command(
    "export", epilog=examples("pocketllm adapters export ID", "pocketllm adapters export ID --to ~/peft")
)
def export_adapter(
    ctx: typer.Context,
    adapter_id: AdapterId,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to put the adapter's folder.")] = Path(),
    url: Url = None,
    data_dir: DataDir = None,
    json_wanted: Json = False,
) -> None:
    """Write an adapter's folder, which PEFT loads (`PeftModel.from_pretrained`), under a folder of yours."""
    options = common(ctx, url, data_dir, json_wanted)
    target = to / adapter_id
    if target.exists():
        raise UsageError(f"{target} is there already. Choose another folder with --to.")
    with connected(options) as client, client.export_adapter(adapter_id) as pieces, tempfile.TemporaryFile() as whole:
        for piece in pieces:
            whole.write(piece)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(to, filter="data")
    if options.json:
        emit({"id": adapter_id, "folder": str(target)})
        return
    make_console().print(f"Wrote {target}.", soft_wrap=True)


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
