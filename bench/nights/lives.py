"""Lives with devices, and what came of them: the part of bench.nights that runs in processes of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.nights.device import Device
from bench.nights.life import Life, Owner
from pocketllm.storage.store import Store

FORTNIGHT, _MOST_OF_IT = 14, 0.9

#: A life and what came of it.
Run = dict[str, Any]


def lives_of(owner: Owner, devices: Sequence[Device]) -> list[Run]:
    """An owner's lives with each device; and without edits, for each owner with another third of the devices."""
    in_memory = Path("/dev/shm")
    where = in_memory if in_memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where, prefix="pocketllm-bench-") as scratch:
        empty = Path(scratch) / "empty.db"
        Store.open(empty).close()
        runs = [run_of(device, owner, Path(scratch), empty, edits=True) for device in devices]
        without = devices[owner.seed % 3 :: 3] or devices[:1]
        return runs + [run_of(device, owner, Path(scratch), empty, edits=False) for device in without]


def run_of(device: Device, owner: Owner, scratch: Path, empty: Path, *, edits: bool) -> Run:
    """Live a life. empty: a database without texts."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        life = Life(device, owner, Path(folder), empty, edits=edits)
        mornings = life.live()
        oldest = life.oldest_job_days()
        life.store.close()
    opened = [0.0, *(morning.open_seconds for morning in mornings)]
    possible = (
        number
        for number, morning in enumerate(mornings, 1)
        if morning.job_seconds > 0 and opened[number] - opened[number - 1] >= device.shortest_job_seconds
    )
    won = [morning.won for morning in mornings]
    never_paused = None
    if edits and len(mornings) >= FORTNIGHT:
        share = mornings[FORTNIGHT - 1].open_seconds / (FORTNIGHT * 86400)
        slower = replace(device, speed=device.speed * share)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            other = Life(slower, replace(owner, nights=FORTNIGHT), Path(folder), empty, pauses=False)
            never_paused = round(other.live()[-1].won, 4)
            other.store.close()
    return {
        "model": device.model,
        "speed": device.speed,
        "seed": owner.seed,
        "imports": owner.imports,
        "edits": edits,
        "possible_night": next(possible, None),
        "served_night": next((number for number, morning in enumerate(mornings, 1) if morning.served), None),
        "job_seconds": sum(morning.job_seconds for morning in mornings),
        "used_seconds": sum(morning.used_seconds for morning in mornings),
        "oldest_job_days": oldest,
        "most_of_it_night": next(number for number, one in enumerate(won, 1) if one >= _MOST_OF_IT * max(won)),
        "won": [round(one, 4) for one in won],
        "never_paused": never_paused,
        "most": [round(morning.most, 4) for morning in mornings],
    }
