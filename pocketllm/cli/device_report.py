"""What `pocketllm doctor --report` writes: the device, its sensors, and a rehearsal of a night. No word of the owner's.

The rehearsal is a real daemon's, in a folder of its own, with the sample notes: a short job whose worker is killed and
goes on, and an answer of the adapter that it makes.
"""

import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pocketllm import __version__
from pocketllm.child import running_daemon
from pocketllm.cli.demo import PROMPTS, SERVE, STALL_SECONDS, add_notes
from pocketllm.cli.jobs import follow
from pocketllm.errors import CommandError, Document

if TYPE_CHECKING:
    from pocketllm.client import Client
    from pocketllm.daemon.settings import Settings
    from pocketllm.daemon.tools.doctor import Examination

STEPS = 6
KILLED_AT_STEP = 2
ANSWER_TOKENS = 16
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "SQLAlchemy", "uvicorn")
#: Lines of /proc/cpuinfo that tell what a processor can do.
_PROCESSOR = ("model name", "Hardware", "CPU part", "Features", "flags")
_POLL_SECONDS = 0.2
#: Fields of the rehearsed job that stand in the report as they are.
_JOB_FIELDS = (
    *("state", "error", "outcome", "method", "attempts", "predicted_bytes", "peak_memory_bytes"),
    *("held_out_loss_before", "held_out_loss_now", "events"),
)


def device_report(settings: "Settings", examination: "Examination", *, say: Callable[[str], None]) -> Document:
    """Rehearse, and return the report. say: is told what happens, for progress.

    Raises CommandError when the data folder cannot be written. What goes wrong in the rehearsal is in the report.
    """
    now = datetime.now(UTC)
    readings = [
        asdict(reading) | {"at": reading.at.isoformat(), "age_seconds": round((now - reading.at).total_seconds(), 1)}
        for reading in examination.readings
    ]
    report = {
        "made_at": now.isoformat(timespec="seconds"),
        "device": _device(),
        "versions": _versions(),
        "readings": readings,
        "findings": [asdict(finding) for finding in examination.findings],
        "calibration": _calibration(settings.data_dir / "models" / settings.model),
        "rehearsal": _rehearsal(settings, say),
    }
    # Paths name the owner's home.
    document: Document = json.loads(json.dumps(report).replace(json.dumps(str(Path.home()))[1:-1], "~"))
    return document


def _device() -> Document:
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        lines = []
    processor = {name.strip(): text.strip() for name, text in lines if name.strip() in _PROCESSOR}
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "processor": processor,
    }


def _versions() -> Document:
    found: Document = {"pocketllm": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _calibration(model: Path) -> Document | None:
    from pocketllm.engine.errors import ModelFileError
    from pocketllm.engine.formats.model_folder import open_model_folder

    try:
        return open_model_folder(model).manifest.calibration
    except ModelFileError:
        return None


def _rehearsal(settings: "Settings", say: Callable[[str], None]) -> Document:
    model = settings.data_dir / "models" / settings.model
    if not model.is_dir():
        return {"error": f"There is no model {settings.model}. Run `pocketllm models add`."}
    try:
        with tempfile.TemporaryDirectory(dir=settings.data_dir, prefix="rehearsal-") as folder:
            (Path(folder) / "models").mkdir()
            (Path(folder) / "models" / model.name).symlink_to(model)
            say("starting a daemon in a folder of its own")
            with running_daemon(Path(folder), [*SERVE, "--model", model.name]) as client:
                return rehearse(client, say)
    except CommandError as error:
        return {"error": str(error)}
    except OSError as error:
        raise CommandError(f"The rehearsal could not write to {settings.data_dir}: {error}.") from error


def rehearse(client: "Client", say: Callable[[str], None]) -> Document:
    """Have a daemon learn the sample notes for a few steps, kill its worker in between, and ask what it made.

    Returns how long that took, what it needed, and what was foretold. Raises CommandError.
    """

    def shown(job: Document) -> None:
        say(f"{job['state']}, step {job['step']} of {job['total_steps']}")

    pause = partial(time.sleep, _POLL_SECONDS)
    until = partial(follow, client, shown=shown, stall_seconds=STALL_SECONDS, pause=pause)
    add_notes(client)
    began = time.monotonic()
    job = until(client.post("jobs", body={"steps": STEPS, "seed": 1}), enough=lambda job: job["step"] >= 1)
    first_step_seconds = time.monotonic() - began
    before = until(job, enough=lambda job: job["step"] >= KILLED_AT_STEP)
    worker = client.get("status")["worker"]["pid"]
    if worker is not None:
        os.kill(worker, signal.SIGKILL)
        say(f"killed the worker after step {before['step']}; the job continues by itself")
    ended = until(before)
    found = {name: ended[name] for name in _JOB_FIELDS} | {
        "plan": ended["plan"] or {},
        "steps": ended["step"],
        "killed_at_step": before["step"] if worker is not None else None,
        "first_step_seconds": round(first_step_seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }
    if ended["state"] == "succeeded":
        say("generating text")
        began = time.monotonic()
        request = {"prompt": PROMPTS[0], "max_tokens": ANSWER_TOKENS, "adapter": ended["adapter"] or "base"}
        answer = client.post("generate", body=request)
        found["answer"] = {**answer, "seconds": round(time.monotonic() - began, 1)}
    return found


def summary(report: Document) -> str:
    """The rehearsal in a sentence, for the owner."""
    found = report["rehearsal"]
    if found["error"]:
        return f"The rehearsal failed: {found['error']}"
    killed = found["killed_at_step"]
    went_on = f"Its worker was killed after step {killed} and the job continued. " if killed is not None else ""
    return (
        f"The rehearsal made {found['steps']} steps ({found['method']}) in {found['seconds']:.0f} s, the first after "
        f"{found['first_step_seconds']:.0f} s, with a peak of {found['peak_memory_bytes'] / 1e6:.0f} MB. "
        f"{went_on}Generating text took {found['answer']['seconds']:.0f} s."
    )
