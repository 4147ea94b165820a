"""A week with a watched folder: the real daemon, command line and model, on a clock that jumps a day at each start."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pocketllm.engine.formats.importer import default_source, import_model
from tests.support.daemon.commands import commands
from tests.support.daemon.real_daemon import Daemon, Document, eventually, running

pytestmark = pytest.mark.slow

DAY_SECONDS = 86_400
#: Short steps on little text.
JOB = {
    "TRAINING__NEW_WORDS": "40",
    "TRAINING__METHOD": "exact",
    "TRAINING__STEPS": "8",
    "TRAINING__BATCH": "2",
    "TRAINING__BLOCK_TOKENS": "32",
    "TRAINING__REHEARSAL": "0",
}
PARAGRAPH = "On {} we rowed to the island before breakfast, and {} brought bread, cheese and two bottles of cold tea."


class Week:
    """An owner with a folder of notes, and a daemon that is started every morning."""

    def __init__(self, scratch: Path, clock: pytest.MonkeyPatch) -> None:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        if library is None:
            pytest.skip("faketime is not installed: apt-get install faketime")
        self.notes, self.data, self._clock, self._library = scratch / "notes", scratch / "data", clock, library
        self.notes.mkdir()
        self.day = 0

    def write(self, name: str, *paragraphs: tuple[str, str]) -> Path:
        """A note, an hour before the daemon is started."""
        file = self.notes / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n\n".join(PARAGRAPH.format(*one) for one in paragraphs))
        at = time.time() + self.day * DAY_SECONDS - 3600
        os.utime(file, (at, at))
        return file

    @contextmanager
    def morning(self) -> Iterator[Daemon]:
        """The daemon, on the next day, once it has scanned the folder by itself and has learned what is new."""
        for name, value in {
            "LD_PRELOAD": str(self._library),
            "FAKETIME": f"+{self.day}d",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }.items():
            self._clock.setenv(name, value)
        before = self.scanned_at()
        with running(self.data, MODEL="smollm2", **JOB) as daemon:
            for name in ("LD_PRELOAD", "FAKETIME"):
                self._clock.delenv(name)
            eventually(lambda: self.scanned_at() != before, "the scan")
            eventually(lambda: idle(daemon), "nothing left to learn", seconds=300)
            yield daemon
        self.day += 1

    def scanned_at(self) -> object:
        file = self.data / "scans.json"
        return json.loads(file.read_text())[0]["scanned_at"] if file.exists() else None


def idle(daemon: Daemon) -> bool:
    status = daemon.status()
    waiting = sum(status["jobs"].get(state, 0) for state in ("queued", "running", "paused"))
    return (
        not waiting
        and not status["worker"]["running"]
        and status["texts"]["new_words"] < int(JOB["TRAINING__NEW_WORDS"])
    )


def texts(daemon: Daemon) -> dict[str, Document]:
    """By what distinguishes them."""
    return {one["text"].split()[1]: one for one in daemon.client.get("/texts?limit=500").json()["data"]}


def served(daemon: Daemon) -> object:
    """What is served; eight steps may prove nothing, so the owner has the newest adapter served."""
    newest = daemon.client.get("/adapters").json()["data"][0]
    if not newest["serving"]:
        daemon.client.post(f"/adapters/{newest['id']}/serve")
    return daemon.status()["model"]["adapter"]


def new_words(daemon: Daemon) -> int:
    """Of the notes."""
    (notes,) = daemon.client.get("/sources").json()["data"]
    return int(notes["new_words"])


def problem(daemon: Daemon) -> object:
    """What is said of the folder."""
    return daemon.client.get("/folders").json()["data"][0]["problem"]


def test_a_week_of_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    week = Week(tmp_path, monkeypatch)
    import_model(default_source(), week.data / "models", name="smollm2")
    names = ("Anna", "Bert", "Cora", "Dora", "Egon", "Fred")
    for name in names:
        week.write(f"{name}.md", *((f"{name}{number}", name) for number in range(4)))
    commands(week.data).said("folders", "add", str(week.notes))

    with week.morning() as daemon:  # everything is learned
        known = texts(daemon)
        assert len(known) == 24 and {one["source"] for one in known.values()} == {"notes"}
        assert new_words(daemon) == 0
        first = served(daemon)
        assert first is not None

    week.write("Anna.md", ("Anna0", "Anna"), ("Anna1", "Anna"), ("Anna2", "Anna"), ("Gina", "Gina"))
    week.write("Hans.md", *((f"Hans{number}", "Hans") for number in range(4)))
    with week.morning() as daemon:  # an edit replaces a paragraph, and costs no adapter
        assert texts(daemon).keys() == known.keys() - {"Anna3"} | {"Gina", "Hans0", "Hans1", "Hans2", "Hans3"}
        assert texts(daemon)["Anna0"]["id"] == known["Anna0"]["id"]
        assert [one["id"] for one in daemon.client.get("/adapters").json()["data"]][-1] == first
        second = served(daemon)
        assert second != first
        known = texts(daemon)
        jobs = daemon.status()["jobs"]

    (week.notes / "moved").mkdir()
    (week.notes / "Bert.md").rename(week.notes / "moved" / "B.md")
    with week.morning() as daemon:  # a move changes nothing
        assert texts(daemon) == known and daemon.status()["jobs"] == jobs and served(daemon) == second

    (week.notes / "Cora.md").unlink()
    with week.morning() as daemon:  # gone is a rumour
        assert texts(daemon) == known and served(daemon) == second
    with week.morning() as daemon:  # confirmed: withdrawn, and what is left is learned again
        left = texts(daemon)
        assert left.keys() == {name for name in known if not name.startswith("Cora")}
        assert new_words(daemon) == 0
        third = daemon.client.get("/adapters").json()["data"][0]["id"]
        assert third not in (first, second)
        assert served(daemon) == third
        search = daemon.client.get("/texts?query=Cora2").json()["data"]
        assert search == []

    shutil.move(week.notes, tmp_path / "away")
    with week.morning() as daemon:  # the disk has vanished: nothing is forgotten, and it is said
        assert texts(daemon).keys() == left.keys() and served(daemon) == third
        assert "Nothing was forgotten" in str(problem(daemon))
    shutil.move(tmp_path / "away", week.notes)
    with week.morning() as daemon:  # and returns
        assert texts(daemon).keys() == left.keys() and served(daemon) == third
        assert problem(daemon) is None
