"""`pocketllm add`: what is taken, what is refused, and in which portions it is sent."""

import json
import os

import pytest

from pocketllm.cli.importing import REQUEST_BYTES
from pocketllm.readers.notes import paragraphs
from tests.support.commands import Run
from tests.support.daemon_double import DaemonDouble


def test_each_argument_is_a_text(run: Run, double: DaemonDouble) -> None:
    result = run("add", "first text", "second text", "--source", "diary")
    assert result.stdout == "Added 2 texts.\n"
    assert double.bodies("POST", "/texts") == [
        [{"text": "first text", "source": "diary"}, {"text": "second text", "source": "diary"}]
    ]


def test_a_label_makes_an_example(run: Run, double: DaemonDouble) -> None:
    run("add", "Invoice 8123 is due", "--label", "work")
    assert double.bodies("POST", "/texts") == [[{"text": "Invoice 8123 is due", "source": "cli", "label": "work"}]]


def test_the_same_again_is_a_duplicate(run: Run) -> None:
    run("add", "first text")
    assert run("add", "first text", "new").stdout == "Added 1 text. 1 was already stored.\n"


def test_stdin_is_one_text(run: Run, double: DaemonDouble) -> None:
    run("add", "-", stdin="\ufeffOne.\r\n\r\nTwo é.\r\n".encode())
    assert double.bodies("POST", "/texts")[0] == [{"text": "One.\n\nTwo é.", "source": "cli"}]


def test_split_makes_a_text_of_each_paragraph(run: Run, double: DaemonDouble) -> None:
    assert run("add", "-", "--split", stdin="One,\nstill one.\n \n\n\nTwo.\n").stdout == "Added 2 texts.\n"
    assert [item["text"] for item in double.bodies("POST", "/texts")[0]] == ["One,\nstill one.", "Two."]


@pytest.mark.parametrize("words", [[], ["-", "  "]], ids=["nothing", "only blanks"])
def test_nothing_to_add(run: Run, words: list[str]) -> None:
    result = run("add", *words, stdin="\n\n")
    assert result.exit_code == 1
    assert "Nothing to add" in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"PK\x03\x04\x00\x00", "zero bytes"), ("Größe".encode("latin1"), "not UTF-8 (byte 0xf6 at position 2)")],
)
def test_what_is_no_text_is_refused(run: Run, double: DaemonDouble, content: bytes, words: str) -> None:
    result = run("add", "good words", "-", stdin=content)
    assert result.exit_code == 1
    assert words in result.stderr
    assert double.requests == []


def test_bytes_on_the_command_line_that_are_no_text(run: Run) -> None:
    assert "not UTF-8" in run("add", os.fsdecode(b"Gr\xf6\xdfe")).stderr


def test_much_goes_in_batches_below_a_megabyte(run: Run, double: DaemonDouble) -> None:
    given = [f"Paragraph {number}. " + "wörd " * 200 for number in range(3000)]
    assert run("add", "--split", "-", stdin="\n\n".join(given)).stdout == "Added 3,000 texts.\n"
    batches = double.bodies("POST", "/texts")
    assert len(batches) > 1
    assert [item["text"] for batch in batches for item in batch] == [text.strip() for text in given]
    assert all(len(json.dumps(batch, ensure_ascii=False).encode()) < 1_000_000 for batch in batches)


def test_a_failure_in_the_middle_says_what_is_stored(run: Run, double: DaemonDouble) -> None:
    double.fail_after_batches = 1
    result = run("add", "--split", "-", stdin="\n\n".join(f"{number} {'word ' * 1000}" for number in range(300)))
    assert result.exit_code == 1
    assert "The disk is full" in result.stderr
    assert "texts are stored; run the same command again" in result.stderr


def test_one_text_too_large_for_a_request(run: Run, double: DaemonDouble) -> None:
    result = run("add", "before", "-", stdin="word " * (REQUEST_BYTES // 5))
    assert result.exit_code == 1
    assert "stdin: too long for one request. Split it" in result.stderr and "--split" in result.stderr
    assert double.bodies("POST", "/texts") == []


def test_what_the_daemon_refuses_is_named(run: Run, double: DaemonDouble) -> None:
    double.refused_words = "odd"
    assert "argument 2: refused by the daemon: label: it is not known.\n" in run("add", "a", "odd").stderr
    assert "stdin paragraph 2: refused" in run("add", "-", "--split", stdin="a\n\nodd").stderr


def test_paragraphs() -> None:
    assert paragraphs("\n\na\nb\n\t\n \nc\n\n") == ["a\nb", "c"]
    assert paragraphs(" \n ") == []
