"""What the mornings bring, on slow and fast devices: sixty nights by the real scheduler, database, trainer and judge.

python -m bench.nights [--quick] [--seed N] [--seeds N] [--nights N] [--resume]

Half of the owners begin with a few thousand words of their own, and half with nothing; all write every day, change a
note a day and delete one now and then. Time is simulated, and what is won follows measured curves (device.py).

first_morning: of the runs, the part with an adapter that is served after the first night in which a job waited and 20
steps were possible. gain_14: nats won after 14 nights over those of a device that never pauses, and is slower by so
much that it has as many seconds; text_14: over those of one job without a pause on all text so far. used: of the time
in which a job waited or ran and the device was free, the part in which a worker ran, without what kills have lost.
edited: nats won, over all mornings, over those without edits. oldest_job_days: the greatest age at which a job ended.
NAME_worst is of the worst device and model, and NAME_imports and NAME_nothing are of the owners who begin with text,
and without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from statistics import median
from typing import Any

from bench.common.harness import Limit, finish, keep, parser, progress, start, stored_runs, table
from bench.nights.device import SPEEDS, Device
from bench.nights.life import Owner
from bench.nights.lives import FORTNIGHT, Run, lives_of
from pocketllm.daemon.scheduling.night import Ahead

LIMITS = {
    "first_morning": Limit(at_least=0.95),
    "gain_14": Limit(at_least=0.9),
    "used": Limit(at_least=0.95),
    "edited": Limit(at_least=0.97),
    "oldest_job_days": Limit(at_most=14),
}
_MODELS = ("135M", "360M", "0.5B", "1B")
#: Words of the job whose steps are shown.
_USUAL_WORDS = 4000


def values_of(runs: Sequence[Run]) -> dict[str, float | None]:
    """The values of all runs so far."""
    measures: dict[str, tuple[Callable[[Sequence[Run]], float | None], Callable[[Iterable[float]], float]]] = {
        "first_morning": (_first_morning, min),
        "gain_14": (_gain_14, min),
        "text_14": (_text_14, min),
        "used": (_used, min),
        "edited": (_edited, min),
        "oldest_job_days": (lambda some: max(run["oldest_job_days"] for run in some), max),
    }
    by_device = [[run for run in runs if _device(run) == device] for device in dict.fromkeys(map(_device, runs))]
    values: dict[str, float | None] = {name: measure(runs) for name, (measure, _) in measures.items()}
    for name, (measure, worst) in measures.items():
        found = [value for some in by_device if (value := measure(some)) is not None]
        values[f"{name}_worst"] = worst(found) if found else None
    for name in ("first_morning", "gain_14", "text_14"):
        for imports in (True, False):
            of_these = measures[name][0]([run for run in runs if run["imports"] is imports])
            values[f"{name}_{'imports' if imports else 'nothing'}"] = of_these
    return values


def _device(run: Run) -> tuple[str, float]:
    return run["model"], run["speed"]


def _first_morning(runs: Sequence[Run]) -> float | None:
    possible = [run for run in runs if run["possible_night"] is not None and run["edits"]]
    in_time = [run for run in possible if (run["served_night"] or 10**9) <= run["possible_night"]]
    return len(in_time) / len(possible) if possible else None


def _gain_14(runs: Sequence[Run]) -> float | None:
    runs = [run for run in runs if run["never_paused"] is not None]
    most = sum(run["never_paused"] for run in runs)
    return sum(run["won"][FORTNIGHT - 1] for run in runs) / most if most else None


def _text_14(runs: Sequence[Run]) -> float | None:
    runs = [run for run in runs if run["edits"] and len(run["won"]) >= FORTNIGHT]
    most = sum(run["most"][FORTNIGHT - 1] for run in runs)
    return sum(run["won"][FORTNIGHT - 1] for run in runs) / most if most else None


def _used(runs: Sequence[Run]) -> float | None:
    waited = sum(run["job_seconds"] for run in runs)
    return sum(run["used_seconds"] for run in runs) / waited if waited else None


def _edited(runs: Sequence[Run]) -> float | None:
    won: dict[bool, float] = {True: 0.0, False: 0.0}
    there = {(*_device(run), run["seed"]) for run in runs if not run["edits"]}
    for run in runs:
        if (*_device(run), run["seed"]) in there:
            won[run["edits"]] += sum(run["won"])
    return won[True] / won[False] if won[False] else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = parser("bench.nights", "What the mornings bring, on slow and fast devices, by simulation.")
    options.add_argument("--seed", type=int, default=0, help="of the first owner")
    options.add_argument("--seeds", type=int, default=20, help="owners for each device and model")
    options.add_argument("--nights", type=int, default=60)
    options.add_argument("--resume", action="store_true", help="live the lives that the results file does not have yet")
    chosen = options.parse_args(arguments)
    devices = [Device(model, speed) for model, speed in product(_MODELS, SPEEDS)]
    if chosen.quick:
        chosen.seeds, chosen.nights, devices = 1, 15, [devices[0], devices[-1]]
    stored = stored_runs("nights", chosen, seconds=0.0) if chosen.resume else None
    runs: list[Run] = stored["runs"] if stored else []
    owners = [Owner(seed, chosen.nights) for seed in range(chosen.seed, chosen.seed + chosen.seeds)]
    missing = [owner for owner in owners if owner.seed not in {run["seed"] for run in runs}]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for owner, lived in zip(missing, pool.map(lives_of, missing, [devices] * len(missing)), strict=True):
            runs += lived
            progress(f"owner {owner.seed}: {len(runs)} lives")
            raw: dict[str, Any] = {"seconds": 0.0, "runs": runs}
            keep("nights", values=values_of(runs), limits=LIMITS, raw=raw, options=chosen)
    mornings = _mornings(runs)
    raw = {"seconds": 0.0, "tables": {"mornings": mornings}, "runs": runs}
    shown = table("Mornings: after how many nights, in the median", **mornings)
    return finish("nights", [shown], values=values_of(runs), limits=LIMITS, raw=raw, options=chosen)


def _mornings(runs: Sequence[Run]) -> dict[str, Any]:
    """The table of mornings: a row for each model and device."""
    rows = []
    for model, speed in dict.fromkeys(map(_device, runs)):
        own, device = [run for run in runs if _device(run) == (model, speed)], Device(model, speed)
        planned = device.plan(Ahead(words=_USUAL_WORDS))
        nights = (
            f"{median(run[name] or len(run['won']) for run in own if run['imports'] is imports):g}"
            if any(run["imports"] is imports for run in own)
            else "-"
            for name, imports in product(("served_night", "most_of_it_night"), (True, False))
        )
        figures = (f"{value:.2f}" if (value := measure(own)) is not None else "-" for measure in (_gain_14, _used))
        rows.append(
            [
                str(device),
                f"{device.step_seconds:.0f}",
                f"{planned.plan.steps}, {planned.nights:.1f}",
                *nights,
                *figures,
            ]
        )
    columns = ["model at GFLOP/s", "s a step", "steps, nights of 3 h"]
    columns += ["first adapter", "from nothing", "90 %", "from nothing", "gain_14", "used"]
    return {"columns": columns, "rows": rows}


if __name__ == "__main__":
    sys.exit(start(main))
