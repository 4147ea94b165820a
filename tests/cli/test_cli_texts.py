"""`pocketllm texts`: what there is to learn from, seen and deleted."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pocketllm.cli.texts import text_details, texts_table
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter, Outcome
from tests.support.commands import Run, commands, output, terminal
from tests.support.real_daemon import Daemon, running
from tests.support.workers import queue_job, write_adapter_files

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
    assert "No texts." in real("texts").stdout
    added = add(daemon, *(f"Note {number}\n\x1b[2J of the boat." for number in range(5)))
    shown = real("texts", "--limit", "3").stdout
    assert "of the boat." in shown and "notes" in shown and "\x1b" not in shown
    first = json.loads(real("texts", "--limit", "3", "--json").stdout)
    assert f"pocketllm texts --after {first['next']}" in shown
    second = json.loads(real("texts", "--limit", "3", "--after", first["next"], "--json").stdout)
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
    receipt = json.loads(real("texts", "delete", second, second, "--json").stdout)
    assert receipt == daemon.client.get(f"/deletions/{receipt['id']}").json() and receipt["texts"] == 1
    result = real("texts", "delete", third, first)
    assert (result.exit_code, "There is no text" in result.stderr) == (1, True)
    for text, status in ((first, 404), (second, 404), (third, 200)):
        assert daemon.client.get(f"/texts/{text}").status_code == status


def served_after_learning(daemon: Daemon) -> str:
    """Let a job learn what is new, and serve its adapter."""
    store = Store.open(daemon.folder / "pocketllm.db")
    job = queue_job(store)
    row = Adapter(id=f"adapter-{job.id[4:]}", job_id=job.id, model="tiny", outcome=Outcome.LEARNED, created_at=NOW)
    write_adapter_files(daemon.folder / "adapters" / row.id)
    store.jobs.succeed(job.id, adapter=row, publish=True, now=NOW)
    store.close()
    return row.id


def test_what_a_deletion_costs_is_said_before_and_after(tmp_path: Path) -> None:
    with running(tmp_path / "data", MODEL="tiny", TRAINING__NEW_WORDS="100000") as daemon:
        real = commands(daemon.folder)
        learned, kept = add(daemon, "Learned text.", "Kept text.")
        adapter = served_after_learning(daemon)
        asked = real("texts", "delete", learned, stdin="n\n")
        cost = "The base model is served until a job, queued at once, has trained on what remains."
        assert asked.exit_code == 1 and f"{adapter} learned from it. {cost} Delete? [y/N]" in asked.output
        refused = real("texts", "delete", learned, "--json")
        assert refused.exit_code == 2 and "Give --yes" in refused.stderr
        assert daemon.client.get(f"/texts/{learned}").status_code == 200
        said = real("texts", "delete", learned, stdin="y\n").stdout
        assert "Deleted 1 text. The base model is now served. job-" in said and "trains on the remaining texts." in said
        assert not real("texts", "delete", kept, "--yes").exit_code
        refused = real("adapters", "serve", adapter)
        assert refused.exit_code == 1 and "was trained on text that was deleted since" in refused.stderr
        assert f"From the next request on, tiny serves {adapter}" in real("adapters", "serve", adapter, "--yes").stdout


def test_delete_by_source_by_app_and_by_folder(daemon: Daemon, real: Run, tmp_path: Path) -> None:
    notes = tmp_path / "diary"
    notes.mkdir()
    note = notes / "a.txt"
    note.write_text("This note has rather more than the eight words that it needs.")
    os.utime(note, (0, 0))
    assert real("folders", "add", str(notes)).exit_code == 0
    for number in range(2):
        daemon.client.post("/texts", json={"text": f"Of a source {number}.", "source": "by source"})
    app = daemon.client.post("/tokens", json={"name": "sender", "scopes": ["ingest"]}).json()["token"]
    headers = {"authorization": f"Bearer {app}"}
    assert daemon.stranger.post("/texts", json={"text": "Of an app."}, headers=headers).status_code == 201
    for which, count in ((["--source", "by source"], 2), (["--app", "sender"], 1), (["--folder", str(notes)], 1)):
        asked = real("texts", "delete", *which, stdin="n\n")
        assert asked.exit_code == 1 and f"{count:,} texts. Delete? [y/N]" in asked.output
        assert real("texts", "delete", *which, "--json").exit_code == 2
        said = real("texts", "delete", *which, "--yes").stdout
        assert said.startswith(f"Deleted {count} text")
    for which in (["--source", "none"], ["--app", "none"], ["--folder", str(tmp_path)]):
        assert real("texts", "delete", *which, "--yes").exit_code == 1
    assert real("texts", "delete", "--source", "a", "--app", "b").exit_code == 2


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
    "messages": None,
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
    console.print(texts_table({"data": [chat], "next": None}, width=60, now=NOW))
    assert output(console).count("Tea?") == 2 and "assistant" in output(console)
