"""The demo: a real daemon in a folder of its own learns from sample notes, and the model's change is shown.

The daemon is the one that `pocketllm serve` runs, and every number comes from its answers.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pocketllm.child import running_daemon
from pocketllm.cli.jobs import find_report, follow, job_display
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.errors import CommandError, Document
from pocketllm.home import read_document, running_settings
from pocketllm.readers.notes import paragraphs

if TYPE_CHECKING:
    from rich.console import Console

    from pocketllm.client import Client

MARKER = ".pocketllm-demo"
FRESH_EACH_TIME = ("pocketllm.db*", "adapters", "tokens.json", "daemon.json")
SERVE = (sys.executable, "-m", "pocketllm", "serve")
# A first try should not take long, and its held-out loss should be seen to fall.
DEFAULT_STEPS, MEZO_STEPS = 26, 60
SETTINGS = {"TRAINING__BATCH": "4", "TRAINING__RATE": "3e-3", "TRAINING__MEASURE_EVERY": "9"}
STALL_SECONDS = 90.0  # a job that waits for longer than this ends the demo

# Prompts in the style of the sample notes, which do not contain them.
PROMPTS = (
    "Wind south-east, drizzle. Walked down to the shed and",
    "Fog till noon. The admiral found",
    "Dry at last. Two mugs of tea, then",
)
SEED = 1  # of the job and of the answers, so that the demo can be repeated
ANSWER_TOKENS = 48
DEMO_WORDS = 6  # of the report; `pocketllm report` shows all


def run_demo(
    console: "Console",
    *,
    data_dir: Path,
    install: Callable[[Path, "Console"], str],
    steps: int | None = None,
    method: str | None = None,
    serve_command: Sequence[str] = SERVE,
) -> Document:
    """Teach the sample notes to the default model in `data_dir`, and show the model before and after.

    Starts a daemon there and stops it whatever happens. Returns {"learned", "job", "answers", "seconds"}; raises
    CommandError when it fails.

    install: puts a model into the given models folder, if it is missing, and returns its name.
    """
    from pocketllm.cli.job_views import outcome, words_view

    begun = time.monotonic()
    prepare_folder(data_dir)
    console.print("1. The model", style="bold")
    model = install(data_dir / "models", console)
    console.print("2. The daemon", style="bold")
    with running_daemon(data_dir, [*serve_command, "--model", model], settings=SETTINGS) as client:
        console.print(
            f"It runs at {client.target.url} and writes its log to {data_dir / 'daemon.log'}.", soft_wrap=True
        )
        console.print("3. The texts", style="bold")
        notes = sample_notes()
        client.post("texts", body=[{"text": note, "source": "sample-notes"} for note in notes])
        words = sum(len(note.split()) for note in notes)
        console.print(f"Stored {len(notes)} sample notes, {words} words: a retired ferry mechanic's log of a boatyard.")
        console.print("4. Training", style="bold")
        job = learn(client, console, steps or (MEZO_STEPS if method == "mezo" else DEFAULT_STEPS), method)
        console.print("5. Before and after", style="bold")
        console.print(outcome(job))
        answers = compare(client, console, job["adapter"]) if job["adapter"] else []
        report = find_report(client, job["id"])  # which the worker makes meanwhile
        if report is not None and report["words"]:
            console.print(words_view(report["words"][:DEMO_WORDS]))
    seconds = time.monotonic() - begun
    show_next_steps(console, data_dir, seconds)
    learned = job["outcome"] == "learned"
    return {"learned": learned, "job": job, "answers": answers, "seconds": round(seconds, 1)}


def prepare_folder(data_dir: Path) -> None:
    """Make the demo's folder, or empty that of an earlier demo except for its models.

    Raises CommandError, before any change, when the folder is not a demo's or a daemon uses it.
    """
    marker = data_dir / MARKER
    if data_dir.exists() and not data_dir.is_dir():
        raise CommandError(f"{data_dir} is a file. Choose a folder with --data-dir.")
    if data_dir.is_dir() and any(data_dir.iterdir()) and not marker.is_file():
        raise CommandError(
            f"{data_dir} is not empty and was not made by a demo, so nothing in it was touched. "
            "Choose another folder with --data-dir."
        )
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(DataFolder(data_dir).daemon_lock) as acquired:
        if not acquired:
            pid = read_document(data_dir / "daemon.json").get("pid")
            how = "" if running_settings(data_dir) is None else f" with `kill {pid}`"
            raise CommandError(f"A daemon is using {data_dir}. Stop it first{how}, then start the demo again.")
        marker.write_text("`pocketllm demo` deletes the database and the adapters beside this file.\n")
        # The models stay, since importing them takes time.
        for path in chain.from_iterable(map(data_dir.glob, FRESH_EACH_TIME)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def sample_notes() -> list[str]:
    """The sample notes that come with PocketLLM, each paragraph a text."""
    return paragraphs(files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8"))


def learn(client: "Client", console: "Console", steps: int, method: str | None) -> Document:
    """Train now and show the progress. Raises CommandError when the job does not succeed or never starts."""
    job = client.post("jobs", body={"steps": steps, "seed": SEED, "method": method})
    with job_display(console) as shown:
        job = follow(client, job, shown, stall_seconds=STALL_SECONDS)
    if job["state"] != "succeeded":
        raise CommandError(
            f"The job {job['state']}: {job['error'] or 'no reason was recorded'}. See worker.log in the demo's folder."
        )
    return job


def compare(client: "Client", console: "Console", adapter: str) -> list[Document]:
    """Show and return the base model's and the personal model's answers to the same prompts."""
    from pocketllm.cli.job_views import answers_view

    answers: list[Document] = []
    with console.status("Asking both models..."):
        for prompt in PROMPTS:
            request = {"prompt": prompt, "seed": SEED, "max_tokens": ANSWER_TOKENS}
            base, personal = (
                client.post("generate", body={**request, "adapter": who})["text"] for who in ("base", adapter)
            )
            answers.append({"prompt": prompt, "base": base, "personal": personal})
    console.print(answers_view(answers))
    return answers


def own_command() -> str:
    """Return how a shell finds this program: its name, or its path in an environment that is not active."""
    script = Path(sys.executable).with_name("pocketllm")
    if not script.exists() or shutil.which("pocketllm") == str(script):
        return "pocketllm"
    below = script.is_relative_to(Path.cwd())
    return shlex.quote(str(script.relative_to(Path.cwd()) if below else script))


def show_next_steps(console: "Console", data_dir: Path, seconds: float) -> None:
    """Print how long it took and what to try next, as lines to copy."""
    from pocketllm.cli.views import duration_text

    folder, command = shlex.quote(str(data_dir)), own_command()
    lines = [
        f"\nThe demo took {duration_text(seconds)}. The daemon is stopped. To start it again on this folder:",
        f"  {command} serve --data-dir {folder}",
        "Then, in another terminal, let it suggest words, or open its page:",
        f'  {command} suggest "{PROMPTS[0]} " --data-dir {folder}',
        f"  {command} dashboard --data-dir {folder}",
    ]
    console.print("\n".join(lines), soft_wrap=True)
