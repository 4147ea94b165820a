"""`pocketllm add`: what is taken, what is refused, and in which portions it is sent."""

import json
import os
from pathlib import Path

import pytest

from pocketllm.cli_add import into_batches, paragraphs
from tests.commands import Run
from tests.daemon_double import DaemonDouble


class TestAdd:
    def test_each_argument_is_a_text(self, run: Run, double: DaemonDouble) -> None:
        result = run("add", "first text", "second text", "--source", "diary")
        assert result.stdout == "Added 2 texts.\n"
        assert double.bodies("POST", "/texts") == [
            [{"text": "first text", "source": "diary"}, {"text": "second text", "source": "diary"}]
        ]

    def test_the_same_again_is_a_duplicate(self, run: Run) -> None:
        run("add", "first text")
        assert run("add", "first text", "new").stdout == "Added 1 text. 1 was known already.\n"

    def test_a_file_is_one_text(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_bytes("\ufeffOne.\r\n\r\nTwo é.\r\n".encode())
        run("add", "--file", str(tmp_path / "notes.txt"))
        assert double.bodies("POST", "/texts")[0] == [{"text": "One.\n\nTwo é.", "source": "cli"}]

    def test_split_makes_a_text_of_each_paragraph(self, run: Run, double: DaemonDouble) -> None:
        assert run("add", "-", "--split", stdin="One,\nstill one.\n \n\n\nTwo.\n").stdout == "Added 2 texts.\n"
        assert [item["text"] for item in double.bodies("POST", "/texts")[0]] == ["One,\nstill one.", "Two."]

    def test_nothing_to_add(self, run: Run) -> None:
        result = run("add")
        assert result.exit_code == 1
        assert "Nothing to add" in result.stderr

    def test_only_empty_input(self, run: Run) -> None:
        result = run("add", "-", "  ", stdin="\n\n")
        assert result.exit_code == 1
        assert "stdin, an argument held no words" in result.stderr

    def test_an_empty_file_among_others_is_named(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_text("")
        result = run("add", "words", "--file", str(tmp_path / "empty.txt"))
        assert result.exit_code == 0
        assert "empty.txt is empty" in result.stderr

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"PK\x03\x04\x00\x00", "zero bytes"), ("Größe".encode("latin1"), "byte 0xf6 at position 2")],
    )
    def test_what_is_no_text_is_refused(
        self, run: Run, double: DaemonDouble, tmp_path: Path, content: bytes, words: str
    ) -> None:
        (tmp_path / "bad").write_bytes(content)
        result = run("add", "good words", "--file", str(tmp_path / "bad"))
        assert result.exit_code == 1
        assert words in result.stderr
        assert double.requests == []

    def test_missing_files_and_folders_are_refused(self, run: Run, tmp_path: Path) -> None:
        assert "There is no file" in run("add", "--file", str(tmp_path / "none")).stderr
        assert "is a folder" in run("add", "--file", str(tmp_path)).stderr

    def test_bytes_on_the_command_line_that_are_no_text(self, run: Run) -> None:
        assert "not UTF-8" in run("add", os.fsdecode(b"Gr\xf6\xdfe")).stderr

    def test_a_large_file_goes_in_batches_below_a_megabyte(
        self, run: Run, double: DaemonDouble, tmp_path: Path
    ) -> None:
        paragraphs_in = [f"Paragraph {number}. " + "wörd " * 200 for number in range(3000)]
        (tmp_path / "large.txt").write_text("\n\n".join(paragraphs_in), encoding="utf-8")
        assert run("add", "--split", "--file", str(tmp_path / "large.txt")).stdout == "Added 3000 texts.\n"
        batches = double.bodies("POST", "/texts")
        assert len(batches) > 1
        assert [item["text"] for batch in batches for item in batch] == [text.strip() for text in paragraphs_in]
        assert all(len(json.dumps(batch, ensure_ascii=False).encode()) < 1_000_000 for batch in batches)

    def test_a_failure_in_the_middle_says_what_is_stored(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        double.fail_after_batches = 1
        (tmp_path / "large.txt").write_text("\n\n".join(f"{number} {'word ' * 1000}" for number in range(300)))
        result = run("add", "--split", "--file", str(tmp_path / "large.txt"))
        assert result.exit_code == 1
        assert "The disk is full" in result.stderr
        assert "of 300 texts are stored; run the same command again" in result.stderr

    def test_one_text_too_large_for_a_request(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        (tmp_path / "large.txt").write_text("word " * 300_000)
        result = run("add", "--file", str(tmp_path / "large.txt"))
        assert result.exit_code == 1
        assert "--split" in result.stderr
        assert double.requests == []


def test_batches_keep_the_order_and_the_limit() -> None:
    items = [{"text": "x" * size} for size in (10, 20, 30, 40)]
    batches = list(into_batches(items, limit_bytes=60))
    assert [item for batch in batches for item in batch] == items
    assert all(len(json.dumps(batch)) <= 60 for batch in batches)


def test_paragraphs() -> None:
    assert paragraphs("\n\na\nb\n\t\n \nc\n\n") == ["a\nb", "c"]
    assert paragraphs(" \n ") == []
