"""Sixty nights of a device: the real scheduler, gate and database on a clock that goes from event to event."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from bench.nights.device import Device, Known, Lesson
from bench.nights.worker import SimulatedWorker
from bench.promotion import lengths
from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.night import CHECKS
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.settings import Settings
from pocketllm.storage.repositories.folders import FileRead
from pocketllm.storage.repositories.texts import NewText, text_id
from pocketllm.storage.store import Store

_BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
_DAY, _HOUR = 86400.0, 3600.0
#: Hours of a night, the standard deviation of a night's from the usual one's, and the parts of nights that are
#: interrupted or missing.
_NIGHT_HOURS, _SPREAD, _INTERRUPTED, _MISSING = (2.0, 9.0), 0.2, 0.3, 0.08
#: Minutes of an interruption; words a day; words that an owner begins with who has texts; days between deletions.
_SHUT_MINUTES, _WORDS_A_DAY, _IMPORTED, _DELETES_EVERY = (3.0, 60.0), (100, 600), (2000, 20_000), 20
_PLENTY, _LITTLE = 4e9, 1e8
#: What the sensors read from an event on.
_READS: Mapping[str, Mapping[str, bool | float]] = {
    "open": {"power": True, "memory": _PLENTY},
    "shut": {"power": False, "memory": _LITTLE},
}
_MODEL = "simulated"


class Event(NamedTuple):
    """Something that happens at a time, in seconds since noon of the first day."""

    at: float
    kind: str  #: see Life.live
    value: Any  #: of a text its words, of the gate's events the sensor


@dataclass(frozen=True)
class Owner:
    """An owner's days and nights. All that is random comes from the seed, and is the same for each device."""

    seed: int
    nights: int

    @property
    def imports(self) -> bool:
        """Whether there is text to begin with."""
        return self.seed % 2 == 0

    def events(self) -> list[Event]:
        """All of them, in order."""
        return sorted(self._events(), key=lambda event: event.at)

    def _events(self) -> Iterator[Event]:
        random = np.random.default_rng(self.seed)
        usual = random.uniform(*_NIGHT_HOURS)
        if self.imports:
            low, high = np.log(_IMPORTED)
            yield Event(0.1 * _HOUR, "text", int(np.exp(random.uniform(low, high))))
        for day in range(self.nights):
            began = day * _DAY
            yield Event(began + random.uniform(1, 8) * _HOUR, "text", int(random.integers(*_WORDS_A_DAY)))
            yield Event(began + random.uniform(8, 9) * _HOUR, "edit", random.random())
            deleted, missing, interrupted = random.random(3) < (1 / _DELETES_EVERY, _MISSING, _INTERRUPTED)
            hours = float(np.clip(usual * random.lognormal(0, _SPREAD), 1.0, 10.0))
            opens, shuts = random.uniform(10, 12.5), sorted(random.random(2))
            minutes, sensors = random.uniform(*_SHUT_MINUTES, 2), random.choice(["power", "memory"], 2)
            if deleted:
                yield Event(began + 9.5 * _HOUR, "delete", random.random())
            if not missing:
                yield Event(began + opens * _HOUR, "open", "power")
                if interrupted:
                    for share, length, sensor in zip(shuts, minutes, sensors, strict=True):
                        shut = began + (opens + share * hours) * _HOUR
                        yield Event(shut, "shut", sensor)
                        yield Event(min(shut + length * 60, began + (opens + hours) * _HOUR - 1), "open", sensor)
                yield Event(began + (opens + hours) * _HOUR, "shut", "power")
            yield Event(began + _DAY, "noon", day)


@dataclass
class Sensor:
    """A sensor that sees what it is told to."""

    name: str
    value: bool | float
    unit: str | None = None

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        return Reading(name=self.name, value=self.value, unit=self.unit, source="the simulation", at=now)


@dataclass(frozen=True)
class Morning:
    """What a noon finds."""

    open_seconds: float  #: of all nights so far
    job_seconds: float  #: of this night, those in which a job waited or ran
    used_seconds: float  #: of these, those in which a worker ran, without what a kill has lost
    served: bool
    won: float  #: by what is served, in nats per token
    most: float  #: that one job wins without a pause, in as many seconds


