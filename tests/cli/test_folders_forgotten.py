"""Watched folders: what the owner has deleted stays deleted, and what is only out of reach is not forgotten."""

import os
import resource
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from sqlite3 import connect

import pytest

from pocketllm.cli.program import Common
from pocketllm.cli.texts import show_scans
from pocketllm.daemon.folder_scans import WatchedFolder, changed_folders, watched_folders
from pocketllm.daemon.paths import DataFolder
from pocketllm.readers.base import Kind, ReadOptions, Skipped
from pocketllm.readers.reading import read
from pocketllm.readers.walk import Entry
from pocketllm.scan import TOGETHER, scan_all
from tests.support.daemon.commands import WAIT_SECONDS, Run, child_environment
from tests.support.daemon.folder_world import LONG, World
from tests.support.stress.disks import disk, run


def test_a_scan_ends_with_a_folder_that_is_removed_meanwhile(world: World) -> None:
    for number in range(TOGETHER + 100):
        world.write(f"{number:04d}.md", str(number))
    world.on_file = lambda name: world.unwatch() if name == f"{TOGETHER - 100:04d}.md" else None
    world.scan()
    assert len(world.words()) == TOGETHER // 2, "one transaction was before"
    assert len(world.read) == TOGETHER, "and nothing was read after it"
    assert list(watched_folders(world.data)) == []


def test_a_deleted_text_does_not_come_back_with_an_edit_elsewhere(world: World) -> None:
    world.scan_notes(a="one two", b="two three")
    receipt = world.forget("two")
    assert receipt.files == [str(world.notes / name) for name in ("a.md", "b.md")]
    world.scan()
    assert world.words() == {"one", "three"}
    world.scan_notes(a="one two four", b="two three")  # b as by `touch`
    assert world.words() == {"one", "three", "four"}
    assert world.forget("three").files == [str(world.notes / "b.md")]


def test_a_deleted_text_is_welcome_again_once_its_file_did_not_have_it(world: World) -> None:
    world.scan_notes(a="one two")
    world.forget("two")
    world.scan_notes(a="one")
    world.scan_notes(a="one two")
    assert world.words() == {"one", "two"}


@pytest.mark.parametrize("goes", ["file", "folder"])
def test_what_is_remembered_of_a_file_goes_with_it(world: World, goes: str) -> None:
    world.scan_notes(a="one two", b="three")
    world.forget("two")
    if goes == "file":
        (world.notes / "a.md").unlink()
        world.scan()
        world.scan()
    else:
        world.unwatch()
        assert scan_all(world.data, world.store.folders, now=lambda: world.now, max_bytes=1000) == []
        world.watch()
    with closing(connect(world.data.database)) as raw:
        assert raw.execute("SELECT * FROM deleted_text").fetchall() == []


def test_another_file_may_bring_a_deleted_text_again(world: World) -> None:
    world.scan_notes(a="one two")
    world.forget("two")
    (world.notes / "a.md").rename(world.notes / "b.md")
    world.scan()
    assert world.words() == {"one", "two"}


@pytest.mark.parametrize("added", ["after the old one was removed", "before"])
def test_a_moved_folder_forgets(world: World, added: str) -> None:
    world.scan_notes(a="a", b="b", c="c")
    old = WatchedFolder(path=str(world.notes), name="notes")
    world.notes = world.notes.rename(world.notes.with_name("moved"))
    world.watch()
    if added == "before":
        with changed_folders(world.data) as watched:
            watched.append(old)
        scan_all(world.data, world.store.folders, now=lambda: world.now, max_bytes=1000)
        world.watch()
    world.scan()
    (world.notes / "b.md").unlink()
    world.scan_notes(c="d")
    world.scan()
    assert world.words() == {"a", "d"}


def test_a_folder_that_is_moved_and_named_anew_leaves_its_old_texts(world: World) -> None:
    """As the documentation says: they are another source's, which the owner deletes."""
    world.scan_notes(a="one")
    world.notes = world.notes.rename(world.notes.with_name("moved"))
    world.watch(name="moved")
    world.scan()
    assert {text.source for text in world.texts()} == {"notes", "moved"}
    world.store.deletions.source("notes", now=world.now)
    world.scan_notes(a="two")
    assert [(text.source, world.words()) for text in world.texts()] == [("moved", {"two"})]


