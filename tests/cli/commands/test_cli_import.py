"""`pocketllm import`, from the shell to the daemon's disk."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from pocketllm.cli.importing import MAX_REFUSED, batches
from pocketllm.readers.base import Example
from pocketllm.readers.gathering import Tally
from tests.support.daemon.commands import WAIT_SECONDS, Run, interruptible
from tests.support.daemon.served import Served
from tests.support.reading import write

CHAT = "31.12.20, 23:58 - Anna: Tea?\n31.12.20, 23:59 - Me: Yes.\n"
MBOX = "From x\nFrom: me@example.org\n\nThe boat is dry.\n\nFrom y\nFrom: bert@example.org\n\nGood.\n"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder with one of each."""
    folder = tmp_path / "mine"
    write(folder / "may.md", "---\ntitle: May\n---\nWind west, two mugs of tea.")
    write(folder / "chats" / "anna.txt", CHAT)
    write(folder / "Sent.mbox", MBOX)
    write(folder / "photo.jpg", b"\xff\xd8\xff\xe0\0")
    write(folder / ".obsidian" / "x.json", "{}")
    return folder


def stored(served: Served) -> set[tuple[str, str, str | None]]:
    """The source, the text and the completion of each text."""
    return {(text["source"], text["text"], text["completion"]) for text in served.texts()}


def json_lines(path: Path, count: int) -> Path:
    return write(path, "".join(f'{{"text": "text {number}"}}\n' for number in range(count)))


def test_a_folder_with_one_of_each(run: Run, served: Served, notes: Path) -> None:
    me = ["--me", "me", "--me", "me@example.org"]
    said = run.said("import", str(notes), *me)
    assert said.endswith("Added 3 texts.\n")
    assert re.search(r"1  mails from other people +Sent\.mbox mail 2", said)
    assert re.search(r"1  not text: it contains zero bytes; export it as plain text first +photo\.jpg", said)
    assert stored(served) == {
        ("notes: may.md", "Wind west, two mugs of tea.", None),
        ("whatsapp: chats/anna.txt", "Tea?\n", "Yes."),
        ("mbox: Sent.mbox", "The boat is dry.", None),
    }
    again = run.json("import", str(notes), *me)
    assert (again["created"], again["duplicates"], again["texts"]) == (0, 3, 3)


def test_a_dry_run_counts_and_needs_no_daemon(alone: Run, notes: Path) -> None:
    said = alone.said("import", str(notes), "--dry-run", "--me", "Me", "--me", "me@example.org")
    assert [line.split() for line in said.splitlines()][:5] == [
        ["Kind", "Files", "Texts", "Words"],
        ["mbox", "1", "1", "4"],
        ["notes", "1", "1", "6"],
        ["whatsapp", "1", "1", "2"],
        ["total", "3", "3", "12"],
    ]
    assert said.endswith("Dry run: found 3 texts with 12 words, sent none.\n")
    document = alone.json("import", str(notes), "--dry-run", "--me", "Me")
    assert document["dry_run"] is True
    assert document["kinds"]["notes"] == {"files": 1, "texts": 1, "words": 6}
    assert {"reason": "hidden, or a program's folder", "count": 1, "places": [".obsidian"]} in document["skipped"]
    assert "No daemon answers" in alone.refused("import", str(notes))


