"""Folders of notes: which files are read, and what of them."""

import os
import socket
from pathlib import Path

import pytest

from pocketllm.readers.base import Kind
from pocketllm.readers.gathering import COUNTED
from pocketllm.readers.notes import prose, split_text, without_front_matter
from tests.support.reading import gathered, items, look, reasons, write


def test_a_folder_is_read_with_the_folders_in_it(tmp_path: Path) -> None:
    write(tmp_path / "b.md", "Two.\r\n")
    write(tmp_path / "a.txt", "One.")
    write(tmp_path / "2024" / "may" / "é.org", "Three.")
    write(tmp_path / "2024" / "b.txt", "Four.")
    texts, tally = gathered(tmp_path)
    assert texts == [
        {"text": "One.", "source": "notes: a.txt"},
        {"text": "Two.", "source": "notes: b.md"},
        {"text": "Four.", "source": "notes: 2024/b.txt"},
        {"text": "Three.", "source": "notes: 2024/may/é.org"},
    ]
    assert [tally.total(name) for name in COUNTED] == [4, 4, 4]
    assert not tally.skipped


def test_what_is_hidden_or_of_a_program_is_left_out(tmp_path: Path) -> None:
    for name in (".obsidian/x.md", ".git/x.md", "node_modules/a/x.md", ".hidden.md", "deep/.trash/x.md"):
        write(tmp_path / name, "no")
    texts, tally = gathered(tmp_path)
    assert texts == []
    assert tally.skipped["hidden, or a program's folder"] == 5
    assert len(gathered(tmp_path / ".obsidian")[0]) == 1, "named by the owner"


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "secret.md", "not given")
    write(tmp_path / "notes" / "a.md", "words")
    (tmp_path / "notes" / "b.md").symlink_to(tmp_path / "elsewhere" / "secret.md")
    (tmp_path / "notes" / "c").symlink_to(tmp_path / "elsewhere")
    texts, tally = gathered(tmp_path / "notes")
    assert [text["text"] for text in texts] == ["words"]
    assert tally.places["a link that leads outside the folder"] == ["b.md", "c"]
    assert [text["text"] for text in gathered(tmp_path / "notes" / "b.md")[0]] == ["not given"]  # the owner gave it


def test_loops_of_links_end_and_nothing_is_read_twice(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "words")
    (tmp_path / "b.md").symlink_to("a.md")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to("c")
    (tmp_path / "gone.md").symlink_to("nowhere")
    texts, tally = gathered(tmp_path, tmp_path / "a.md")
    assert [text["text"] for text in texts] == ["words"]
    assert {reason.partition(":")[0] for reason in tally.skipped} == {
        "a second name (a link) for the same file or folder",
        "cannot be opened",
    }


def test_folders_nested_deeper_than_python_calls(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(600):  # a path of a name each would be longer than the system allows
        folder = folder / "a"
    folder.mkdir(parents=True)
    write(folder / "x.md", "deep")
    assert gathered(tmp_path)[1].total("texts") == 1


def test_a_name_that_is_not_utf_8_or_long_is_a_source_all_the_same(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"gr\xf6sse.md")).write_text("words")
    write(tmp_path / ("h" * 200) / ("b" * 100 + ".md"), "more words")
    ((text, long), _) = gathered(tmp_path)
    assert text["source"] == "notes: gr\ufffdsse.md"
    assert len(long["source"]) == 200
    assert long["source"].startswith("notes: hhh") and long["source"].endswith("bbb.md")


def test_front_matter_is_taken_off() -> None:
    rows = {
        "---\ntitle: A\ntags:\n  - b\n- c\n# note\n\n---\nWords\n": "Words\n",
        "---\n---\nWords": "Words",
        "---\ntitle: A\n...\nWords": "Words",
        "---\ntitle: A\n---": "",
    }
    rule, other = "---\nA rule above, no front matter.\n---\nWords", "----\na: b\n---\n"
    rows |= {text: text for text in (rule, other, "---\ntitle: A\nnever ends", "Words\n---\ntitle: A\n---\n")}
    assert {text: without_front_matter(text) for text in rows} == rows


def test_markdown_gives_its_prose() -> None:
    rows = {
        "# Swimmer\n\n20 *feet*": "Swimmer\n\n20 feet",
        "To do:\n- [x] 20 feet\n- [ ] milk\n  1. nested": "To do:\n20 feet\nmilk\nnested",
        "A [link](http://a.b/c), <https://x.y>, https://bare.org and `code`.": "A link, , and code.",
        "![alt](p.png)[[Note|words]] ![[pic.png]]and [[Other]]": "words and Other",
        "above\n\n```py\ncode\n```\n\n| a |\n|---|\n| 1 |\n\n<b>\nhtml\n</b>\n\nbelow": "above\n\nbelow",
        "> said\n\n***\ntwo\nlines  \nthree": "said\n\ntwo\nlines\nthree",
        "2 * 3 * 4 [and] a_b": "2 * 3 * 4 [and] a_b",
        "```\nonly code": "",
        ">" * 5000 + "deep": "",
    }
    assert {text: prose(text) for text in rows} == rows


