"""Watched folders: what a scan reads, what it forgets, and what it never forgets; and the commands."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pocketllm.daemon.errors import BadSettings
from pocketllm.daemon.folder_scans import FolderScans, watched_folders
from pocketllm.scan import MANY, pieces, scan_all
from pocketllm.storage.repositories.texts import NewText
from tests.support.daemon.commands import Run
from tests.support.daemon.folder_world import LONG, NOW, World


def test_a_look_reads_what_is_new_and_each_file_once(world: World) -> None:
    world.write("a.md", "one", "two")
    world.write("deep/er/b.txt", "three")
    found = world.scan()
    assert (found.texts, found.problem, found.scanned_at) == (3, None, NOW)
    assert world.words() == {"one", "two", "three"}
    assert {text.source for text in world.texts()} == {"notes"}
    assert world.read == ["a.md", "deep/er/b.txt"]
    world.scan()
    assert world.read == []


def test_an_edit_replaces_a_paragraph_and_keeps_the_others(world: World) -> None:
    world.scan_notes(a="one two")
    kept = {text.id for text in world.texts() if "one" in text.text}
    world.scan_notes(a="one three")
    assert world.words() == {"one", "three"}
    assert kept < {text.id for text in world.texts()}


def test_a_file_that_moves_keeps_its_texts(world: World) -> None:
    world.scan_notes(a="one")
    before = world.texts()
    (world.notes / "a.md").rename(world.notes / "b.md")
    for _ in range(3):
        world.scan()
        assert [text.created_at for text in world.texts()] == [before[0].created_at]


def test_a_paragraph_that_moves_to_another_file_stays(world: World) -> None:
    world.scan_notes(a="one two")
    world.scan_notes(a="one", b="two")
    assert world.words() == {"one", "two"}


def test_a_file_that_comes_back_was_never_gone(world: World) -> None:
    world.scan_notes(**{name: name for name in "abcdefgh"})
    shutil.move(world.notes / "a.md", world.data.root / "a.md")
    world.scan()
    shutil.move(world.data.root / "a.md", world.notes / "a.md")
    world.scan()
    (world.notes / "a.md").unlink()
    world.scan()
    assert "a" in world.words()


@pytest.mark.parametrize("files", [10, 300])
def test_many_that_vanish_at_once_are_asked_about(world: World, files: int) -> None:
    world.scan_notes(**{str(number): str(number) for number in range(files)})
    too_many = min(files // 5, MANY) + 1
    for number in range(too_many):
        (world.notes / f"{number}.md").unlink()
    world.scan()
    assert world.scan().vanished == too_many
    assert len(world.words()) == files
    assert world.scan(forget=True).vanished == 0
    assert len(world.words()) == files - too_many
    assert [deletion.texts for deletion in world.store.deletions.pending()] == [too_many], "one receipt"


@pytest.mark.parametrize("loss", ["missing", "empty", "another disk", "unreadable"])
def test_nothing_is_forgotten_when_the_folder_is_lost(world: World, loss: str) -> None:
    world.scan_notes(a="one")
    if loss == "another disk":
        scans = json.loads(world.data.scans.read_text())
        scans[0]["device"] += 1
        world.data.scans.write_text(json.dumps(scans))
        (world.notes / "a.md").rename(world.notes / "b")
    elif loss == "unreadable":
        world.notes.rename(world.notes.with_name("away"))
        world.notes.write_text("a file")
    else:
        shutil.rmtree(world.notes)
        if loss == "empty":
            world.notes.mkdir()
    for _ in range(1 if loss == "another disk" else 3):
        assert "Nothing was forgotten" in str(world.scan().problem)
    assert world.words() == {"one"}


def test_a_file_that_became_empty_keeps_its_texts(world: World) -> None:
    world.scan_notes(a="one")
    world.scan_notes(a="")
    for _ in range(2):
        world.scan()
    assert world.words() == {"one"}


def test_a_file_is_read_once_it_has_been_still(world: World) -> None:
    world.write("a.md", "one", age_seconds=3)
    world.write("b.md", "future", age_seconds=-3600)
    world.scan()
    assert world.words() == {"future"}
    world.scan()
    assert world.words() == {"one", "future"}


def test_what_is_not_the_owners_or_is_ignored_is_not_read(world: World) -> None:
    (world.notes / ".pocketllmignore").write_text("private/\ndraft.md\n")
    for name in (
        ".hidden.md",
        ".trash/a.md",
        "a.sync-conflict-20260301-120000-ABC.md",
        "a (Anna's conflicted copy 2026-03-01).md",
        "logseq/bak/a.md",
        ".stversions/a.md",
        "@eaDir/a.md",
        "~$a.md",
        "private/a.md",
        "deep/draft.md",
    ):
        world.write(name, name)
    world.scan_notes(a="seen")
    assert world.words() == {"seen"}


def test_what_a_pattern_excludes_later_stays(world: World) -> None:
    world.scan_notes(**{name: name for name in "abcdefgh"})
    (world.notes / ".pocketllmignore").write_text("a.md\n")
    for _ in range(3):
        world.scan()
    assert world.words() == set("abcdefgh")


def test_texts_of_a_folder_that_is_watched_no_longer_stay(world: World) -> None:
    world.scan_notes(a="one")
    world.unwatch()
    assert scan_all(world.data, world.store.folders, now=lambda: world.now, max_bytes=1000) == []
    assert world.words() == {"one"}
    world.watch()
    world.scan_notes(a="two")
    assert world.words() == {"two"}


def test_what_somebody_else_has_sent_too_stays(world: World) -> None:
    world.scan_notes(a="one two")
    shared = NewText(text=LONG.format("one"), source="notes")
    world.store.texts.add([shared], now=NOW, owner="keyboard")
    world.scan_notes(a="three")
    assert world.words() == {"one", "three"}


def test_notes_are_paragraphs_with_the_short_ones_before_them() -> None:
    long = LONG.format("one")
    assert pieces(f"Title\n\n{long}\n\nAnna\n\nBert\n\n{long}\n\nlast") == [
        f"Title\n\n{long}",
        f"Anna\n\nBert\n\n{long}",
        "last",
    ]
    assert pieces("") == []


def test_chats_and_mark_up_are_read_as_the_folder_says(world: World) -> None:
    world.write_text("a.md", "# Title\n\n- [x] " + LONG.format("one"))
    world.write_text("chat.txt", "01/03/2026, 10:00 - Bert: Tea?\n01/03/2026, 10:01 - Anna: Always.\n")
    assert world.scan().nobodys == ["chat.txt"]
    assert world.scan().nobodys == ["chat.txt"]
    world.watch(me=["Anna"])
    assert world.scan().nobodys == []
    texts = {text.text: text.completion for text in world.texts()}
    assert f"Title\n\n{LONG.format('one')}" in texts
    assert texts["Tea?\n"] == "Always."


def test_a_scan_that_cannot_begin_stops_nothing(world: World) -> None:
    scans = FolderScans(world.data, lambda: 0.0, lambda: None, command=["/no/such/program"])
    assert not scans.begin(0.0)
    scans.close()


def test_a_list_that_is_none_is_said(world: World) -> None:
    world.data.folders.write_text("{}")
    with pytest.raises(BadSettings, match="Move it away"):
        watched_folders(world.data)


def test_the_commands_add_list_look_and_remove(alone: Run, tmp_path: Path) -> None:
    notes = tmp_path / "my notes"
    notes.mkdir()
    file = notes / "a.md"
    file.write_text(LONG.format("one"))
    os.utime(file, (0, 0))
    assert "No folder is watched" in alone("folders").stdout
    added = alone.json("folders", "add", str(notes), "--me", "Anna")
    assert [(one["path"], one["name"], one["texts"]) for one in added["data"]] == [(str(notes), "my notes", 1)]
    assert "my notes      1  " in alone("folders").stdout
    (notes / "b").mkdir()
    assert "overlaps the watched folder" in alone.refused("folders", "add", str(notes / "b"))
    shutil.rmtree(notes)
    assert "Nothing was forgotten" in alone("folders", "scan").stdout
    alone.said("folders", "remove", str(notes))
    alone.refused("folders", "remove", str(notes))
    alone.refused("folders", "add", str(notes))
