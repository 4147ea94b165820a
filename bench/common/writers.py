"""What the benches of a writer share: texts, a job of the daemon's, and the loop over the writers."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.common.harness import parser, progress
from bench.common.shapes import learner, models_folder
from bench.common.world import until

if TYPE_CHECKING:
    from pocketllm.client import Client

Sizes = TypeVar("Sizes")


def options_of(arguments: Sequence[str] | None, name: str, description: str) -> argparse.Namespace:
    """The options of a bench of writers."""
    made = parser(name, description)
    made.add_argument("--text", type=Path, nargs="+", required=True, help="a writer's texts, oldest first")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    made.add_argument("--words", type=Path, help="a list of the language's words, one a line, for bench.keys")
    return made.parse_args(arguments)


def measure_each(
    options: argparse.Namespace,
    measured: Callable[[Path, Path, Sizes, Path], dict[str, Any]],
    *,
    full: Sizes,
    quick: Sizes,
) -> dict[str, dict[str, Any]]:
    """What is measured of each writer. measured: takes a file, the model's folder, sizes, and a folder to work in."""
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = learner(models, quick=options.quick).absolute()
        sizes = quick if options.quick else full
        return {file.stem: measured(file, model, sizes, Path(scratch)) for file in options.text}


def texts_of(file: Path) -> list[str]:
    """A writer's texts, which have blank lines between."""
    return [text.strip() for text in file.read_text(encoding="utf-8").split("\n\n") if text.strip()]


def some_words(texts: Sequence[str], words: int) -> Iterator[str]:
    """The first texts, until they have this number of words in all."""
    for text in texts:
        if words <= 0:
            return
        yield text
        words -= len(text.split())


def learned(client: Client, texts: Sequence[str]) -> str:
    """Learn these texts by a default job. Returns what is served then: its adapter, or the base model."""
    return trained(client, [{"text": text, "source": "writer"} for text in texts])


def trained(client: Client, texts: list[dict[str, Any]]) -> str:
    """The same for texts as POST /texts takes them."""
    client.post("texts", body=texts)
    found = ended(client, str(client.post("jobs", body={})["id"]))
    progress(f"{found['outcome']}: {found['held_out_loss_before']} -> {found['held_out_loss_now']}")
    served = client.get("status")["model"]["adapter"]
    return "base" if served is None else str(served)


def ended(client: Client, job: str) -> dict[str, Any]:
    """A job once it has succeeded. Raises SystemExit when it fails."""
    # Asked more often, the daemon would take half of the worker's time.
    until(lambda: client.get("jobs", job)["state"] in ("succeeded", "failed"), "the job's end", between_seconds=1)
    found = client.get("jobs", job)
    if found["state"] != "succeeded":
        raise SystemExit(f"The job failed: {found['error']}")
    return found
