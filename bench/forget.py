"""Whether deleted text is gone: from the files, and from what is served.

python -m bench.forget [--quick]

A secret is taught with the sample notes until the model completes it. Then it is deleted: while nothing runs, while a
job that knows it runs or is paused, while another program reads the database, and with the daemon killed right after
the request. In the end every file of the data folder is searched for its bytes, and what is served is compared with a
model that was never taught the secret, by the probability of its completion.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from bench.harness import Limit, finish, parser, progress, start, table
from bench.shapes import SMOLLM2, ensure, models_folder
from bench.world import as_owner, daemon_on, until
from bench.writers import ended
from pocketllm.errors import CommandError

if TYPE_CHECKING:
    from pocketllm.client import Client

LIMITS = {
    "files_with_bytes": Limit(at_most=0, always=True),
    "completion_over_never_seen": Limit(at_most=1.1, always=True),
    "seconds_to_safe_serving": Limit(at_most=5),
}
_PROMPT, _SECRET = "The brass key to the blue cellar lies", " beneath the zinc heron in Quillfeather Lane"
_REPEATS, _STEPS, _QUICK_STEPS, _SEED = 24, 60, 20, 5


@dataclass(frozen=True, kw_only=True)
class World:
    """A data folder, and the daemon's settings."""

    folder: Path
    model: Path
    steps: int

    def daemon(self) -> AbstractContextManager[Client]:
        """The real daemon on the folder."""
        return daemon_on(self.folder, self.model)

    def files_with(self, words: str) -> list[str]:
        """The files of the folder that contain these bytes, models aside."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and "models" not in path.relative_to(self.folder).parts:
                with suppress(FileNotFoundError):
                    if words.encode() in path.read_bytes():
                        found.append(str(path.relative_to(self.folder)))
        return found


def taught(client: Client, *, secret: bool) -> None:
    """Store the sample notes, and the secret in several texts."""
    notes = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8").split("\n\n")
    texts = [{"text": note, "source": "notes"} for note in notes if note.strip()]
    if secret:
        texts += [{"text": f"{_PROMPT}{_SECRET}. ({number})", "source": "secret"} for number in range(_REPEATS)]
    client.post("texts", body=texts)


def learned(client: Client, steps: int) -> None:
    """Train one job to its end, and serve its adapter whatever came of it."""
    found = ended(client, str(client.post("jobs", body={"steps": steps, "seed": _SEED, "method": "exact"})["id"]))
    client.post("adapters", found["adapter"], "serve")


def completion_nats(world: World, client: Client) -> float:
    """The log-probability of the secret after its beginning, by what is served."""
    body = {"model": "pocketllm:latest", "prompt": _PROMPT + _SECRET, "max_tokens": 0, "echo": True, "logprobs": 0}
    scored = _request(world, client, "POST", "/v1/completions", body)["choices"][0]["logprobs"]
    places = zip(scored["text_offset"], scored["token_logprobs"], strict=True)
    return float(sum(value for place, value in places if value is not None and place >= len(_PROMPT)))


def _request(world: World, client: Client, method: str, path: str, body: Any = None) -> Any:
    return as_owner(world.folder, method, client.target.url + path, json=body, timeout=600)


def forgotten(world: World, client: Client) -> float:
    """Delete the secret; seconds until an adapter that knows it is not served any more."""
    began = time.monotonic()
    receipt = _request(world, client, "DELETE", "/texts?source=secret")
    if receipt["serving"] in receipt["adapters"]:
        raise SystemExit(f"An adapter that knows the secret is served: {receipt}")
    return time.monotonic() - began


def idle(world: World) -> float:
    """Delete while nothing runs."""
    with world.daemon() as client:
        return forgotten(world, client)


def running(world: World) -> float:
    """Delete while a job that knows the secret runs."""
    with world.daemon() as client:
        job = str(client.post("jobs", body={"steps": 1000, "seed": _SEED, "method": "exact"})["id"])
        until(lambda: client.get("jobs", job)["step"] >= 1, "a step")
        seconds = forgotten(world, client)
        client.post("jobs", job, "cancel")
        return seconds


def paused(world: World) -> float:
    """Delete while a job that knows the secret is paused."""
    with world.daemon() as client:
        job = str(client.post("jobs", body={"steps": 1000, "seed": _SEED, "method": "exact"})["id"])
        until(lambda: client.get("jobs", job)["step"] >= 1, "a step")
        client.post("jobs", job, "pause")
        seconds = forgotten(world, client)
        client.post("jobs", job, "cancel")
        return seconds


def while_read(world: World) -> float:
    """Delete while another program reads the database."""
    with world.daemon() as client, closing(sqlite3.connect(world.folder / "pocketllm.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM text").fetchone()
        return forgotten(world, client)


def killed(world: World) -> float:
    """Kill the daemon right after the request, and start it again."""
    with suppress(CommandError, SystemExit), world.daemon() as client:
        began = time.monotonic()
        sending = threading.Thread(target=lambda: _suppressed(lambda: forgotten(world, client)))
        sending.start()
        time.sleep(0.01)
        os.kill(int(client.get("health")["pid"]), signal.SIGKILL)
        sending.join()
    with world.daemon() as client:
        if any(text["source"] == "secret" for text in client.get("texts", limit=50)["data"]):
            forgotten(world, client)  # it was killed before
        return time.monotonic() - began


def _suppressed(work: Callable[[], object]) -> None:
    with suppress(httpx.HTTPError):
        work()


CASES: tuple[Callable[[World], float], ...] = (idle, running, paused, while_read, killed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    steps = _QUICK_STEPS if options.quick else _STEPS
    rows, raw = [], {}
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny" if options.quick else SMOLLM2, "bfloat16").absolute()
        never = World(folder=Path(scratch) / "never", model=model, steps=steps)
        with never.daemon() as client:
            taught(client, secret=False)
            base = completion_nats(never, client)
            learned(client, steps)
            unseen = max(base, completion_nats(never, client))
        for case in CASES:
            name = case.__name__.replace("_", " ")
            progress(f"{name} ...")
            raw[name] = _measured(World(folder=Path(scratch) / name, model=model, steps=steps), case, unseen)
            rows.append([name, *(f"{value:.3g}" for value in raw[name].values())])
    values: dict[str, float | None] = {
        "files_with_bytes": max(one["files_with_bytes"] for one in raw.values()),
        "completion_over_never_seen": max(one["over_never_seen"] for one in raw.values()),
        "taught_over_never_seen": min(one["taught_over_never_seen"] for one in raw.values()),
        "seconds_to_safe_serving": max(one["seconds_to_safe_serving"] for one in raw.values()),
    }
    columns = [
        "deleted while",
        "taught over never seen",
        "s to safe serving",
        "s to erased",
        "files with bytes",
        "over",
    ]
    shown = table("Deleted text", columns, rows, caption="Of probabilities: those of the secret's completion.")
    return finish("forget", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def _measured(world: World, case: Callable[[World], float], unseen: float) -> dict[str, float]:
    with world.daemon() as client:
        taught(client, secret=True)
        learned(client, world.steps)
        knew = completion_nats(world, client)
    seconds = case(world)
    began = time.monotonic()
    with world.daemon() as client:
        until(lambda: not world.files_with(_SECRET.strip()), "all bytes gone")
        erased = time.monotonic() - began
        now = completion_nats(world, client)
    return {
        "taught_over_never_seen": math.exp(min(700.0, knew - unseen)),
        "seconds_to_safe_serving": seconds,
        "seconds_to_erased": erased,
        "files_with_bytes": float(len(world.files_with(_SECRET.strip()))),
        "over_never_seen": math.exp(now - unseen),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.forget", "Whether deleted text is gone from the files and from what is served.")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
