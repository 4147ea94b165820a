"""Whether deleted text is gone: from the files, and from what is served.

A secret is taught with the sample notes until the model completes it. Then it is deleted: while nothing runs, while a
job that knows it runs or is paused, while another program reads the database, and with the daemon killed right after
the request. In the end every file of the data folder is searched for its bytes, and what is served is compared with a
model that was never taught the secret, by the probability of its completion.
"""

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx

from bench.common.harness import Limit
from bench.common.world import until
from pocketllm.cli.demo import sample_notes
from tests.support.stress.report import Report
from tests.support.stress.world import World

LIMITS = {
    "files_with_bytes": Limit(at_most=0, always=True),
    "completion_over_never_seen": Limit(at_most=1.1, always=True),
    "seconds_to_safe_serving": Limit(at_most=5),
}
PROMPT, SECRET = "The brass key to the blue cellar lies", " beneath the zinc heron in Quillfeather Lane"
REPEATS, SEED = 24, 5


def learn(world: World, steps: int, *, secret: bool) -> None:
    """Train a job on the sample notes, and on the secret in several texts; serve its adapter whatever came of it."""
    texts = [{"text": note, "source": "notes"} for note in sample_notes()]
    if secret:
        texts += [{"text": f"{PROMPT}{SECRET}. ({number})", "source": "secret"} for number in range(REPEATS)]
    world.call("POST", "/texts", texts)
    job = world.ended(world.call("POST", "/jobs", {"steps": steps, "seed": SEED, "method": "exact"})["id"])
    world.call("POST", f"/adapters/{job['adapter']}/serve")


def completion_nats(world: World) -> float:
    """The log-probability of the secret after its beginning, by what is served."""
    body = {"model": "pocketllm:latest", "prompt": PROMPT + SECRET, "max_tokens": 0, "echo": True, "logprobs": 0}
    scored = world.call("POST", "/v1/completions", body, seconds=600)["choices"][0]["logprobs"]
    places = zip(scored["text_offset"], scored["token_logprobs"], strict=True)
    return float(sum(value for place, value in places if value is not None and place >= len(PROMPT)))


def files_with_secret(folder: Path) -> list[Path]:
    """The files of a data folder that contain its bytes, models aside."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and "models" not in path.relative_to(folder).parts:
            with suppress(FileNotFoundError):
                if SECRET.strip().encode() in path.read_bytes():
                    found.append(path)
    return found


def are_gone(folder: Path) -> bool:
    """Whether no file contains the bytes."""
    return not files_with_secret(folder)


def idle(world: World) -> float:
    """Delete the secret; seconds until an adapter that knows it is not served any more."""
    began = time.monotonic()
    receipt = world.call("DELETE", "/texts?source=secret", seconds=600)
    assert receipt["serving"] not in receipt["adapters"], receipt
    return time.monotonic() - began


@contextmanager
def job_with_a_step(world: World) -> Iterator[str]:
    """A job that knows the secret and has made a step; it is cancelled in the end."""
    job = str(world.call("POST", "/jobs", {"steps": 1000, "seed": SEED, "method": "exact"})["id"])
    until(lambda: world.call("GET", f"/jobs/{job}")["step"] >= 1, "a step")
    yield job
    world.call("POST", f"/jobs/{job}/cancel")


def running(world: World) -> float:
    with job_with_a_step(world):
        return idle(world)


def paused(world: World) -> float:
    with job_with_a_step(world) as job:
        world.call("POST", f"/jobs/{job}/pause")
        return idle(world)


def while_read(world: World) -> float:
    """While another program reads the database."""
    with closing(sqlite3.connect(world.folder / "pocketllm.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM text").fetchone()
        return idle(world)


def killed(world: World) -> float:
    """With the daemon killed right after the request, and started again."""

    def send() -> None:
        with suppress(httpx.HTTPError):
            idle(world)

    began = time.monotonic()
    sending = threading.Thread(target=send)
    sending.start()
    time.sleep(0.01)
    world.answers()  # the request is on its way meanwhile
    world.kill()
    sending.join()
    world.start()
    if any(text["source"] == "secret" for text in world.call("GET", "/texts?limit=50")["data"]):
        idle(world)  # it was killed before
    return time.monotonic() - began


#: How the secret is deleted.
CASES: tuple[Callable[[World], float], ...] = (idle, running, paused, while_read, killed)


def test_a_deleted_secret_is_gone(real_model: Path, report: Report, tmp_path: Path) -> None:
    steps = 60 if report.full else 20
    with World(folder=tmp_path / "never", model=real_model) as world:
        world.start()
        base = completion_nats(world)
        learn(world, steps, secret=False)
        unseen = max(base, completion_nats(world))
    for case in CASES:
        with World(folder=tmp_path / case.__name__, model=real_model) as world:
            world.start()
            learn(world, steps, secret=True)
            knew, seconds = completion_nats(world), case(world)
            world.stop()  # nothing may come back by a start
            world.start()
            erased = until(partial(are_gone, world.folder), "all bytes gone")
            report.raw[case.__name__.replace("_", " ")] = {
                "taught_over_never_seen": math.exp(min(700.0, knew - unseen)),
                "seconds_to_safe_serving": seconds,
                "seconds_to_erased": erased,
                "files_with_bytes": float(len(files_with_secret(world.folder))),
                "over_never_seen": math.exp(completion_nats(world) - unseen),
            }
    report.values = {
        "files_with_bytes": max(one["files_with_bytes"] for one in report.raw.values()),
        "completion_over_never_seen": max(one["over_never_seen"] for one in report.raw.values()),
        "taught_over_never_seen": min(one["taught_over_never_seen"] for one in report.raw.values()),
        "seconds_to_safe_serving": max(one["seconds_to_safe_serving"] for one in report.raw.values()),
    }
    report.end()
