"""How fast a running job gives way: the real daemon and worker, the real model, a charger taken out on disk.

The daemon is shown a folder laid out as the kernel lays out power supplies. For each pause the charger's `online` goes
from 1 to 0 while the worker runs, and what counts is the time from that moment until the worker's process is gone: the
wait for the daemon's next poll is part of it. Then back to 1, until a worker runs again. At last the job runs to its
end, and its adapter is compared, byte by byte, with that of a job that nothing disturbed, whose worker's memory counts.
"""

import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.common.harness import Limit
from bench.common.world import until
from pocketllm.cli.demo import sample_notes
from tests.support.stress.report import Report
from tests.support.stress.world import Charger, World

#: The daemon's setting: it polls its sensors at this interval while a job runs.
POLL_SECONDS = 2.0
LIMITS = {"worst_unplug_to_exit_s": Limit(at_most=POLL_SECONDS + 1), "bit_equal": Limit(at_least=1, always=True)}
SEED = 3


def pause_and_resume(world: World, charger: Charger) -> tuple[float, float]:
    """Unplug and plug in the charger: the seconds from unplugging to the worker's end, and to a worker again."""
    pid = world.pid_of("worker")
    assert pid is not None, "the job has ended before all pauses were made"
    charger.plug(False)
    paused = until(lambda: not Path(f"/proc/{pid}").exists(), "the worker's end")  # and the daemon has noticed it
    charger.plug(True)
    return paused, until(lambda: world.pid_of("worker"), "a worker again")


def test_a_job_gives_way_and_ends_like_an_undisturbed_one(real_model: Path, report: Report, tmp_path: Path) -> None:
    # The charger is left in for about so long.
    pauses, steps, run_seconds = (20, 60, (3.0, 8.0)) if report.full else (2, 1000, (0.2, 0.5))
    charger, rng, seconds = Charger(tmp_path / "power_supply"), random.Random(SEED), list[tuple[float, float]]()
    sums, job = [], dict[str, Any]()
    for name in ("disturbed", "undisturbed"):
        with World(folder=tmp_path / name, model=real_model, method="auto" if report.full else "mezo") as world:
            world.configure(
                POWER_SUPPLIES=str(charger.folder),
                TICK_SECONDS=f"{POLL_SECONDS:g}",
                IDLE_TICK_SECONDS=f"{POLL_SECONDS:g}",
                GATE__REQUIRE_POWER="true",
                TRAINING__PROBES="1",
            )
            world.start()
            world.call("POST", "/texts", [{"text": text, "source": "bench"} for text in sample_notes()])
            request = {"steps": steps, "seed": SEED, "now": False}  # it waits for the charger
            requested = world.call("POST", "/jobs", request)["id"]
            for _ in range(pauses if name == "disturbed" else 0):
                until(lambda: world.pid_of("worker"), "a worker")
                time.sleep(rng.uniform(*run_seconds))
                seconds.append(pause_and_resume(world, charger))
            job = world.ended(requested)
            sums.append(world.adapter_sum(job))
    paused, resumed = zip(*seconds, strict=True)
    report.values = {
        "worst_unplug_to_exit_s": max(paused),
        "median_unplug_to_exit_s": median(paused),
        "worst_plug_to_worker_s": max(resumed),
        "worker_peak_mb": job["peak_memory_bytes"] / 1e6,
        "bit_equal": float(sums[0] == sums[1]),
    }
    report.raw = {"paused": paused, "resumed": resumed, "sums": sums, "steps": steps}
    report.end()
