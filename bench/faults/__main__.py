"""What happens when the device fails: each fault is injected for real, and the daemon must come through by itself.

python -m bench.faults [--only NAME ...] [--quick]

For each fault a daemon with a job that runs gets texts, before it and while it lasts. Then its cause goes away, as when
the owner frees space, and nothing else is done. `lost_NAME` counts acknowledged texts that are not there afterwards,
and `recovered_NAME` is 1 when a job succeeds and text is generated again. Two faults need the owner: after a file
system has failed the device is started again, and for a damaged database the command is run that the daemon names.
Disks and the clock need root and libfaketime; without these they are not measured.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from bench.faults.acts import Case, posted
from bench.faults.disks import CannotInject, disk
from bench.faults.injected import FAULTS
from bench.harness import Limit, finish, parser, progress, start, table
from bench.shapes import ensure, models_folder
from bench.world import World, free_port, until

_RECOVERY_SECONDS = 240.0
_TEXTS = 20
LIMITS = {
    **{f"lost_{name}": Limit(at_most=0, where_measurable=True, always=True) for name in FAULTS},
    **{f"recovered_{name}": Limit(at_least=1, where_measurable=True, always=True) for name in FAULTS},
}


def measured(name: str, case: Case, model: Path, scratch: Path) -> tuple[int, str, str]:
    """Texts lost, what kept it from recovering ("" where it did), and what the owner saw. Raises CannotInject."""
    with disk(case.disk, scratch / name) as place:
        world = World(folder=place / "data", model=model, port=free_port(), method="exact")
        try:
            world.start()
            world.upload()
            for number in range(_TEXTS):
                posted(world, f"text {number} before the fault")
            world.ask_for_job()
            until(lambda: world.call("GET", "/status")["worker"]["pid"], "a worker")
            saw = case.inject(world)
            problem = _unrecovered(world)
            there = {row[0] for row in world.query("SELECT text FROM text WHERE source = 'faults'")}
            return len(set(world.acknowledged) - there), problem, saw
        finally:
            world.stop()


def _unrecovered(world: World) -> str:
    """Why no job succeeds, or no text is generated, without help; "" where both do."""
    ends, problem = time.monotonic() + _RECOVERY_SECONDS, ""
    while time.monotonic() < ends:
        try:
            if not (waiting := world.open_jobs()):
                world.ask_for_job()
                until(lambda: not world.open_jobs(), "the job's end")
                job = world.call("GET", "/jobs?limit=1")["data"][0]
                text = world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
                done = job["state"] == "succeeded" and text["completion_tokens"] > 0
                return "" if done else f"job {job['state']}, {text['completion_tokens']} tokens generated"
            problem = f"{waiting[0]['id']} is {waiting[0]['state']}: {'; '.join(waiting[0]['reasons'])}"
        except (httpx.HTTPError, OSError) as error:
            problem = repr(error)
        time.sleep(0.5)
    return problem


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    values: dict[str, float | None] = {}
    rows, raw = [], {}
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny", "bfloat16").absolute()
        for name, case in FAULTS.items():
            values[f"lost_{name}"] = values[f"recovered_{name}"] = None
            if (options.only and name not in options.only) or (options.quick and not case.quick):
                continue
            progress(f"{name.replace('_', ' ')} ...")
            try:
                lost, problem, saw = measured(name, case, model, Path(scratch))
            except CannotInject as error:
                progress(f"not measured: {error}")
                continue
            values[f"lost_{name}"], values[f"recovered_{name}"] = float(lost), float(not problem)
            saw = re.sub(r"/\S*/", "", saw)  # where files are is this machine's own
            raw[name] = {"saw": saw, "problem": problem}
            rows.append([name.replace("_", " "), str(lost), f"no: {problem}" if problem else "yes", saw[:300]])
    shown = table("Faults", ["fault", "lost", "recovered", "what the owner saw"], rows)
    return finish("faults", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.faults", "What happens when the device fails.")
    made.add_argument("--only", nargs="+", metavar="NAME", choices=FAULTS, help="only these faults")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
