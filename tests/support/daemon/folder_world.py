"""A watched folder of notes, a data folder, and a clock that a scan advances."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pocketllm.daemon.folder_scans import Scan, WatchedFolder, changed_folders
from pocketllm.daemon.paths import DataFolder
from pocketllm.scan import scan_all
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Deletion, Text

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG = "This paragraph has rather more than the eight words {} it needs."


class World:
    """A folder of notes, a data folder, and a clock that a scan advances by an hour."""

    def __init__(self, scratch: Path) -> None:
        self.notes, self.data = scratch / "notes", DataFolder(scratch / "data")
        self.notes.mkdir()
        self.data.make()
        self.store = Store.open(self.data.database)
        self.now = NOW
        self.read = list[str]()
        self.during: Callable[[], object] = lambda: None  #: called before each transaction of a scan
        self.on_file: Callable[[str], object] = lambda name: None  #: called before a file is read
        self.watch()

    def watch(self, **more: object) -> None:
        """Let it alone be watched, in the place of another one."""
        with changed_folders(self.data) as watched:
            watched[:] = [WatchedFolder.model_validate({"path": str(self.notes), "name": "notes", **more})]

    def unwatch(self) -> None:
        with changed_folders(self.data) as watched:
            watched.clear()

    def write(self, name: str, *words: str, age_seconds: float = 60) -> Path:
        """Write a file with a paragraph for each word."""
        return self.write_text(name, "\n\n".join(LONG.format(word) for word in words), age_seconds=age_seconds)

    def write_text(self, name: str, text: str, *, age_seconds: float = 60) -> Path:
        file = self.notes / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        at = self.now.timestamp() - age_seconds
        os.utime(file, (at, at))
        return file

    def scan_notes(self, **notes: str) -> None:
        """Write notes and scan: `a="one two"` is the file a.md with a paragraph for each word."""
        for name, words in notes.items():
            self.write(f"{name}.md", *words.split())
        self.scan()

    def scan(self, *, forget: bool = False, then: timedelta = timedelta(hours=1)) -> Scan:
        """Scan the one folder; then so much time passes."""
        self.read = []

        def on_file(name: str) -> None:
            self.read.append(name)
            self.on_file(name)

        (found,) = scan_all(
            self.data, self.store.folders, now=self.time, max_bytes=10_000, forget=forget, on_file=on_file
        )
        self.now += then
        return found

    def time(self) -> datetime:
        """The time; asked for also before each transaction."""
        if self.read:
            self.during()
        return self.now

    def forget(self, word: str) -> Deletion:
        """The owner deletes a text."""
        return self.store.deletions.texts([text.id for text in self.texts() if f" {word} " in text.text], now=self.now)

    def words(self) -> set[str]:
        """What distinguishes the texts."""
        return {text.text.partition("words ")[2].partition(" it")[0] for text in self.texts()}

    def texts(self) -> list[Text]:
        return self.store.texts.page(after=None, limit=10_000)
