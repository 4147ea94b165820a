"""What the mornings bring, on slow and fast devices, by the real scheduler, database, trainer and judge.

python -m bench.nights [--quick] [--seed N] [--seeds N] [--nights N] [--owners N]

Half of the owners begin with a few thousand words of their own, and half with nothing; all write every day, change a
note a day and delete one now and then. Time is simulated, and what is won follows measured curves (device.py). Each
device of an owner has its own luck in the verdicts. The lives of most owners end once something is served.

first_morning: of the runs, the part with an adapter that is served after the first night in which a job waited and 20
steps were possible; second_morning: after the second such night. gain_14: nats won after 14 nights over those of a
device that never pauses, and is slower by so much that it has as many seconds; text_14: over those of one job without
a pause on all text so far. used: of the time in which a job waited or ran and the device was free, the part in which a
worker ran, without what kills have lost. edited: nats won, over all mornings, over those without edits.
oldest_job_days: the greatest age at which a job ended. NAME_worst is of the worst device and model, NAME_imports and
NAME_nothing are of the owners who begin with text, and without; NAME_se is the standard error, by leaving out each
owner in turn (the jackknife).

The seed of the first owner follows from the code of the judge and of the planner: whoever changes them is measured on
other owners.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from math import sqrt
from multiprocessing import get_context
from statistics import mean, median
from typing import Any

from bench.common.harness import ROOT, Limit, finish, parser, progress, start, table
from bench.nights.device import SPEEDS, Device
from bench.nights.life import Owner
from bench.nights.lives import FORTNIGHT, Run, lives_of, most_of_it_night
from pocketllm.daemon.scheduling.night import Ahead

LIMITS = {
    "first_morning": Limit(at_least=0.9),
    "first_morning_nothing": Limit(at_least=0.85),
    "first_morning_imports": Limit(at_least=0.97),
    "second_morning": Limit(at_least=0.97),
    "gain_14": Limit(at_least=0.9),
    "used": Limit(at_least=0.95),
    "used_worst": Limit(at_least=0.93),
    "edited": Limit(at_least=0.97),
    "oldest_job_days": Limit(at_most=14),
}
_MODELS = ("135M", "360M", "0.5B", "1B")
#: Words of the job whose steps are shown.
_USUAL_WORDS = 4000
_JUDGE_AND_PLANNER = ("daemon/evaluation", "daemon/scheduling", "storage/repositories")

Measure = Callable[[Sequence[Run]], float | None]


def default_seed() -> int:
    """A hash of the code of the judge and of the planner."""
    digest = hashlib.sha256()
    for file in sorted(file for room in _JUDGE_AND_PLANNER for file in (ROOT / room).glob("*.py")):
        digest.update(file.read_bytes())
    return int(digest.hexdigest()[:6], 16)


def values_of(runs: Sequence[Run]) -> dict[str, float | None]:
    """The values of all runs, with their standard errors."""
    by_device = [[run for run in runs if _device(run) == device] for device in dict.fromkeys(map(_device, runs))]
    values: dict[str, float | None] = {}
    for name, (measure, worst) in _MEASURES.items():
        values |= _with_error(name, measure, runs)
        found = [(value, some) for some in by_device if (value := measure(some)) is not None]
        if found:
            extreme = worst(value for value, _ in found)
            values |= _with_error(f"{name}_worst", measure, next(some for value, some in found if value == extreme))
    for name in ("first_morning", "second_morning", "gain_14", "text_14"):
        for imports in (True, False):
            of_these = [run for run in runs if run["imports"] is imports]
            values |= _with_error(f"{name}_{'imports' if imports else 'nothing'}", _MEASURES[name][0], of_these)
    return values


def _with_error(name: str, measure: Measure, runs: Sequence[Run]) -> dict[str, float | None]:
    """A value, and its standard error where there are two owners."""
    seeds = {run["seed"] for run in runs}
    left_out = (measure([run for run in runs if run["seed"] != seed]) for seed in seeds)
    found = [value for value in left_out if value is not None]
    error = sqrt((len(found) - 1) * mean((value - mean(found)) ** 2 for value in found)) if len(found) > 1 else None
    return {name: measure(runs), f"{name}_se": error}


def _device(run: Run) -> tuple[str, float]:
    return run["model"], run["speed"]


def _morning(runs: Sequence[Run], *, nights: int) -> float | None:
    served = []
    for run in runs:
        possible, at = run["possible_nights"][nights - 1 : nights], run["served_night"]
        if run["edits"] and (possible or at):
            served.append(at is not None and (not possible or at <= possible[0]))
    return mean(served) if served else None


def _gain_14(runs: Sequence[Run]) -> float | None:
    runs = [run for run in runs if "never_paused" in run]
    most = sum(run["never_paused"] for run in runs)
    return sum(run["won"][FORTNIGHT - 1] for run in runs) / most if most else None


def _text_14(runs: Sequence[Run]) -> float | None:
    runs = [run for run in runs if "never_paused" in run]
    most = sum(run["most"][FORTNIGHT - 1] for run in runs)
    return sum(run["won"][FORTNIGHT - 1] for run in runs) / most if most else None


def _used(runs: Sequence[Run]) -> float | None:
    runs = [run for run in runs if run["long"]]
    waited = sum(run["job_seconds"] for run in runs)
    return sum(run["used_seconds"] for run in runs) / waited if waited else None


def _edited(runs: Sequence[Run]) -> float | None:
    won: dict[bool, float] = {True: 0.0, False: 0.0}
    there = {(*_device(run), run["seed"]) for run in runs if not run["edits"]}
    for run in runs:
        if (*_device(run), run["seed"]) in there:
            won[run["edits"]] += sum(run["won"])
    return won[True] / won[False] if won[False] else None


def _oldest_job_days(runs: Sequence[Run]) -> float | None:
    return max((run["oldest_job_days"] for run in runs), default=None)


_MEASURES: dict[str, tuple[Measure, Callable[[Iterable[float]], float]]] = {
    "first_morning": (partial(_morning, nights=1), min),
    "second_morning": (partial(_morning, nights=2), min),
    "gain_14": (_gain_14, min),
    "text_14": (_text_14, min),
    "used": (_used, min),
    "edited": (_edited, min),
    "oldest_job_days": (_oldest_job_days, max),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = parser("bench.nights", "What the mornings bring, on slow and fast devices, by simulation.")
    options.add_argument("--seed", type=int, default=default_seed(), help="of the first owner")
    options.add_argument("--seeds", type=int, default=20, help="owners who live on, for each device and model")
    options.add_argument("--nights", type=int, default=30)
    options.add_argument("--owners", type=int, default=200, help="owners, most until something is served")
    chosen = options.parse_args(arguments)
    devices = [Device(model, speed) for model, speed in product(_MODELS, SPEEDS)]
    if chosen.quick:
        chosen.seeds, chosen.nights, chosen.owners, devices = 1, 15, 4, [devices[0], devices[-1]]
    count = max(chosen.seeds, chosen.owners)
    owners = [Owner(chosen.seed + number, chosen.nights) for number in range(count)]
    runs: list[Run] = []
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        living = [
            pool.submit(lives_of, owner, devices, long=number < chosen.seeds) for number, owner in enumerate(owners)
        ]
        for owner, lived in zip(owners, living, strict=True):
            runs += lived.result()
            progress(f"owner {owner.seed}: {len(runs)} lives")
    mornings = _mornings([run for run in runs if run["long"]])
    raw: dict[str, Any] = {"tables": {"mornings": mornings}, "runs": runs}
    shown = table("Mornings: after how many nights, in the median", **mornings)
    return finish("nights", [shown], values=values_of(runs), limits=LIMITS, raw=raw, options=chosen)


def _mornings(runs: Sequence[Run]) -> dict[str, Any]:
    """The table of mornings: a row for each model and device."""
    rows = []
    nights: tuple[Callable[[Run], int], ...] = (lambda run: run["served_night"] or len(run["won"]), most_of_it_night)
    for model, speed in dict.fromkeys(map(_device, runs)):
        own, device = [run for run in runs if _device(run) == (model, speed)], Device(model, speed)
        planned = device.plan(Ahead(words=_USUAL_WORDS))
        medians = (
            f"{median(map(night, some)):g}" if (some := [run for run in own if run["imports"] is imports]) else "-"
            for night, imports in product(nights, (True, False))
        )
        figures = (f"{value:.2f}" if (value := measure(own)) is not None else "-" for measure in (_gain_14, _used))
        steps = [str(device), f"{device.step_seconds:.0f}", f"{planned.plan.steps}, {planned.nights:.1f}"]
        rows.append([*steps, *medians, *figures])
    columns = ["model at GFLOP/s", "s a step", "steps, nights of 3 h"]
    columns += ["first adapter", "from nothing", "90 %", "from nothing", "gain_14", "used"]
    return {"columns": columns, "rows": rows}


if __name__ == "__main__":
    sys.exit(start(main))
