"""Files that are broken or made to break their reader: reported, left out, and the rest is read."""

import json
import os
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pocketllm.readers import documents
from pocketllm.readers.base import MAX_LINE_BYTES, Example, Kind, ReadOptions, Skipped, count_words
from pocketllm.readers.reading import read
from pocketllm.readers.walk import Entry
from pocketllm.storage.repositories.texts import count_words as daemons_count
from tests.support.reading import gathered, items, look, reasons, write

pytestmark = pytest.mark.slow

DEEP = 100_000


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"\n" * 1000,
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'"',
        b"From ",
        b"---\n",
        b"1" * 10_000,
        b"{}",
    ],
    ids=["empty", "zero", "mark", "blank", "lists", "objects", "quote", "From", "rule", "number", "object"],
)
def test_every_reader_survives(tmp_path: Path, kind: Kind, content: bytes) -> None:
    for name in ("a", "a.md", "a.jsonl", "a.html"):
        found = look(write(tmp_path / name, content), format=kind)[1]
        assert kind is Kind.NOTES or all(isinstance(one, Skipped) for one in found)


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.csv", "a.mbox", "a.eml", "a.md", "a.html", "a"])
@pytest.mark.parametrize(
    "content", [b"[" * DEEP, b'{"a":' * DEEP, b"\n" * DEEP, b"<" * DEEP, b"> " * DEEP, b",;" * DEEP]
)
def test_looking_survives(tmp_path: Path, name: str, content: bytes) -> None:
    look(write(tmp_path / name, content))


@pytest.mark.parametrize("end", ["", ">", "-->"])
@pytest.mark.parametrize("begin", ["<!", "<!--", "<?", "</", "<a ", "<title>"])
def test_tags_without_end(tmp_path: Path, begin: str, end: str) -> None:
    """A page of 2 MB, which takes minutes where the end of a tag is searched for from each beginning."""
    look(write(tmp_path / "a.html", begin * 500_000 + end))


def test_documents_of_the_wrong_shape(tmp_path: Path) -> None:
    shapes: list[Any] = [
        [{"mapping": {"a": None, "b": {"message": {"author": "user"}}}, "current_node": "b"}],
        [{"mapping": {"a": {"message": {"author": {"role": "user"}, "content": {"parts": "x"}}}}}, None, 3],
        [{"chat_messages": [None, {"sender": "human", "text": None}]}, None],
        {"chats": {"list": [None, {"messages": [None, {"from": 1, "text": {}}]}]}, "personal_information": 3},
        {"name": "a", "type": "b", "id": 1, "messages": [{"from_id": 1, "from": None, "text": [1, {"text": 2}]}]},
        [{"from": {"name": None}, "text": "x"}, {"from": [], "text": "y"}, {"user": {}, "text": "z", "ts": {}}],
        [{"messages": [{"messages": [{"messages": "x"}]}]}],
    ]
    for number, shape in enumerate(shapes):
        assert reasons(write(tmp_path / f"{number}.json", shape))


def test_pipes_and_sockets_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.md")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "b.md"))
        write(tmp_path / "c.md", "words")
        texts, tally = gathered(tmp_path)
        assert [text["text"] for text in texts] == ["words"]
        ((reason, count),) = tally.skipped.items()
        assert reason.startswith("not a regular file") and count == 2
        assert reasons(tmp_path / "a.md")[0].startswith("not a regular file")


def test_huge_lines(tmp_path: Path) -> None:
    huge = b"x" * (MAX_LINE_BYTES + 5)
    lines = b'{"text": "a"}\n{"text": "' + huge + b'"}\n{"text": "b"}\n'
    found = look(write(tmp_path / "a.jsonl", lines))[1]
    assert [isinstance(one, Skipped) for one in found] == [False, True, False]
    assert look(write(tmp_path / "b.mbox", b"From x\nFrom: a\n\n" + huge + b"\nshort\n"))[0] is Kind.MBOX
    assert reasons(write(tmp_path / "c.csv", b"from,text\nAnna," + huge + b"\n"))[0].startswith("invalid CSV from row")


def test_a_file_that_is_too_large_for_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"words\n")
        file.truncate(300_000_000)
    with (tmp_path / "b.txt").open("wb") as file:
        file.write(b"words and words\n" * 4100)
        file.truncate(300_000_000)
    assert reasons(tmp_path / "a.txt")[0].startswith("not text")
    assert reasons(tmp_path / "b.txt")[0].startswith("larger than 256 MB")


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


@pytest.mark.parametrize("begin", ["[", '{"chats": {"list": ['])
def test_a_piece_that_is_too_large_for_memory(tmp_path: Path, begin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 1_000_000)
    small = json.dumps({"from": "Anna", "text": "words", "messages": []})
    export = write(tmp_path / "a.json", f"{begin}{', '.join([small] * 40_000)}")
    assert "invalid JSON" in reasons(export)[0] or "a sender and a text" in reasons(export)[0]
    huge = write(tmp_path / "b.json", f'{begin}{small}, ["{"x" * 2_000_000}"]')
    assert reasons(huge) == ["has an item larger than 1 MB; split it into parts"]


def test_a_page_that_is_too_large(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", "<p>words" * 2_100_000)
    assert reasons(page) == ["a page larger than 16 MB; save it as plain text"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    export = json.dumps([{"chat_messages": [{"sender": "human", "text": "Käthe"}]}], ensure_ascii=False)
    assert items(write(tmp_path / "a.json", export.encode(encoding))) == [{"text": "Käthe"}]


def test_words_are_counted_as_the_daemon_counts_them() -> None:
    for text in ("", "two words", "言葉" * 30, "a " * 100, "long" * 50):
        assert count_words(text) == daemons_count(text)
