"""`pocketllm plan`: the memory and time of a job, before it is started. Works with and without a daemon."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, connected, examples, shared_options, show, stored
from pocketllm.errors import Document, NoDaemon, UsageError
from pocketllm.home import announced_target, configured_data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from pocketllm.api.native.schemas.plan import EnoughTextOut

EPILOG = examples(
    "pocketllm plan",
    "pocketllm plan --mode full --steps 1000",
    "pocketllm plan --model NAME --batch 16",
    "pocketllm plan --json",
)


class TrainingMode(StrEnum):
    """The trained parameters."""

    LORA = "lora"
    FULL = "full"


# What `train` and `plan` have in common; without them the daemon's settings stand.
Steps = Annotated[int | None, typer.Option(min=1, help="Number of steps. Default: the daemon's setting.")]


class TrainingMethod(StrEnum):
    """The training method."""

    AUTO = "auto"
    EXACT = "exact"
    MEZO = "mezo"


Mode = Annotated[TrainingMode | None, typer.Option(help="Train a low-rank adapter (lora) or all weights (full).")]
Method = Annotated[
    TrainingMethod | None,
    typer.Option(
        help="exact: gradients, one layer at a time; mezo: forward passes only; auto: exact if it fits in memory."
    ),
]
Batch = Annotated[int | None, typer.Option(min=1, max=1024, help="Blocks of text per step.")]
Probes = Annotated[int | None, typer.Option(min=1, max=64, help="Random directions per step of mezo.")]


@shared_options
def plan(
    options: Common,
    mode: Mode = None,
    method: Method = None,
    batch: Batch = None,
    probes: Probes = None,
    steps: Steps = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Installed model (see `pocketllm models`). Default: the daemon's."),
    ] = None,
) -> None:
    """Show the memory and time a job would take, and what would be reduced to make it fit.

    Starts nothing. Asks the running daemon; if there is none, reads the data folder and settings.
    """
    requested = requested_fields(steps=steps, mode=mode, method=method, batch=batch, probes=probes)
    if model is not None and options.url is not None:
        raise UsageError("--model reads models on this device and --url asks a daemon. Give one of them.")
    document = plan_of_daemon(options, requested) if model is None else None
    if document is None:
        document = plan_here(options.data_dir, requested, model=model)
    from pocketllm.cli.job_views import plan_view

    show(options, document, plan_view(document))


def requested_fields(
    *,
    steps: int | None,
    mode: TrainingMode | None,
    method: TrainingMethod | None,
    batch: int | None,
    probes: int | None,
) -> Document:
    """Return what was given, as the fields of a request: what was not is left to the settings."""
    given = {"steps": steps, "mode": mode and mode.value, "method": method and method.value}
    given |= {"batch": batch, "probes": probes}
    return {name: value for name, value in given.items() if value is not None}


def plan_of_daemon(options: Common, requested: Document) -> Document | None:
    """Return the running daemon's plan; None when no daemon was named and none runs on the data folder."""
    named = options.url or os.environ.get("POCKETLLM_URL")
    if not named and announced_target(options.data_dir or configured_data_dir()) is None:
        return None
    try:
        with connected(options) as client:
            return client.post("jobs", "plan", body=requested)
    except NoDaemon:
        if named:
            raise
        return None  # it has left its address behind


def plan_here(data_dir: "Path | None", requested: Document, *, model: str | None) -> Document:
    """Return the plan that a daemon on the data folder would give, from its settings and the model's files.

    Raises MezoError when the job cannot fit or there is no such model, and BadSettings.
    """
    from pocketllm.api.native.schemas.plan import PlanOut
    from pocketllm.daemon.paths import DataFolder
    from pocketllm.daemon.scheduling.planning import JobRequest, plan_job, with_request
    from pocketllm.daemon.settings import load_settings
    from pocketllm.engine.formats.model_folder import open_model_folder

    overrides = {"data_dir": data_dir, "model": model}
    settings = load_settings({name: value for name, value in overrides.items() if value is not None})
    folder = DataFolder(settings.data_dir)
    planned = plan_job(
        open_model_folder(folder.models / settings.model),
        with_request(settings.training, JobRequest(**requested)),
        steps=requested.get("steps", settings.training.steps),
    )
    enough_text = stored_text(folder.database)
    return PlanOut.of(planned, model=settings.model, enough_text=enough_text).model_dump(mode="json")


def stored_text(database: "Path") -> "EnoughTextOut":
    """Return how much text there is to learn from: none where there is no database yet."""
    from pocketllm.api.native.schemas.plan import EnoughTextOut

    if not database.exists():
        return EnoughTextOut.of(0, 0)
    with stored(database) as store:
        counts = store.texts.counts()
    return EnoughTextOut.of(counts.texts, counts.new_words)