class TestOwners:
    def test_a_chat_without_an_owner_says_who_takes_part(self, run: Run, served: Served, tmp_path: Path) -> None:
        path = write(tmp_path / "lonely.txt", CHAT + "31.12.20, 23:59 - Anna: Good.\n")
        for more in ([], ["--dry-run"]):
            result = run("import", str(path), *more)
            assert result.exit_code == 1 and "--me NAME" in result.stderr
            assert "Writers in lonely.txt, with their number of messages: 'Anna' (2), 'Me' (1)." in result.stderr
        assert served.texts() == []
        group = write(tmp_path / "group.txt", "".join(f"31.12.20, 23:59 - N{number}: x\n" for number in range(50)))
        assert "and 38 more. Run it again" in run("import", str(group)).stderr

    def test_the_rest_is_taken_all_the_same(self, run: Run, tmp_path: Path) -> None:
        write(tmp_path / "f" / "a.txt", CHAT)
        write(tmp_path / "f" / "b.txt", CHAT)
        write(tmp_path / "f" / "c.md", "A note beside chats.")
        result = run("import", str(tmp_path / "f"), "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["created"] == 1
        assert json.loads(result.stdout)["writers"] == {"Anna": 2, "Me": 2}
        assert "Writers in a.txt and 1 more, with" in json.loads(result.stderr)["detail"]

    def test_nobody_of_that_name(self, run: Run, tmp_path: Path) -> None:
        result = run("import", str(write(tmp_path / "a.txt", CHAT)), "--me", "Zoe")
        assert result.exit_code == 1
        assert "Nothing to import" in result.stderr
        assert "conversations without messages from you" in result.stdout


class TestUsage:
    def test_what_cannot_be_imported_is_said_before_anything_is_sent(
        self, run: Run, served: Served, tmp_path: Path
    ) -> None:
        note = str(write(tmp_path / "a.md", "words"))
        missing = str(tmp_path / "b.md")
        assert f"There is no file or folder {missing}." in run.refused("import", note, missing)
        for more in ([], [note, "--format", "pdf"], [note, "--source", ""]):
            run.refused("import", *more, code=2)
        assert "201 characters" in run("import", note, "--source", "x" * 201).stderr
        assert served.requests == []

    def test_format_and_source_may_be_said(self, run: Run, served: Served, tmp_path: Path) -> None:
        path = write(tmp_path / "script.py", "words = 1")
        run.said("import", str(path), "--format", "notes", "--source", "mine")
        assert stored(served) == {("mine", "words = 1", None)}

    def test_words_that_steer_the_terminal_are_not_shown(self, run: Run, tmp_path: Path) -> None:
        write(tmp_path / "f" / "\x1b[2J.bin", b"\0")
        assert "\x1b" not in run("import", str(tmp_path / "f")).stdout


class TestSending:
    def test_batches_are_bounded_and_keep_the_order(self) -> None:
        texts = [
            Example(item={"text": "x" * size}, place=str(size)) for size in (10, 500_000, 500_000, 8_000_000, 2_000_000)
        ]
        texts += [Example(item={"text": "y"}, place="y")] * 2500
        tally = Tally()
        made = list(batches(texts, tally.skip))
        assert [len(batch) for batch in made] == [2, 1, 1, 1000, 1000, 500]
        assert [text for batch in made for text in batch] == [text for text in texts if text.place != "8000000"]
        assert tally.places["too long for one request"] == ["8000000"]

    def test_texts_that_the_daemon_refuses_are_left_out_up_to_a_number(self, run: Run, tmp_path: Path) -> None:
        odd = f'{{"text": "a", "label": "{"w" * 101}"}}'
        lines = ['{"text": "before"}', odd, '{"text": "after"}']
        said = run.said("import", str(write(tmp_path / "some.jsonl", "\n".join(lines))))
        assert "Added 2 texts." in said and "some.jsonl line 2" in said
        assert "refused by the daemon: label: String should have at most 100" in said
        said = run.refused("import", str(write(tmp_path / "many.jsonl", "\n".join([odd] * 100))))
        assert f"many.jsonl line {MAX_REFUSED + 1}: label: String should have at most 100" in said

    def test_a_failure_in_the_middle_says_what_is_stored(self, run: Run, served: Served, tmp_path: Path) -> None:
        path = json_lines(tmp_path / "a.jsonl", 2500)
        with served.full_disk_from("POST /texts", 2):
            said = run.refused("import", str(path))
        assert "The database" in said and "1,000 texts are stored; run the same command again" in said
        assert "Added 1,500 texts. 1,000 were already stored." in run("import", str(path)).stdout

    def test_ctrl_c_at_the_keyboard(self, served: Served, tmp_path: Path) -> None:
        path = json_lines(tmp_path / "a.jsonl", 3000)

        def interrupt(request: str) -> None:
            if request == "POST /texts" and served.requests.count(request) == 2:
                process.send_signal(signal.SIGINT)

        served.before = interrupt
        process = interruptible([sys.executable, "-m", "pocketllm", "import", str(path)], served.home)
        _, said = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 130
        assert "Stopped by Ctrl-C. 1,000 texts are stored; run the same command again for the rest" in said


def test_texts_are_no_longer_than_the_settings_allow(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLLM_MAX_TEXT_BYTES", "700")
    path = write(tmp_path / "long.md", "\n\n".join(f"{number} {'words ' * 50}" for number in range(8)))
    assert "Added 4 texts." in run("import", str(path)).stdout
    monkeypatch.setenv("POCKETLLM_MAX_TEXT_BYTES", "many")
    assert "max_text_bytes" in run("import", str(path)).stderr
