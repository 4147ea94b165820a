"""`pocketllm add`: what is taken, what is refused, and in which portions it is sent."""

import os

import pytest

from pocketllm.cli.importing import REQUEST_BYTES
from pocketllm.readers.notes import paragraphs
from tests.support.daemon.commands import Run
from tests.support.daemon.served import Served

LIMIT = 1_000_000  # bytes of a text, by default


def stored(served: Served) -> set[str]:
    return {text["text"] for text in served.texts()}


def test_each_argument_is_a_text_once(run: Run, served: Served) -> None:
    assert run("add", "first text", "second text", "--source", "diary").stdout == "Added 2 texts.\n"
    assert {(text["text"], text["source"]) for text in served.texts()} == {
        ("first text", "diary"),
        ("second text", "diary"),
    }
    assert run("add", "first text", "new", "--source", "diary").stdout == "Added 1 text. 1 was already stored.\n"


def test_a_label_makes_an_example(run: Run, served: Served) -> None:
    run("add", "Invoice 8123 is due", "--label", "work")
    [text] = served.texts()
    assert (text["text"], text["source"], text["label"]) == ("Invoice 8123 is due", "cli", "work")


def test_stdin_is_one_text_or_with_split_one_for_each_paragraph(run: Run, served: Served) -> None:
    run("add", "-", stdin="\ufeffOne.\r\n\r\nTwo é.\r\n".encode())
    assert stored(served) == {"One.\n\nTwo é."}
    assert run("add", "-", "--split", stdin="One,\nstill one.\n \n\n\nTwo.\n").stdout == "Added 2 texts.\n"
    assert stored(served) == {"One.\n\nTwo é.", "One,\nstill one.", "Two."}
    assert paragraphs("\n\na\nb\n\t\n \nc\n\n") == ["a\nb", "c"]
    assert paragraphs(" \n ") == []


def test_what_is_no_text_is_refused_before_anything_is_sent(
    run: Run, served: Served, subtests: pytest.Subtests
) -> None:
    too_long = b"word " * (REQUEST_BYTES // 5)
    refused: tuple[tuple[list[str], bytes, str], ...] = (
        ([], b"", "Nothing to add"),
        (["-", "  "], b"\n\n", "Nothing to add"),
        (["good words", "-"], b"PK\x03\x04\x00\x00", "zero bytes"),
        (["good words", "-"], "Größe".encode("latin1"), "not UTF-8 (byte 0xf6 at position 2)"),
        (["good words", os.fsdecode(b"Gr\xf6\xdfe")], b"", "not UTF-8"),
        (["good words", "-"], too_long, "stdin: too long for one request. Split it into several texts (`--split`"),
    )
    for arguments, stdin, words in refused:
        with subtests.test(words):
            result = run("add", *arguments, stdin=stdin)
            assert result.exit_code == 1
            assert words in result.stderr
    assert not [request for request in served.requests if request.startswith("POST")]


def test_what_the_daemon_refuses_is_named(run: Run) -> None:
    long = "x" * (LIMIT + 1)
    said = "refused by the daemon: The text is 1,000,001 bytes"
    assert f"argument 2: {said}" in run("add", "a", long).stderr
    assert f"stdin paragraph 2: {said}" in run("add", "-", "--split", stdin=f"b\n\n{long}").stderr
    assert "argument 1: refused by the daemon: label: String" in run("add", "c", "--label", "x" * 101).stderr
