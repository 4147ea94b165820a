"""`pocketllm adapters` and `pocketllm rollback`: list, serve, export and delete adapters, and roll back."""

import tarfile
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, examples, shared_options, show, whole_file
from pocketllm.errors import Document, UsageError

EPILOG = examples("pocketllm rollback", "pocketllm rollback --model NAME", "pocketllm rollback --json")

AdapterId = Annotated[
    str, typer.Argument(metavar="ID", help="Adapter id or its first characters; see `pocketllm adapters`.")
]


class Format(StrEnum):
    """The format of an export."""

    PEFT = "peft"
    GGUF = "gguf"
    MERGED = "merged"


adapters_app = typer.Typer(invoke_without_command=True)


@adapters_app.callback(
    epilog=examples("pocketllm adapters", "pocketllm adapters serve ID", "pocketllm adapters --json")
)
@adapters_app.command(
    "list",
    help="List the adapters, newest first. `*` marks the one being served, `.` its ancestors.",
    epilog=examples("pocketllm adapters list", "pocketllm adapters list --json"),
)
@shared_options
def adapters(options: Common, ctx: typer.Context) -> None:
    """List, serve, export or delete adapters.

    Without a command, lists them.
    """
    if ctx.invoked_subcommand is not None:
        return
    from pocketllm.cli.models.adapters_view import adapters_table

    with connected(options) as client:
        found = client.get("adapters")
    show(options, found, adapters_table(found["data"]))


@adapters_app.command("serve", epilog=examples("pocketllm adapters serve ID"))
@shared_options
def serve_adapter(
    options: Common,
    adapter_id: AdapterId,
    yes: Annotated[
        bool, typer.Option("--yes", help="Serve it even if it learned text that was deleted since.")
    ] = False,
) -> None:
    """Serve an adapter, to undo a rollback or to use one that was not promoted."""
    with connected(options) as client:
        show_change(client.post("adapters", adapter_id, "serve", deleted_text=yes), options)


@adapters_app.command("delete", epilog=examples("pocketllm adapters delete ID"))
@shared_options
def delete_adapter(options: Common, adapter_id: AdapterId) -> None:
    """Delete an adapter and its files. Fails if it is served or another adapter was made from it."""
    with connected(options) as client:
        client.delete("adapters", adapter_id)
    show(options, {"deleted": adapter_id}, f"Deleted {adapter_id} and its files.")


@adapters_app.command(
    "export",
    epilog=examples(
        "pocketllm adapters export ID",
        "pocketllm adapters export ID --to ~/peft",
        "pocketllm adapters export ID --format gguf",
        "pocketllm adapters export ID --merged",
    ),
)
@shared_options
def export_adapter(
    options: Common,
    adapter_id: AdapterId,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = Path(),
    export_format: Annotated[
        Format, typer.Option("--format", help="peft: a folder for PEFT; gguf: a LoRA file for llama.cpp, ID.gguf.")
    ] = Format.PEFT,
    merged: Annotated[bool, typer.Option("--merged", help="Write the whole personal model as one GGUF file.")] = False,
) -> None:
    """Export an adapter as a folder for PEFT (`PeftModel.from_pretrained`) or as a file for llama.cpp.

    With --merged, exports the whole personal model as one file for llama.cpp.
    """
    from pocketllm.daemon.tools.backup import unpack

    export_format = Format.MERGED if merged else export_format
    if export_format is not Format.PEFT:
        export_gguf(adapter_id, export_format, unused(to / f"{adapter_id}.gguf"), options)
        return
    with (
        connected(options) as client,
        client.download("adapters", adapter_id, "export", params={"format": export_format.value}) as response,
        tempfile.TemporaryFile() as whole,
    ):
        for piece in response.iter_bytes():
            whole.write(piece)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            full_id = archive.getnames()[0].split("/")[0]
            target = unused(to / full_id)
            unpack(archive, to)
    show(options, {"id": full_id, "folder": str(target)}, f"Wrote {target}.")


def unused(target: Path) -> Path:
    """Return the path. Raises UsageError where something is there already."""
    if target.exists():
        raise UsageError(f"{target} already exists. Choose another folder with --to.")
    return target


def export_gguf(adapter_id: str, export_format: Format, target: Path, options: Common) -> None:
    """Write the file for llama.cpp, whole or not at all, and print its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        connected(options) as client,
        client.download("adapters", adapter_id, "export", params={"format": export_format.value}) as response,
        whole_file(target) as file,
    ):
        for piece in response.iter_bytes():
            file.write(piece)
    usage = f"-m {target}" if export_format is Format.MERGED else f"-m BASE.gguf --lora {target}"
    sentence = f"Wrote {target}. To load it in llama.cpp: {usage}"
    show(options, {"id": adapter_id, "file": str(target)}, sentence)


@shared_options
def rollback(
    options: Common,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model to roll back. Default: the one that the daemon trains.")
    ] = None,
) -> None:
    """Serve the parent of the served adapter, or the base model if it has none.

    Deletes nothing; `pocketllm adapters serve ID` undoes it. Until then, texts that only the withdrawn job learned are
    set aside: no job learns them again.
    """
    with connected(options) as client:
        show_change(client.post("adapters", "rollback", body={} if model is None else {"model": model}), options)


def show_change(change: Document, options: Common) -> None:
    """Print what was served and what is now."""
    from pocketllm.cli.models.adapters_view import served_text

    show(options, change, served_text(change))
