"""How fast a running job gives way: the real daemon and worker, the real model, a charger taken out on disk.

python -m bench.pause [--pauses 20] [--quick]

The daemon is shown a folder laid out as the kernel lays out power supplies. For each pause the charger's `online` goes
from 1 to 0 while the worker runs, and the bench takes the time from that moment until the worker's process is gone: the
wait for the daemon's next poll is part of it. Then back to 1, until a worker runs again. At last the job runs to its
end, and its adapter is compared, byte by byte, with that of a job that nothing disturbed, whose worker's memory counts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file

from bench.harness import Limit, finish, parser, progress, start, table
from bench.shapes import SMOLLM2, ensure, models_folder
from bench.world import daemon_on, until
from bench.writers import ended
from pocketllm.cli.demo import sample_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pocketllm.client import Client

#: The daemon's setting: it polls its sensors at this interval while a job runs.
POLL_SECONDS = 2.0
LIMITS = {
    "worst_unplug_to_exit_s": Limit(at_most=POLL_SECONDS + 1),
    "bit_equal": Limit(at_least=1, always=True),
}
_SEED = 3
#: The charger is left in for about so long.
_RUN_SECONDS, _QUICK_RUN_SECONDS = (3.0, 8.0), (0.2, 0.5)
_QUICK_PAUSES, _QUICK_STEPS, _STEPS = 2, 1000, 60


class Charger:
    """A supply and a battery, as the kernel shows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, attributes in {
            "AC": {"type": "Mains", "online": "1"},
            "BAT0": {"type": "Battery", "status": "Charging", "present": "1", "capacity": "80"},
        }.items():
            (folder / name).mkdir(parents=True)
            for attribute, content in attributes.items():
                (folder / name / attribute).write_text(content + "\n")

    def plug(self, plugged: bool) -> None:
        """Change what a sensor sees: the battery first, so that nothing in between is a third state."""
        (self.folder / "BAT0" / "status").write_text("Charging\n" if plugged else "Discharging\n")
        (self.folder / "AC" / "online").write_text("1\n" if plugged else "0\n")


@contextmanager
def daemon(folder: Path, model: Path, charger: Charger, *, quick: bool) -> Iterator[Client]:
    """The real daemon on a folder of its own."""
    settings = {
        "POWER_SUPPLIES": str(charger.folder),
        "TICK_SECONDS": f"{POLL_SECONDS:g}",
        "IDLE_TICK_SECONDS": f"{POLL_SECONDS:g}",
        "GATE__REQUIRE_POWER": "true",
        "TRAINING__NEW_WORDS": "10000000",
        **({"TRAINING__METHOD": "mezo", "TRAINING__PROBES": "1"} if quick else {}),
    }
    with daemon_on(folder, model, **settings) as client:
        client.post("texts", body=[{"text": text, "source": "bench"} for text in sample_notes()])
        yield client


def worker_of(client: Client) -> int | None:
    """The worker's process id."""
    pid: int | None = client.get("status")["worker"]["pid"]
    return pid


def gone(pid: int) -> bool:
    """Whether the process is no more, and its memory with it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def disturb(
    client: Client, charger: Charger, pauses: int, run_seconds: tuple[float, float]
) -> tuple[list[float], list[float]]:
    """Unplug and plug in the charger: for each pause the seconds from unplugging to exit, and to a worker again."""
    rng, paused, resumed = random.Random(_SEED), [], []
    for number in range(1, pauses + 1):
        until(lambda: worker_of(client), "a worker")
        time.sleep(rng.uniform(*run_seconds))
        pid = worker_of(client)
        if pid is None:
            raise SystemExit("The job has ended before all pauses were made: give it more --steps.")
        charger.plug(False)
        paused.append(until(partial(gone, pid), "the worker's end"))
        charger.plug(True)
        resumed.append(until(lambda: worker_of(client), "a worker again"))
        progress(f"pause {number}: gone in {paused[-1]:.2f} s, back in {resumed[-1]:.2f} s")
    return paused, resumed


def adapter_sum(folder: Path, job: dict[str, Any]) -> str:
    """The checksum of what a job has made: of its tensors, since the file also names the job."""
    made = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "adapters" / job["adapter"] / "adapter_model.safetensors").items()):
        made.update(name.encode() + tensor.tobytes())
    return made.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    pauses = _QUICK_PAUSES if options.quick else options.pauses
    steps = options.steps or (_QUICK_STEPS if options.quick else _STEPS)
    sums, job = [], {}
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny" if options.quick else SMOLLM2, "bfloat16").absolute()
        charger = Charger(Path(scratch) / "power_supply")
        paused: list[float] = []
        resumed: list[float] = []
        for name in ("disturbed", "undisturbed"):
            folder = Path(scratch) / name
            progress(f"{name} job of {steps} steps ...")
            with daemon(folder, model, charger, quick=options.quick) as client:
                request = {"steps": steps, "seed": _SEED, "now": False}  # it waits for the charger
                asked = str(client.post("jobs", body=request)["id"])
                if name == "disturbed":
                    paused, resumed = disturb(
                        client, charger, pauses, _QUICK_RUN_SECONDS if options.quick else _RUN_SECONDS
                    )
                job = ended(client, asked)
                sums.append(adapter_sum(folder, job))
    values: dict[str, float | None] = {
        "worst_unplug_to_exit_s": max(paused),
        "median_unplug_to_exit_s": median(paused),
        "worst_plug_to_worker_s": max(resumed),
        "worker_peak_mb": job["peak_memory_bytes"] / 1e6,
        "bit_equal": float(sums[0] == sums[1]),
    }
    rows = [
        [str(number), f"{one:.2f}", f"{other:.2f}"]
        for number, (one, other) in enumerate(zip(paused, resumed, strict=True), 1)
    ]
    shown = table(
        f"{pauses} pauses",
        ["pause", "worker gone after, s", "worker back after, s"],
        rows,
        caption=f"From the change on disk; the daemon polls every {POLL_SECONDS:g} s. The adapter's checksum: "
        f"{sums[0][:12]} disturbed, {sums[1][:12]} undisturbed.",
    )
    raw = {"paused": paused, "resumed": resumed, "sums": sums, "steps": steps}
    return finish("pause", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.pause", "How fast a running job gives way, with the real daemon, worker and model.")
    made.add_argument("--pauses", type=int, default=20)
    made.add_argument("--steps", type=int, help="of the job")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
