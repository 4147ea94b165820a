"""Files that are broken or made to break their reader: reported, left out, and the rest is read."""

import json
import tracemalloc
from pathlib import Path

import pytest

from pocketllm.readers import documents
from pocketllm.readers.base import MAX_LINE_BYTES, Example, Kind, ReadOptions, Skipped
from pocketllm.readers.reading import read
from pocketllm.readers.walk import Entry
from tests.support.reading import look, reasons, write

pytestmark = pytest.mark.slow

DEEP = 100_000


def test_every_reader_survives(tmp_path: Path, subtests: pytest.Subtests) -> None:
    beginnings = (b'"', b"From ", b"---\n", b"{}", b"\0", b"\xff\xfe")
    for content in (b"", b"\n" * 1000, b"[" * DEEP, b'{"a":' * DEEP, b"1" * 10_000, *beginnings):
        for name in ("a", "a.md", "a.jsonl", "a.html"):
            path = write(tmp_path / name, content)
            for kind in Kind:
                with subtests.test(kind=kind, name=name, content=content[:9]):
                    found = look(path, format=kind)[1]
                    assert kind is Kind.NOTES or all(isinstance(one, Skipped) for one in found)


def test_looking_survives(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for name in ("a.txt", "a.json", "a.jsonl", "a.csv", "a.mbox", "a.eml", "a.md", "a.html", "a"):
        for piece in (b"[", b'{"a":', b"\n", b"<", b"> ", b",;"):
            with subtests.test(name=name, piece=piece):
                look(write(tmp_path / name, piece * DEEP))


def test_tags_without_end(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """A page of 2 MB, which takes minutes where the end of a tag is searched for from each beginning."""
    for begin in ("<!", "<!--", "<?", "</", "<a ", "<title>"):
        for end in ("", ">", "-->"):
            with subtests.test(begin=begin, end=end):
                look(write(tmp_path / "a.html", begin * 500_000 + end))


def test_huge_lines(tmp_path: Path) -> None:
    huge = b"x" * (MAX_LINE_BYTES + 5)
    lines = b'{"text": "a"}\n{"text": "' + huge + b'"}\n{"text": "b"}\n'
    found = look(write(tmp_path / "a.jsonl", lines))[1]
    assert [isinstance(one, Skipped) for one in found] == [False, True, False]
    assert look(write(tmp_path / "b.mbox", b"From x\nFrom: a\n\n" + huge + b"\nshort\n"))[0] is Kind.MBOX
    table = write(tmp_path / "c.csv", b"id,text\n1," + huge + b"\n")
    assert reasons(table, format=Kind.CSV)[0].startswith("invalid CSV from row")


def test_a_file_that_is_too_large_for_memory(tmp_path: Path) -> None:
    for lines, reason in ((1, "not text"), (11_000, "larger than 256 MB")):
        with (tmp_path / "a.txt").open("wb") as file:
            file.write(b"words\n" * lines)
            file.truncate(300_000_000)
        assert reasons(tmp_path / "a.txt")[0].startswith(reason)


def test_a_large_export_is_read_conversation_by_conversation(tmp_path: Path) -> None:
    message = {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["words " * 300]}}
    nodes = {str(n): {"message": message, "parent": str(n - 1)} for n in range(10)}
    one = json.dumps({"mapping": nodes, "current_node": "9"})
    export = write(tmp_path / "conversations.json", f"[{', '.join([one] * 3500)}]")
    tracemalloc.start()
    kind, found = read(Entry(path=export, name=export.name), ReadOptions())
    count = sum(isinstance(one, Example) for one in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (kind, count) == (Kind.CHATGPT, 35_000)
    # To recognise it takes a few times the longest line that is read.
    assert peak < 5 * MAX_LINE_BYTES < 60_000_000 < export.stat().st_size


def test_a_piece_that_is_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 1_000_000)
    small = json.dumps({"chat_messages": [], "messages": []})
    for begin in ("[", '{"chats": {"list": ['):
        export = write(tmp_path / "a.json", f"{begin}{', '.join([small] * 40_000)}")
        assert "invalid JSON" in reasons(export)[0]
        huge = write(tmp_path / "b.json", f'{begin}{small}, ["{"x" * 2_000_000}"]')
        assert reasons(huge) == ["has an item larger than 1 MB; split it into parts"]


def test_a_page_that_is_too_large(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", "<p>words" * 2_100_000)
    assert reasons(page) == ["a page larger than 16 MB; save it as plain text"]
