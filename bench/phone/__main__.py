"""Nights of a phone that sleeps, through the real gate, scheduler, pollers and parsers; and its service under runit.

python -m bench.phone [--days 30] [--seed 0 ...] [--quick]

With its screen off a phone sleeps, and the daemon's timers stand still (doze.py). A job is queued each evening. What
counts: awake seconds in which it might have begun before it does, after each time that the charger is plugged in;
seconds trained against a condition for longer than a poll takes to see it; the part of the eligible time that was used;
and how often the daemon wakes an hour while no job waits. Then the service is installed in a prefix that looks like
Termux's and started by the real runit: by a boot, a login shell and another boot. Supervisors beyond one are counted,
and the time from Android's idle hook to the start of a job.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.harness import Limit, finish, parser, progress, start, table
from bench.phone.doze import Phone, Seen
from bench.phone.installed import PROGRAMS, InstalledPhone
from bench.shapes import ensure, models_folder
from bench.world import until
from bench.year.world import HOUR, World
from pocketllm.client import Client
from pocketllm.home import find_target

LIMITS = {
    "first_start_s_after_plug": Limit(at_most=120),
    "violation_s": Limit(at_most=0, always=True),
    "eligible_used": Limit(at_least=0.9),
    "wakeups_per_hour_idle": Limit(at_most=60),
    "second_supervisor": Limit(at_most=0, always=True),
}
_QUICK_DAYS = 2


def under_runit(model: Path, folder: Path) -> tuple[int, float]:
    """The supervisors beyond one after a boot and a login, and the seconds from the idle hook to a job's start."""
    phone = InstalledPhone(folder, model)
    try:
        phone.boot()
        until(lambda: phone.daemon is not None, "the daemon after a boot")
        phone.log_in()
        phone.boot().wait(timeout=30)
        supervisors = len(phone.supervisors())
        with Client(find_target(None, phone.data)) as client:
            notes = [{"text": f"Note {number}: wind west.", "source": "notes"} for number in range(40)]
            client.post("texts", body=notes)
            until(lambda: bool(client.get("jobs", limit=1)["data"]), "a job that waits")
            began = time.monotonic()
            phone.idle()
            until(lambda: client.get("jobs", limit=1)["data"][0]["started_at"] is not None, "its start")
            return supervisors - 1, time.monotonic() - began
    finally:
        phone.switch_off()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    logging.disable(logging.WARNING)
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise SystemExit(f"{', '.join(missing)} is missing: apt-get install runit")
    days = _QUICK_DAYS if options.quick else options.days
    lives: dict[str, Seen] = {}
    for seed in options.seed:
        progress(f"seed {seed}: {days} days ...")
        with tempfile.TemporaryDirectory() as folder:
            lives[str(seed)] = Phone(World(seed=seed, days=days), Path(folder)).live()
    progress("the service under runit ...")
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as folder:
        second, seconds = under_runit(ensure(models, "llama-tiny", "bfloat16").absolute(), Path(folder) / "phone")
    seen = list(lives.values())
    values: dict[str, float | None] = {
        "first_start_s_after_plug": max((at for life in seen for at in life.first_starts), default=None),
        "violation_s": sum(life.violation for life in seen),
        "eligible_used": min(life.used / life.eligible for life in seen),
        "wakeups_per_hour_idle": max(life.wakeups / life.idle * HOUR for life in seen),
        "second_supervisor": float(second),
        "hook_to_start_s": seconds,
    }
    rows = [
        [
            seed,
            f"{life.learned / HOUR / days:.2f}",
            f"{life.eligible / HOUR / days:.2f}",
            f"{100 * life.used / life.eligible:.1f}",
            f"{max(life.first_starts, default=0):.0f}",
            f"{life.wakeups / life.idle * HOUR:.0f}",
        ]
        for seed, life in lives.items()
    ]
    columns = ["seed", "learned, h a day", "eligible, h a day", "used, %", "longest wait, awake s", "wake-ups an hour"]
    shown = table(f"{days} days of a phone that sleeps", columns, rows)
    raw = {seed: vars(life) for seed, life in lives.items()}
    return finish("phone", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.phone", "Nights of a phone that sleeps, and its service under runit.")
    made.add_argument("--days", type=int, default=30)
    made.add_argument("--seed", type=int, nargs="+", default=[0], help="one life for each")
    made.add_argument("--models", type=Path, help="keep the tiny model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
