"""`pocketllm texts`: what there is to learn from, seen and deleted."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pocketllm.cli.texts.texts_view import text_details, texts_table
from tests.support.commands import Run, commands, output, terminal
from tests.support.real_daemon import Daemon, running

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("texts") / "data") as started:
        yield started


@pytest.fixture
def real(daemon: Daemon) -> Run:
    return commands(daemon.folder)


def add(daemon: Daemon, *texts: str) -> list[str]:
    answer = daemon.client.post("/texts", json=[{"text": text, "source": "notes"} for text in texts])
    return list(answer.json()["ids"])


def test_list_page_by_page(daemon: Daemon, real: Run) -> None:
    assert "No texts here." in real("texts").stdout
    added = add(daemon, *(f"Note {number}\n\x1b[2J of the boat." for number in range(5)))
    shown = real("texts", "--limit", "3").stdout
    assert "of the boat." in shown and "notes" in shown and "\x1b" not in shown
    first = json.loads(real("texts", "--limit", "3", "--json").stdout)
    assert f"pocketllm texts --after {first['next']}" in shown
    second = json.loads(real("texts", "list", "--limit", "3", "--after", first["next"], "--json").stdout)
    assert not second["has_more"]
    assert {text["id"] for text in first["data"] + second["data"]} == set(added)


@pytest.mark.parametrize("words", [["texts"], ["texts", "show"]], ids=" ".join)
def test_show(daemon: Daemon, real: Run, words: list[str]) -> None:
    (added,) = add(daemon, "A note to be shown.\nAll of it.")
    assert "A note to be shown.\nAll of it.\n" in real(*words, added).stdout
    assert json.loads(real(*words, added, "--json").stdout)["text"] == "A note to be shown.\nAll of it."


def test_delete(daemon: Daemon, real: Run) -> None:
    first, second, third = add(daemon, "Gone one.", "Gone two.", "Gone three.")
    assert real("texts", "delete", first).stdout == "Deleted 1 text.\n"
    assert json.loads(real("texts", "delete", second, second, "--json").stdout) == {"deleted": [second]}
    result = real("texts", "delete", third, first)
    assert result.exit_code == 1
    assert f"Deleted before: {third}." in result.stderr
    for gone in (first, second, third):
        assert daemon.client.get(f"/texts/{gone}").status_code == 404


def test_unknown_texts(real: Run) -> None:
    for arguments in (["show", "text-nope"], ["text-nope"], ["delete", "text-nope"], ["--after", "text-nope"]):
        result = real("texts", *arguments, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stderr)["status"] == 404


def test_wrong_usage(real: Run) -> None:
    assert real("texts", "delete").exit_code == 2
    assert real("texts", "--limit", "501").exit_code == 2


def test_without_a_daemon(tmp_path: Path) -> None:
    assert "No daemon answers" in commands(tmp_path)("texts").stderr


TEXT = {
    "id": "text-1",
    "kind": "completion",
    "source": "chat",
    "text": "Who?",
    "completion": "Anna.",
    "label": None,
    "words": 2,
    "held_out": True,
    "created_at": "2026-05-01T10:00:00Z",
}


def test_a_completion_has_two_parts() -> None:
    console = terminal()
    console.print(text_details(TEXT, NOW))
    assert "Prompt" in output(console) and "Anna." in output(console) and "2 h ago" in output(console)


def test_a_label_is_shown() -> None:
    console = terminal()
    console.print(text_details(TEXT | {"completion": None, "label": "positive", "held_out": False}, NOW))
    assert "positive" in output(console) and "Prompt" not in output(console)


def test_a_chat_is_shown_by_its_messages() -> None:
    messages = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    chat = TEXT | {"kind": "chat", "text": "", "completion": None, "messages": messages}
    console = terminal()
    console.print(text_details(chat, NOW))
    console.print(texts_table({"data": [chat], "has_more": False}, width=60, now=NOW))
    assert output(console).count("Tea?") == 2 and "assistant" in output(console)
