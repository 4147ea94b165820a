"""`pocketllm adapters` and `pocketllm rollback`: list, add, serve, export and delete adapters, and roll back."""

import tarfile
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pocketllm.cli.program import Common, connected, daemon_settings, given, program, show, stored
from pocketllm.cli.texts import Place, watch
from pocketllm.engine.formats.atomic import whole_file
from pocketllm.errors import Document, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

PANEL = "Models and adapters"
BASE = "the base model"

AdapterId = Annotated[
    str, typer.Argument(metavar="ID", help="Adapter id or its first characters; see `pocketllm adapters`.")
]


@program.group("pocketllm adapters", "pocketllm adapters serve ID", "pocketllm adapters --json", panel=PANEL)
def adapters(options: Common) -> None:
    """List, add, serve, export or delete adapters.

    Without a command, lists them, newest first.
    """
    with connected(options) as client:
        found = client.get("adapters")
    show(options, found, adapters_table(found["data"]))


@adapters.command("pocketllm adapters add ~/peft/notes", name="add", without=("url",))
def add(
    options: Common,
    folder: Place,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Its model. Default: the configured one.")] = None,
) -> None:
    """Add an adapter that was trained elsewhere, by PEFT (a LoRA folder) or by PocketLLM.

    It is copied, and the daemon judges it on this device's held-out text: it is served if it is better than what is.
    """
    from pocketllm.added_adapters import add_adapter

    settings = daemon_settings(options, model=model)
    with stored(options.folder) as store:
        job, said = add_adapter(folder.expanduser(), options.folder, store, settings, now=datetime.now(UTC))
    document = {"job": job.id, "model": job.model, "message": said}
    show(options, document, f"Queued {job.id}, which judges it: {said}. See `pocketllm jobs {job.id}`.")


@adapters.command("pocketllm adapters watch ~/sync/adapters", name="watch", without=("url",))
def watch_adapters(options: Common, folder: Place) -> None:
    """Watch a folder, such as one in sync with another device, and add the newest adapter that appears in it.

    The daemon looks every hour. `pocketllm folders` lists the folder, `pocketllm folders remove FOLDER` ends it.
    """
    watch(options, folder, adapters=True)


@adapters.command("pocketllm adapters serve ID", name="serve")
def serve_adapter(
    options: Common,
    adapter_id: AdapterId,
    yes: Annotated[
        bool, typer.Option("--yes", help="Serve it even if it learned text that was deleted since.")
    ] = False,
) -> None:
    """Serve an adapter, to undo a rollback or to use one that was not promoted."""
    with connected(options) as client:
        change = client.post("adapters", adapter_id, "serve", deleted_text=yes)
    show(options, change, served_text(change))


@adapters.command("pocketllm adapters delete ID", name="delete")
def delete_adapter(options: Common, adapter_id: AdapterId) -> None:
    """Delete an adapter and its files. Fails if it is served or another adapter was made from it."""
    with connected(options) as client:
        client.delete("adapters", adapter_id)
    show(options, {"deleted": adapter_id}, f"Deleted {adapter_id} and its files.")


@adapters.command(
    "pocketllm adapters export ID",
    "pocketllm adapters export ID --to ~/peft",
    "pocketllm adapters export ID --format gguf",
    "pocketllm adapters export ID --format merged",
    name="export",
)
def export_adapter(
    options: Common,
    adapter_id: AdapterId,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = Path(),
    export_format: Annotated[
        Literal["peft", "gguf", "merged"],
        typer.Option(
            "--format", help="peft: a folder for PEFT; gguf: a LoRA file, ID.gguf; merged: the whole model as GGUF."
        ),
    ] = "peft",
) -> None:
    """Export an adapter as a folder for PEFT (`PeftModel.from_pretrained`) or as a file for llama.cpp."""
    from pocketllm.daemon.tools.backup import unpack

    is_folder = export_format == "peft"
    target = to if is_folder else unused(to / f"{adapter_id}.gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"format": export_format}
    with connected(options) as client, client.download("adapters", adapter_id, "export", params=parameters) as response:
        if not is_folder:
            with whole_file(target) as file:
                file.writelines(response.iter_bytes())
        else:
            with tempfile.TemporaryFile() as whole:
                whole.writelines(response.iter_bytes())
                whole.seek(0)
                with tarfile.open(fileobj=whole) as archive:
                    adapter_id = archive.getnames()[0].split("/")[0]
                    target = unused(to / adapter_id)
                    unpack(archive, to)
    if is_folder:
        show(options, {"id": adapter_id, "folder": str(target)}, f"Wrote {target}.")
        return
    usage = f"-m {target}" if export_format == "merged" else f"-m BASE.gguf --lora {target}"
    sentence = f"Wrote {target}. To load it in llama.cpp: {usage}"
    show(options, {"id": adapter_id, "file": str(target)}, sentence)


def unused(target: Path) -> Path:
    """Return the path. Raises UsageError where something is there already."""
    if target.exists():
        raise UsageError(f"{target} already exists. Choose another folder with --to.")
    return target


@program.command("pocketllm rollback", "pocketllm rollback --model NAME", "pocketllm rollback --json", panel=PANEL)
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
        change = client.post("adapters", "rollback", body=given(model=model))
    show(options, change, served_text(change))


def adapters_table(found: Sequence[Document]) -> "RenderableType":
    """Return the adapters, newest first."""
    from pocketllm.cli.views import change_text, table

    rows = []
    for one in found:
        change = change_text(one["held_out_loss_before"], one["held_out_loss_now"])
        rows.append(one | {"parent": one["parent"] or BASE, "held_out_loss": change})
    names = ("id", "serving", "parent", "outcome", "held_out_loss", "model")
    return table(rows, names, empty="No adapters yet. `pocketllm train` starts a job.")


def served_text(change: Document) -> str:
    """Return what was served, what is now, and how to undo that."""
    was, serving = change["was"] or BASE, change["serving"] or BASE
    if was == serving:
        return f"{change['model']} already serves {serving}."
    sentences = [f"From the next request on, {change['model']} serves {serving} instead of {was}."]
    if change["skipped"]:
        sentences.append(
            f"Skipped, because damaged or trained on text that was deleted since: {', '.join(change['skipped'])}."
        )
    if change["was"]:
        sentences.append(f"To undo: `pocketllm adapters serve {was}`.")
    return " ".join(sentences)
