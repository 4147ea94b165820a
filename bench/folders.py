"""A hundred thousand files in a watched folder: how long a scan takes, and whether every paragraph is there once.

python -m bench.folders [--files 100000] [--quick]

Each file is a note of two paragraphs of made-up words. The first scan reads them all, the next one none. Then a
hundredth each is edited, moved and deleted, two more scans follow, and the stored texts are compared with the files; so
they are after another first scan that was killed on its way.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.common import measured
from bench.common.harness import Limit, finish, parser, progress, start
from pocketllm.storage.store import Store

LIMITS = {
    "first_look_s": Limit(at_most=60),
    "second_look_s": Limit(at_most=10),
    "peak_mb": Limit(at_most=100),
    "lost": Limit(at_most=0, always=True),
    "doubled": Limit(at_most=0, always=True),
}
_QUICK_FILES = 300
_IN_A_FOLDER, _WORDS, _VOCABULARY = 100, 30, 3000
#: Files were written so long ago.
_AGE_SECONDS = 3600.0
_KILLED_AFTER_SECONDS = 1.0


class Notes:
    """The folder, and which paragraphs it should have."""

    def __init__(self, root: Path, files: int) -> None:
        self.root, self._random = root, random.Random(1)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(2, 9))) for _ in range(_VOCABULARY)]
        self.paragraphs: dict[Path, list[str]] = {}
        for number in range(files):
            self.write(root / f"{number // _IN_A_FOLDER:04d}" / f"{number}.md")

    def _paragraph(self) -> str:
        return " ".join(self._random.choices(self._words, k=_WORDS))

    def write(self, path: Path) -> None:
        """Write the file anew; an old one's first paragraph stays."""
        kept = self.paragraphs.get(path, [self._paragraph()])[:1]
        self.paragraphs[path] = [*kept, self._paragraph()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(self.paragraphs[path]) + "\n", encoding="utf-8")
        at = time.time() - _AGE_SECONDS + len(self.paragraphs[path][1]) / 100
        os.utime(path, (at, at))

    def change(self) -> None:
        """Edit, move and delete a hundredth each."""
        chosen = self._random.sample(sorted(self.paragraphs), 3 * max(1, len(self.paragraphs) // 100))
        for place, path in enumerate(chosen):
            if place % 3 == 0:
                self.write(path)
            elif place % 3 == 1:
                self.paragraphs[path.rename(path.with_name(f"moved-{path.name}"))] = self.paragraphs.pop(path)
            else:
                path.unlink()
                del self.paragraphs[path]


#: Runs a command and says its peak itself: the kernel counts a new process from the size of the one that starts it.
_PROGRAM = """
import sys
from bench.common.child import memory_of, write_line
from pocketllm.cli.main import app
app(standalone_mode=False)
write_line({"peak_rss_bytes": memory_of()["VmHWM"]})
"""


def command(data: Path, *arguments: str) -> list[str]:
    """A command line of ours on the data folder."""
    return [sys.executable, "-c", _PROGRAM, "folders", *arguments, "--json", "--data-dir", str(data)]


def scanned(data: Path, *arguments: str) -> measured.Measurement:
    """One scan. Raises SystemExit when it fails."""
    found = measured.run(command(data, *arguments))
    if not found.completed:
        raise SystemExit(f"The scan failed: {found.error}")
    return found


def difference(data: Path, notes: Notes) -> tuple[int, int]:
    """How many paragraphs are missing in the store, and how many are there twice or should not be."""
    store = Store.open(data / "pocketllm.db")
    try:
        stored = Counter[str]()
        after: str | None = None
        while page := store.texts.page(after=after, limit=5000):
            stored.update(text.text for text in page)
            after = page[-1].id
    finally:
        store.close()
    wanted = Counter({text for texts in notes.paragraphs.values() for text in texts})
    return (wanted - stored).total(), (stored - wanted).total()


def interrupted(data: Path, notes: Notes) -> tuple[int, int]:
    """The same of a first scan that was killed on its way and begun again."""
    process = subprocess.Popen(command(data, "add", str(notes.root)), stdout=subprocess.DEVNULL)
    time.sleep(_KILLED_AFTER_SECONDS)
    process.send_signal(signal.SIGKILL)
    process.wait()
    scanned(data, "add", str(notes.root))
    return difference(data, notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        progress(f"writing {options.files:,} files ...")
        notes = Notes(Path(scratch) / "notes", options.files)
        progress("first scan ...")
        first = scanned(data, "add", str(notes.root))
        second = scanned(data, "scan")
        notes.change()
        later = [scanned(data, "scan"), scanned(data, "scan", "--forget")]  # they are too many to go unasked
        lost, doubled = difference(data, notes)
        progress("a scan that is killed ...")
        again = interrupted(Path(scratch) / "again", notes)
        shutil.rmtree(data)
    scans = [first, second, *later]
    values: dict[str, float | None] = {
        "first_look_s": first.seconds,
        "second_look_s": second.seconds,
        "peak_mb": max(one.report["peak_rss_bytes"] for one in scans) / 1e6,
        "lost": lost + again[0],
        "doubled": doubled + again[1],
    }
    return finish("folders", [], values=values, limits=LIMITS, raw={"files": options.files}, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.folders", "Scans a watched folder of many files.")
    made.add_argument("--files", type=int, default=100_000)
    options = made.parse_args(arguments)
    if options.quick:
        options.files = _QUICK_FILES
    return options


if __name__ == "__main__":
    sys.exit(start(main))
