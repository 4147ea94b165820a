"""Lives with devices, and what came of them: the part of bench.nights that runs in processes of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.nights.device import Device
from bench.nights.life import Life, Morning, Owner
from pocketllm.storage.store import Store

FORTNIGHT, _MOST_OF_IT = 14, 0.9

#: A life and what came of it.
Run = dict[str, Any]


def lives_of(owner: Owner, devices: Sequence[Device], *, long: bool) -> list[Run]:
    """An owner's lives with each device, until something is served. long: all nights; and without edits, for each owner
    with another third of the devices.
    """
    in_memory = Path("/dev/shm")
    where = in_memory if in_memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where, prefix="pocketllm-bench-") as scratch:
        empty = Path(scratch) / "empty.db"
        Store.open(empty).close()
        runs = [run_of(device, owner, Path(scratch), empty, long=long) for device in devices]
        without = (devices[owner.seed % 3 :: 3] or devices[:1]) if long else ()
        return runs + [run_of(device, owner, Path(scratch), empty, long=True, edits=False) for device in without]


def run_of(
    device: Device, owner: Owner, scratch: Path, empty: Path, *, long: bool, edits: bool = True, pauses: bool = True
) -> Run:
    """Live a life. empty: a database without texts."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        life = Life(device, owner, Path(folder), empty, edits=edits, pauses=pauses)
        mornings = life.live(until_served=not long)
        oldest = life.oldest_job_days()
        life.store.close()
    run: Run = {
        "model": device.model,
        "speed": device.speed,
        "seed": owner.seed,
        "imports": owner.imports,
        "edits": edits,
        "long": long,
        "possible_nights": possible_nights(mornings, device.shortest_job_seconds)[:2],
        "served_night": next((number for number, morning in enumerate(mornings, 1) if morning.served), None),
        "job_seconds": sum(morning.job_seconds for morning in mornings),
        "used_seconds": sum(morning.used_seconds for morning in mornings),
        "oldest_job_days": oldest,
        "won": [round(morning.won, 4) for morning in mornings],
        "most": [round(morning.most, 4) for morning in mornings],
    }
    if long and edits and pauses and len(mornings) >= FORTNIGHT:
        share = mornings[FORTNIGHT - 1].open_seconds / (FORTNIGHT * 86400)
        slower, fortnight = replace(device, speed=device.speed * share), replace(owner, nights=FORTNIGHT)
        run["never_paused"] = run_of(slower, fortnight, scratch, empty, long=True, pauses=False)["won"][-1]
    return run


def possible_nights(mornings: Sequence[Morning], seconds: float) -> list[int]:
    """The nights in which a job waited and had so many seconds."""
    opened = [0.0, *(morning.open_seconds for morning in mornings)]
    return [
        number
        for number, morning in enumerate(mornings, 1)
        if morning.job_seconds > 0 and opened[number] - opened[number - 1] >= seconds
    ]


def most_of_it_night(run: Run) -> int:
    """The night after which most is won of what is ever won."""
    return next(number for number, one in enumerate(run["won"], 1) if one >= _MOST_OF_IT * max(run["won"]))
