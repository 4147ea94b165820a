"""A file or a folder is there whole or not at all, and its owner's alone while it is written."""

import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from pocketllm.engine.formats.atomic import SCRATCH, atomic, final_name, scratch_prefix, whole_file


def write(path: Path, inside: str, text: str) -> None:
    if inside:
        path.mkdir()
    (path / inside).write_text(text)


@pytest.mark.parametrize("inside", ["", "it"], ids=["file", "folder"])
def test_what_is_replaced_is_whole_at_any_time(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "made"
    with atomic(path) as scratch:
        write(scratch, inside, "old")
        assert stat.S_IMODE(scratch.parent.stat().st_mode) == 0o700
    with pytest.raises(InterruptedError), atomic(path) as scratch:
        write(scratch, inside, "half")
        raise InterruptedError
    assert (path / inside).read_text() == "old"
    with atomic(path) as scratch:
        write(scratch, inside, "new")
        assert (path / inside).read_text() == "old"
    assert (path / inside).read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("inside", ["", "it"], ids=["file", "folder"])
def test_two_that_write_at_once_share_nothing(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "made"
    with atomic(path) as last:
        write(last, inside, "last")
        with atomic(path) as first:
            write(first, inside, "first")
        assert (path / inside).read_text() == "first"
    assert (path / inside).read_text() == "last"


def test_many_that_write_at_once_all_succeed(tmp_path: Path) -> None:
    path, failed = tmp_path / "list.json", []

    def put(text: bytes) -> None:
        try:
            for _ in range(20):
                with whole_file(path) as file:
                    file.write(text)
        except OSError as error:
            failed.append(error)

    texts: Sequence[bytes] = [b"%d" % number * 1000 for number in range(4)]
    threads = [threading.Thread(target=put, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_bytes() in texts and list(tmp_path.iterdir()) == [path]


def test_a_whole_file_is_its_owners_alone_and_replaces_no_folder(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.tar", tmp_path / "folder"
    write(folder, "kept", "")
    path.touch(mode=0o644)
    with whole_file(path) as file:
        file.write(b"secret")
        assert [stat.S_IMODE(Path(file.name).stat().st_mode), path.read_bytes()] == [0o600, b""]
    assert [stat.S_IMODE(path.stat().st_mode), path.read_bytes()] == [0o600, b"secret"]
    with pytest.raises(IsADirectoryError), whole_file(folder):
        pass
    assert (folder / "kept").exists()


def test_what_a_killed_writer_left_tells_what_it_was(tmp_path: Path) -> None:
    name = "adapter-1234"
    with atomic(tmp_path / name) as scratch:
        left = scratch.parent.name
        assert left.startswith(scratch_prefix(scratch)) and left.startswith(SCRATCH)
        assert final_name(left) == final_name(name) == name
        scratch.touch()