class Life:
    """One device with one owner."""

    def __init__(
        self, device: Device, owner: Owner, folder: Path, empty: Path, *, edits: bool = True, pauses: bool = True
    ) -> None:
        """empty: a database without texts. pauses: False leaves the nights' ends out, so that jobs may always run."""
        self.device, self.owner, self._edits, self._pauses = device, owner, edits, pauses
        self._folder = DataFolder(folder)
        self._folder.make()
        shutil.copy(empty, self._folder.database)
        self._at = 0.0
        self.store = Store.open_unchecked(self._folder.database)
        self._sensors = {
            "power": Sensor("power", not pauses),
            "battery": Sensor("battery", 80.0, "%"),
            "memory": Sensor("memory", _PLENTY, "bytes"),
        }
        self._random = np.random.default_rng((owner.seed, 1))
        luck = crc32(f"{device} {owner.seed}".encode())
        self.worker = SimulatedWorker(device, self.store, self._folder, lambda: self.now, luck)
        self.scheduler = Scheduler(
            self.store,
            self._folder,
            SensorSet(sensors=list(self._sensors.values())),
            self.worker,
            Settings(data_dir=folder, model=_MODEL, training=device.training),
            model_problem=lambda: None,
            planner=lambda training, ahead: device.plan(ahead),
            wake_lock=WakeLock(),
            local=lambda now: now,
            uptime=lambda: self._at,
        )
        self._files: list[list[NewText]] = []
        self._night = [0.0, 0.0, 0.0]  #: seconds: open, with a job, used
        self.mornings: list[Morning] = []

    @property
    def now(self) -> datetime:
        """The time."""
        return _BEGAN + timedelta(seconds=self._at)

    @property
    def is_open(self) -> bool:
        """Whether jobs may run, in truth."""
        return bool(self._sensors["power"].value) and self._sensors["memory"].value == _PLENTY

    def live(self, *, until_served: bool = False) -> list[Morning]:
        """All nights, or those until something is served."""
        happens = {"text": self._text, "edit": self._edit, "delete": self._delete, "noon": self._noon}
        for event in self.owner.events():
            self._pass(event.at)
            if event.kind in _READS:
                if not self._pauses:
                    continue
                self._sensors[event.value].value = _READS[event.kind][event.value]
                self._tick()
            else:
                happens[event.kind](event.value)
            if until_served and self.mornings and self.mornings[-1].served:
                break
        return self.mornings

    def _pass(self, until: float) -> None:
        """Let time pass, with a tick whenever something happens by itself, and each minute while a job might start."""
        while True:
            times = [at for at in (self.worker.ends_at, *self.scheduler.due) if at is not None]
            if self.is_open and self.scheduler.has_work and self.worker.pid is None:
                times.append(self.now + timedelta(minutes=1))
            due = min(((at - _BEGAN).total_seconds() for at in times), default=until)
            self._count(min(due, until))
            if due > until:
                return
            self._tick()

    def _count(self, at: float) -> None:
        seconds, self._at = max(0.0, at - self._at), max(at, self._at)
        for place, counts in enumerate((True, self.scheduler.has_work, self.worker.pid is not None)):
            self._night[place] += seconds * (self.is_open and counts)

    def _tick(self) -> None:
        lost = self.worker.lost_seconds
        self.scheduler.tick(self.now)
        self._night[2] -= self.worker.lost_seconds - lost

    def _text(self, words: int) -> None:
        day = len(self._files)
        notes: list[NewText] = []
        for count in lengths(self._random, 3 + 2 * words // 20):
            notes.append(NewText(text=f"{day} {len(notes)} " + "w " * (int(count) - 2), source="notes"))
            words -= int(count)
            if words <= 0:
                break
        self._files.append(notes)
        self._put(day)
        self._tick()

    def _edit(self, which: float) -> None:
        """One of the notes of the last days gets other words."""
        if not self._edits or not self._files:
            return
        day = max(0, len(self._files) - 1 - int(3 * which))
        notes = self._files[day]
        place = int(which * 1000) % len(notes)
        notes[place] = NewText(text=f"{notes[place].text}x", source="notes")
        self._put(day)
        self.store.folders.drop_replaced(self.now)

    def _delete(self, which: float) -> None:
        day = int(which * len(self._files))
        notes = self._files[day]
        gone = notes.pop(int(which * 1000) % len(notes))
        if not notes:
            notes.append(NewText(text=f"{day} again", source="notes"))
        self.scheduler.forget(lambda: self.store.deletions.texts([text_id(gone)], now=self.now), self.now)
        self._count(self._at + 900)
        self._tick()  # which erases it

    def _put(self, day: int) -> None:
        notes = self._files[day]
        file = FileRead(f"/notes/{day}.md", int(self._at), set(map(text_id, notes)))
        self.store.folders.put([*((file, note) for note in notes), (file, None)], self.now, lambda: True)

    def _noon(self, day: int) -> None:
        """See what the night has brought."""
        self._tick()
        serving = self.store.adapters.serving(_MODEL)
        opened, had, used = self._night
        before = self.mornings[-1].open_seconds if self.mornings else 0.0
        morning = Morning(
            open_seconds=before + opened,
            job_seconds=had,
            used_seconds=used,
            served=serving is not None,
            won=self.worker.known[serving.id if serving else None].won,
            most=self._most(before + opened, day),
        )
        self.mornings.append(morning)
        self._night = [0.0, 0.0, 0.0]

    def _most(self, seconds: float, day: int) -> float:
        """What one job without a pause wins on nine tenths of the texts that there are."""
        steps = int((seconds - self.device.load_seconds) / (self.device.step_seconds * (1 + CHECKS)))
        notes = [(text_id(note), len(note.text.split())) for file in self._files for note in file]
        order = np.random.default_rng((self.owner.seed, day)).permutation(len(notes))
        kept = [notes[place] for place in order[: ceil(0.9 * len(notes))]]
        return Lesson(Known(), kept, self.device.words_a_step).won(max(0, steps))

    def oldest_job_days(self) -> float:
        """The greatest age of a job when it ended, or of one that is open."""
        jobs = self.store.jobs.page(after=None, limit=10_000)
        return (
            max(((job.finished_at or self.now) - job.created_at) / timedelta(days=1) for job in jobs) if jobs else 0.0
        )