def mailbox(world: World, *numbers: int) -> Path:
    """A file with this many of the owner's mails."""
    mail = "From a@b.c Mon Jan  1 10:00:00 2024\nFrom: a@b.c\nDate: Mon, 1 Jan 2024 10:00:00 +0000\n\n{}\n\n"
    return world.write_text("a.mbox", "".join(mail.format(LONG.format(number)) for number in numbers))


def break_off(file: Path) -> None:
    """Let further reads of an open file fail: its descriptor becomes a folder's."""
    for link in Path("/proc/self/fd").iterdir():
        if os.path.lexists(link) and link.readlink() == file:
            folder = os.open(file.parent, os.O_RDONLY)
            os.dup2(folder, int(link.name))
            os.close(folder)


def test_a_read_that_fails_on_its_way_takes_nothing(world: World) -> None:
    file = mailbox(world, *range(3 * TOGETHER))
    assert world.scan().texts == 3 * TOGETHER
    mailbox(world, *range(10, 3 * TOGETHER), -1)
    world.during = lambda: break_off(file)
    found = world.scan()
    assert (found.unreadable, found.texts) == (1, 3 * TOGETHER)
    world.during = lambda: None
    assert world.scan().unreadable == 0
    assert world.words() == {*map(str, range(10, 3 * TOGETHER)), "-1"}


@pytest.mark.parametrize("kind", [None, Kind.NOTES])
def test_an_error_of_the_disk_is_a_reason(kind: Kind | None) -> None:
    """The kernel answers EIO where this file has nothing."""
    _, found = read(Entry(path=Path("/proc/self/mem"), name="mem"), ReadOptions(format=kind))
    (skipped,) = found
    assert isinstance(skipped, Skipped) and skipped.reason.startswith("cannot be read")
    assert skipped.reason.endswith("Input/output error")


def test_a_file_that_cannot_be_opened_is_counted_and_read_later(world: World) -> None:
    world.write("a.md", "one")
    world.write("b.md", "two")
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)

    def on_file(name: str) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0 if name == "a.md" else usual, most))

    world.on_file = on_file
    try:
        assert world.scan().unreadable == 1
    finally:
        on_file("")
    assert world.words() == {"two"}
    world.on_file = lambda name: None
    assert world.scan().unreadable == 0
    assert world.words() == {"one", "two"}


def test_a_mount_that_is_away_is_not_forgotten_unless_the_owner_says_so(world: World) -> None:
    for name in "abcdefgh":
        world.write(f"{name}.md", name)
    with disk("small", world.notes / "mount"):
        world.write("mount/i.md", "i")
        world.write("mount/j.md", "j")
        world.scan()
        (world.notes / "mount" / "j.md").unlink()
        world.scan()
        world.scan()
        assert world.words() == set("abcdefghi"), "what is deleted from it is"
        run("umount", str(world.notes / "mount"))
        for folder in ("is empty", "is gone"):
            if folder == "is gone":
                (world.notes / "mount").rmdir()
            assert [world.scan().vanished for _ in range(3)][-1] == 1
            assert world.words() == set("abcdefghi")
        assert world.scan(forget=True).vanished == 0
        assert world.words() == set("abcdefgh")
        (world.notes / "mount").mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", str(world.notes / "mount"))  # for the end


def test_two_scans_that_agree_are_an_hour_apart(world: World) -> None:
    world.scan_notes(**{name: name for name in "abcdefgh"})
    (world.notes / "a.md").unlink()
    for _ in range(3):
        world.scan(then=timedelta(minutes=20))
        assert "a" in world.words()
    world.scan()
    assert world.words() == set("bcdefgh")


def test_the_owner_confirms_at_once(world: World) -> None:
    world.scan_notes(a="a", b="b")
    (world.notes / "a.md").unlink()
    world.scan(forget=True, then=timedelta(seconds=1))
    assert "a" in world.words(), "one scan may be wrong"
    world.scan(forget=True)
    assert "a" not in world.words()


