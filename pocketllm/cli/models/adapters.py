"""`pocketllm adapters` and `pocketllm rollback`: what was learned, which of it is served, and going back."""

import tarfile
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.cli.errors import CommandError, Document, UsageError

EPILOG = examples("pocketllm rollback", "pocketllm rollback --model NAME", "pocketllm rollback --json")

AdapterId = Annotated[str, typer.Argument(metavar="ID", help="The adapter's id, as `pocketllm adapters` shows it.")]


class Format(StrEnum):
    """As what an adapter is exported."""

    PEFT = "peft"
    GGUF = "gguf"


adapters_app = typer.Typer(invoke_without_command=True)


@adapters_app.callback(
    epilog=examples("pocketllm adapters", "pocketllm adapters serve ID", "pocketllm adapters --json")
)
@shared_options
def adapters(options: Common, ctx: typer.Context) -> None:
    """List what was learned, each with what it started from, or have one served.

    Without a command the list is shown.
    """
    if ctx.invoked_subcommand is None:
        show_list(options)


@adapters_app.command("list", epilog=examples("pocketllm adapters list", "pocketllm adapters list --json"))
@shared_options
def list_adapters(options: Common) -> None:
    """List the adapters, newest first; the star is what is served, and the ones that it goes back to have dots."""
    show_list(options)


@adapters_app.command("serve", epilog=examples("pocketllm adapters serve ID"))
@shared_options
def serve_adapter(options: Common, adapter_id: AdapterId) -> None:
    """Have an adapter served: to take a rollback back, or one that was kept and not served."""
    with connected(options) as client:
        tell(client.serve_adapter(adapter_id), options)


@adapters_app.command("delete", epilog=examples("pocketllm adapters delete ID"))
@shared_options
def delete_adapter(options: Common, adapter_id: AdapterId) -> None:
    """Delete an adapter and its files. One that is served, or that others were made from, stays."""
    with connected(options) as client:
        gone = client.delete_adapter(adapter_id)
    if options.json:
        emit(gone)
        return
    make_console().print(f"{gone['id']} and its files are gone.")


@adapters_app.command(
    "export",
    epilog=examples(
        "pocketllm adapters export ID",
        "pocketllm adapters export ID --to ~/peft",
        "pocketllm adapters export ID --format gguf --base MODEL.gguf",
    ),
)
@shared_options
def export_adapter(
    options: Common,
    adapter_id: AdapterId,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to put it.")] = Path(),
    wanted: Annotated[
        Format, typer.Option("--format", help="peft: the adapter's folder; gguf: a LoRA file for llama.cpp, ID.gguf.")
    ] = Format.PEFT,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="With gguf: the base model's GGUF file. If the adapter needs one whose output head is a tensor of its "
            "own, a copy that has one is put beside it.",
        ),
    ] = None,
) -> None:
    """Write an adapter's folder, which PEFT loads (`PeftModel.from_pretrained`), or a file that llama.cpp loads."""
    target = to / (f"{adapter_id}.gguf" if wanted is Format.GGUF else adapter_id)
    if base is not None and wanted is not Format.GGUF:
        raise UsageError("--base goes with --format gguf.")
    if target.exists():
        raise UsageError(f"{target} is there already. Choose another folder with --to.")
    if wanted is Format.GGUF:
        fetch_gguf(adapter_id, target, options)
        tell_gguf(adapter_id, target, base, options)
        return
    with (
        connected(options) as client,
        client.export_adapter(adapter_id, format=wanted) as pieces,
        tempfile.TemporaryFile() as whole,
    ):
        for piece in pieces:
            whole.write(piece)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(to, filter="data")
    if options.json:
        emit({"id": adapter_id, "folder": str(target)})
        return
    make_console().print(f"Wrote {target}.", soft_wrap=True)


def fetch_gguf(adapter_id: str, target: Path, options: Common) -> None:
    """Write the adapter's LoRA file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.writing")
    try:
        with (
            connected(options) as client,
            client.export_adapter(adapter_id, format=Format.GGUF) as pieces,
            scratch.open("wb") as file,
        ):
            for piece in pieces:
                file.write(piece)
        scratch.rename(target)
    finally:
        scratch.unlink(missing_ok=True)


def tell_gguf(adapter_id: str, target: Path, base: Path | None, options: Common) -> None:
    """Say which base file goes with a LoRA file; write one if there is none yet and the tied one is given."""
    from pocketllm.engine.errors import MezoError
    from pocketllm.engine.formats.gguf_header import read_gguf_header
    from pocketllm.engine.formats.gguf_untied import HEAD, write_untied

    try:
        needs_head = f"{HEAD}.lora_a" in read_gguf_header(target).tensors
        if base is not None and needs_head and HEAD not in read_gguf_header(base).tensors:
            source, base = base, target.with_name(f"{base.stem}-untied.gguf")
            if not base.exists():
                write_untied(source, base)
    except MezoError as error:
        raise CommandError(str(error)) from error
    if options.json:
        emit({"id": adapter_id, "file": str(target), "base": base and str(base), "needs_untied_head": needs_head})
        return
    console = make_console()
    console.print(f"Wrote {target}. llama.cpp loads it: -m {base or 'BASE.gguf'} --lora {target}", soft_wrap=True)
    if base is None and needs_head:
        console.print(
            "It adapts the output head, so that BASE.gguf must have one of its own (output.weight). If yours has none, "
            f"delete {target.name} and export again with --base BASE.gguf: a copy that has one is put beside it.",
            soft_wrap=True,
        )


@shared_options
def rollback(
    options: Common,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which model's; else the one that the daemon teaches.")
    ] = None,
) -> None:
    """Go back to what the served adapter was made from; done again and again, to the base model.

    Nothing is deleted: `pocketllm adapters serve ID` takes it back. What only the job taken back has learned is set
    aside and not learned again until then.
    """
    with connected(options) as client:
        tell(client.roll_back(model=model), options)


def show_list(options: Common) -> None:
    """Print the adapters."""
    with connected(options) as client:
        found = client.adapters()
    if options.json:
        emit({"data": found})
        return
    from pocketllm.cli.models.adapters_view import adapters_table

    make_console().print(adapters_table(found))


def tell(change: Document, options: Common) -> None:
    """Print what was served and what is now."""
    if options.json:
        emit(change)
        return
    from pocketllm.cli.models.adapters_view import served_text

    make_console().print(served_text(change), soft_wrap=True)