def test_it_is_kept_as_written_where_the_owner_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "a.md", "---\ntitle: A\n---\n# Title\n- [x] done")
    assert items(file) == [{"text": "Title\ndone"}]
    assert items(file, as_written=True) == [{"text": "# Title\n- [x] done"}]
    assert items(write(tmp_path / "a.txt", "---\ntitle: A\n---\nWords")) == [{"text": "---\ntitle: A\n---\nWords"}]


def test_encodings(tmp_path: Path) -> None:
    marked = "\ufeffGröße"
    for data in ("Größe".encode(), marked.encode(), "Größe".encode("utf-16"), marked.encode("utf-16-be")):
        assert items(write(tmp_path / "a.txt", data)) == [{"text": "Größe"}], data
    cut = "x" * 63_999 + "é" * 10  # in the middle of a character, where the look at its beginning ends
    assert items(write(tmp_path / "a.txt", cut)) == [{"text": cut}]


def test_what_is_no_note_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = {
        ("a.txt", "Größe".encode("latin1")): "not UTF-8",
        ("a.txt", b"ab\0c"): "not text: it contains zero bytes",
        ("a.txt", b"x" * 70_000 + b"\xff"): "not UTF-8",
        ("a.txt", b"x" * 70_000 + b"\0"): "not text: it contains zero bytes",
        ("a.txt", b"\xff\xfea"): "not UTF-8",
        ("a.txt", b" \n\n"): "empty",
        ("a.md", b""): "empty",
        ("a.docx", b"PK\x03\x04"): "an archive or office document",
        ("a.txt", b"%PDF-1.7"): "a PDF",
        ("a.json", b""): "empty",
        ("messages.html", b"<head><title>Exported Data</title></head>Anna: Tea?"): "a Telegram export in HTML",
        ("a.json", b"words"): "invalid JSON",
        ("a.csv", b"1,2,3\n"): "a table; read it with --format csv",
    }
    for (name, data), reason in rows.items():
        (found,) = reasons(write(tmp_path / name, data))
        assert found.startswith(reason), (name, data[:80])


def test_text_of_an_unknown_name_is_read_only_if_it_is_named_itself(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "words = 1")
    assert items(tmp_path / "script.py") == [{"text": "words = 1"}]
    assert gathered(tmp_path)[0] == []


HTML = "<html><head><title>x</title></head><body><h1>Day</h1><p>Two&nbsp;mugs\nof <b>tea</b>.<br>Home.</p></body>"


@pytest.mark.parametrize(
    ("name", "text", "learned"),
    [
        ("a.md", "| name | text |\n|---|---|\n| Anna | Tea |\n\nWords.", "Words."),
        ("a.md", "Author, Text\n\nTwo words of it.", None),
        ("a.md", "[31.12.20, 23:58] Anna: Tea?", None),
        ("a.txt", "prompt; completion\nWords.", None),
        ("a.txt", '["a"] is a list.', None),
        ("a.txt", "From Paris\nMonday: rain.", None),
        ("a.org", "[[https://example.org][A link]] and words.", None),
        ("a.html", "<p>sender, text</p>", "sender, text"),
        ("a.html", HTML, "Day\n\nTwo mugs of tea.\nHome."),
        ("a", "Author, Text\nAnna, Tea", None),
    ],
)
def test_what_is_named_like_a_note_is_one(name: str, text: str, learned: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / name, text)
    assert look(path)[0] is Kind.NOTES
    assert items(path) == [{"text": text if learned is None else learned}]


def test_a_long_text_is_split_at_paragraphs(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {number} is here." for number in range(100))
    kind, found = look(write(tmp_path / "a.txt", text), max_bytes=200)
    assert kind is Kind.NOTES
    parts = items(tmp_path / "a.txt", max_bytes=200)
    assert "\n\n".join(part["text"] for part in parts) == text
    assert all(150 < len(part["text"]) <= 200 for part in parts[:-1])
    assert [getattr(one, "place", None) for one in found][:2] == ["part 1", "part 2"]


def test_parts_fit_and_lose_no_letter() -> None:
    for text in ("é" * 1000, "a\n" * 500, "a b " * 500, "€" * 333 + "\n\n" + "x" * 50 + "\n" + "y" * 90):
        for limit in (7, 50, 64):
            parts = split_text(text, limit)
            assert all(0 < len(part.encode()) <= limit for part in parts), (text[:9], limit)
            assert "".join("".join(parts).split()) == "".join(text.split())


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
