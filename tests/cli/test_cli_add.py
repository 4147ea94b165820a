"""`pocketllm add`: what is taken, what is refused, and in which portions it is sent."""

import json
import os
from pathlib import Path

import pytest

from pocketllm.cli.texts.sending import REQUEST_BYTES
from pocketllm.readers.notes import paragraphs
from tests.support.commands import Run
from tests.support.daemon_double import DaemonDouble


class TestAdd:
    def test_each_argument_is_a_text(self, run: Run, double: DaemonDouble) -> None:
        result = run("add", "first text", "second text", "--source", "diary")
        assert result.stdout == "Added 2 texts.\n"
        assert double.bodies("POST", "/texts") == [
            [{"text": "first text", "source": "diary"}, {"text": "second text", "source": "diary"}]
        ]

    def test_the_same_again_is_a_duplicate(self, run: Run) -> None:
        run("add", "first text")
        assert run("add", "first text", "new").stdout == "Added 1 text. 1 was already stored.\n"

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
        assert "stdin, argument 2 contained no words" in result.stderr

    def test_an_empty_file_among_others_is_named(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_text("")
        result = run("add", "words", "--file", str(tmp_path / "empty.txt"))
        assert result.exit_code == 0
        assert "empty.txt is empty" in result.stderr

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"PK\x03\x04\x00\x00", "zero bytes"), ("Größe".encode("latin1"), "not UTF-8 (byte 0xf6 at position 2)")],
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
        assert run("add", "--split", "--file", str(tmp_path / "large.txt")).stdout == "Added 3,000 texts.\n"
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
        assert "texts are stored; run the same command again" in result.stderr

    def test_one_text_too_large_for_a_request(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        (tmp_path / "large.txt").write_text("word " * (REQUEST_BYTES // 5))
        result = run("add", "before", "--file", str(tmp_path / "large.txt"))
        assert result.exit_code == 1
        assert "large.txt: too long for one request" in result.stderr and "--split" in result.stderr
        assert double.requests == []


class TestJsonl:
    def test_each_line_is_an_example(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        lines = [
            {"text": "plain\u2028text"},
            {"prompt": "Who?", "completion": " Anna.", "source": "chat"},
            {"text": "good day", "label": "positive"},
        ]
        written = "\ufeff" + "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / "examples.jsonl").write_text(written, encoding="utf-8")
        result = run("add", "words", "--jsonl", str(tmp_path / "examples.jsonl"), "--source", "mine")
        assert result.stdout == "Added 4 texts.\n"
        plain, completion, labelled = lines
        assert double.bodies("POST", "/texts") == [
            [{"text": "words", "source": "mine"}, plain | {"source": "mine"}, completion, labelled | {"source": "mine"}]
        ]

    def test_lines_may_come_from_stdin(self, run: Run, double: DaemonDouble) -> None:
        assert run("add", "--jsonl", "-", stdin='{"text": "a"}\n').stdout == "Added 1 text.\n"
        assert double.bodies("POST", "/texts") == [[{"source": "cli", "text": "a"}]]

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("{", "invalid JSON"),
            ("words", "invalid JSON"),
            ('{"text": "\\ud800"}', "invalid JSON"),
            ('{"text": NaN}', "invalid JSON"),
            ("[" * 100_000, "invalid JSON"),
            ('["a"]', "not a JSON object"),
            (json.dumps({"prompt": "a", "completion": "x" * REQUEST_BYTES}), "too long for one request"),
        ],
    )
    def test_a_line_that_cannot_be_sent_is_named(
        self, run: Run, double: DaemonDouble, tmp_path: Path, line: str, words: str
    ) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_text('{"text": "good"}\n\n' + line + "\n")
        result = run("add", "--jsonl", str(path))
        assert result.exit_code == 1
        assert f"{path} line 3: {words}" in result.stderr
        assert double.requests == []

    def test_a_line_that_the_daemon_refuses_is_named(self, run: Run, double: DaemonDouble, tmp_path: Path) -> None:
        double.refused_words = "odd"
        path = tmp_path / "large.jsonl"
        lines = [json.dumps({"text": f"{number} " + "word " * 1000}) for number in range(300)]
        path.write_text("\n".join([*lines, '{"text": "a", "label": "odd"}']))
        result = run("add", "--jsonl", str(path))
        assert result.exit_code == 1
        assert f"{path} line 301: label: it is not known. " in result.stderr
        assert "texts are stored; run the same command again" in result.stderr
        problem = json.loads(run("add", "--json", "--jsonl", "-", stdin='\n{"label": "odd"}').stderr)
        assert problem["detail"] == "stdin line 2: label: it is not known."

    def test_an_argument_or_a_paragraph_that_is_refused_is_named(self, run: Run, double: DaemonDouble) -> None:
        double.refused_words = "odd"
        assert "argument 2: label: it is not known." in run("add", "a", "odd").stderr
        refused = run("add", "-", "--split", stdin="a\n\nodd")
        assert "stdin paragraph 2: label: it is not known." in refused.stderr

    def test_a_file_without_lines_is_named(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "empty.jsonl").write_text("\n \n")
        result = run("add", "--jsonl", str(tmp_path / "empty.jsonl"))
        assert result.exit_code == 1
        assert "empty.jsonl contained no words" in result.stderr


def test_paragraphs() -> None:
    assert paragraphs("\n\na\nb\n\t\n \nc\n\n") == ["a\nb", "c"]
    assert paragraphs(" \n ") == []
