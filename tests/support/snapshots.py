"""Snapshots: what people see, in text files beside the tests."""

import os
import re
from pathlib import Path

#: With this environment variable the files are written, not compared.
WRITE = "WRITE_SNAPSHOTS"
#: What versions of rich draw in different ways.
_DRAWN = re.compile(r"[\s─━│┃┌┐└┘├┤┬┴┼┏┓┗┛┳┻┡┩╇╈╋╭╮╰╯]+")


def assert_snapshot(shown: str, file: Path) -> None:
    """Check that the same words are shown as in the file, in the same order."""
    if WRITE in os.environ:
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{line.rstrip()}\n" for line in shown.splitlines()))
    assert file.exists(), f"{WRITE}=1 writes it; look at it then"
    assert _words(shown) == _words(file.read_text())


def _words(shown: str) -> list[str]:
    return _DRAWN.sub(" ", shown).split()