def test_a_file_is_still_when_it_is_read_not_when_the_scan_began(world: World) -> None:
    world.write("a.md", "one")
    world.write("b.md", "half of", age_seconds=-58)

    def on_file(name: str) -> None:
        world.now += timedelta(minutes=1)

    world.on_file = on_file
    world.scan()
    assert world.read == ["a.md"]


def test_a_long_file_comes_in_portions_and_is_whole_with_the_last(world: World) -> None:
    mailbox(world, *range(TOGETHER + 10))
    world.scan()
    mailbox(world, *range(TOGETHER, 3 * TOGETHER))
    stored = list[int]()
    world.during = lambda: stored.append(len(world.texts()))
    world.scan()
    assert stored == [TOGETHER + 10, 2 * TOGETHER, 3 * TOGETHER, 3 * TOGETHER], "what is gone goes with the last"
    assert world.words() == set(map(str, range(TOGETHER, 3 * TOGETHER)))


def test_a_file_that_was_read_in_part_is_read_again(world: World) -> None:
    mailbox(world, *range(TOGETHER + 10))
    world.scan()
    file = mailbox(world, *range(TOGETHER, 3 * TOGETHER))
    puts = list[int]()

    def leave() -> None:
        puts.append(1)
        if len(puts) == 2:
            world.unwatch()  # as a kill does, it ends the scan

    world.during = leave
    world.scan()
    assert len(world.words()) == 2 * TOGETHER, "the first portion, and what was there"
    world.during = lambda: None
    with closing(connect(world.data.database)) as raw:
        assert raw.execute("SELECT version FROM watched_file").fetchall() == [(0,)]
    world.watch()
    world.scan()
    assert world.read == [file.name] and world.words() == set(map(str, range(TOGETHER, 3 * TOGETHER)))


def test_names_that_are_not_utf8_are_counted_not_mixed_up(world: World) -> None:
    world.write("a.md", "one")
    for name in (b"b\xff.md", b"b\xfe.md", b"c\xff/d.md"):
        world.write(os.fsdecode(name), "two")
    for _ in range(3):
        assert world.scan().unreadable == 3
        assert world.words() == {"one"}


def test_folders_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    places = [tmp_path / name for name in "abcd"]
    children = []
    for place in places:
        place.mkdir()
        command = [sys.executable, "-m", "pocketllm", "folders", "add", str(place)]
        children.append(subprocess.Popen(command, env=child_environment(data.root), stdout=subprocess.DEVNULL))
    assert [child.wait(timeout=WAIT_SECONDS) for child in children] == [0] * 4
    assert {one.path for one in watched_folders(data)} == set(map(str, places))


def test_a_scan_neither_checks_nor_migrates_what_is_there(alone: Run, tmp_path: Path) -> None:
    notes, database = tmp_path / "notes", tmp_path / "nothing" / "pocketllm.db"
    notes.mkdir()
    database.parent.mkdir()
    with closing(connect(database)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")  # as a first command that was killed leaves it
    assert alone("folders", "add", str(notes)).exit_code == 0, "without a daemon before"
    with closing(connect(database)) as raw, raw:
        raw.execute("CREATE TABLE more (one CHECK (one > 0))")
        raw.execute("PRAGMA ignore_check_constraints = ON")
        raw.execute("INSERT INTO more VALUES (-1)")
    with closing(connect(database)) as raw:
        assert raw.execute("PRAGMA quick_check").fetchall() != [("ok",)]
    assert alone("folders", "scan").exit_code == 0
    with closing(connect(database)) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = '0000'")
    assert "Run `pocketllm serve` once" in alone("folders", "scan").output


def test_a_scan_says_that_the_adapter_is_withdrawn(capsys: pytest.CaptureFixture[str]) -> None:
    show_scans(Common(), [], "deletion")
    assert "Your adapter is withdrawn, since it had learned a text that was deleted" in capsys.readouterr().out
    show_scans(Common(), [], "rollback")
    assert "withdrawn" not in capsys.readouterr().out
