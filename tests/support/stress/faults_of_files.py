"""Faults of the disk and of the files on it. Each takes its cause away again, and returns what the owner saw."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from bench.common.world import until
from tests.support.daemon.commands import commands
from tests.support.daemon.real_daemon import refused_start
from tests.support.stress.disks import fail_for_good, filled, repair, run
from tests.support.stress.world import World


def disk_full(world: World) -> str:
    with filled(world.folder):
        return world.posted_for(15)


def full_disk_at_start(world: World) -> str:
    world.stop()
    return used_on_full_disk(world)


def full_disk_after_kill(world: World) -> str:
    """The log is left as it was."""
    world.kill()
    return used_on_full_disk(world)


def used_on_full_disk(world: World) -> str:
    """The daemon must start, find texts, and delete some."""
    with filled(world.folder):
        world.start()
        found = world.call("GET", "/texts?limit=500&query=fault")["data"]
        assert len(found) == len(world.acknowledged)
        for identity in acknowledged_ids(world, 5):
            delete_for_good(world, identity)
        assert commands(world.folder)("texts", "delete", "--yes", *acknowledged_ids(world, 5)).exit_code == 0
        left = world.call("GET", "/texts?limit=500&query=fault")["data"]
        assert len(left) == len(world.acknowledged)
        said = world.posted("a text for a full disk")
    assert world.posted("a text once there is room") == "stored"
    return f"{len(found)} texts found, {len(left)} left; then {said}"


def acknowledged_ids(world: World, count: int) -> list[str]:
    """The ids of acknowledged texts that are about to be deleted."""
    texts = [world.acknowledged.pop(0) for _ in range(count)]
    return [world.query("SELECT id FROM text WHERE text = ?", text)[0][0] for text in texts]


def delete_for_good(world: World, identity: str) -> None:
    """Delete a text; its bytes must be gone from the database and its log then."""
    [(words,)] = world.query("SELECT text FROM text WHERE id = ?", identity)
    assert world.call("DELETE", f"/texts/{identity}")["deletion"]["texts"] == 1
    holding = [file for file in world.folder.glob("pocketllm.db*") if str(words).encode() in file.read_bytes()]
    assert not holding, holding


def backup_killed(world: World) -> str:
    """While it is written; the next deletion takes away what it has left."""
    place = world.folder.parent / "backups"
    place.mkdir()
    killed(pocketllm(world, "backup", str(place / "backup.tar")), when=lambda: list(place.iterdir()))
    [identity] = acknowledged_ids(world, 1)
    delete_for_good(world, identity)
    assert not list(place.iterdir())
    return "nothing is left"


def restore_killed(world: World) -> str:
    """While it unpacks; the next start takes away what it has left."""
    backup = str(world.folder.parent / "backup.tar")
    run(*pocketllm(world, "backup", backup))
    world.stop()
    killed(pocketllm(world, "restore", backup, "--yes"), when=lambda: list(world.folder.glob(".restore-*")))
    world.start()
    assert not list(world.folder.glob(".restore-*"))
    return "nothing is left"


def pocketllm(world: World, name: str, *words: str) -> list[str]:
    """A command on the folder."""
    return [sys.executable, "-m", "pocketllm", name, "--data-dir", str(world.folder), *words]


def killed(command: Sequence[str], *, when: Callable[[], object]) -> None:
    """Run a command, and kill it once something is so."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(lambda: process.poll() is not None or when(), "the moment for the kill", between_seconds=0.0002)
        process.kill()
    if process.returncode != -signal.SIGKILL:
        pytest.skip("the command was done before it could be killed")


def read_only_disk(world: World) -> str:
    """The file system fails and becomes read-only; the device is started again, which repairs it."""
    place = world.folder.parent
    fail_for_good(place)
    said = world.posted_for(8)
    world.kill()
    until(lambda: not subprocess.run(["umount", place], check=False, capture_output=True).returncode, "the disk")
    repair(place)
    world.start()
    return said


def adapter_damaged(world: World) -> str:
    return served(world, flip)


def adapter_truncated(world: World) -> str:
    return served(world, halve)


def adapter_deleted(world: World) -> str:
    return served(world, Path.unlink)


def served(world: World, damage: Callable[[Path], object]) -> str:
    """What /status says once the served adapter's weights are damaged and text is asked for."""
    until(lambda: not world.open_jobs(), "the job's end")
    newest = world.call("GET", "/adapters")["data"][0]["id"]
    world.call("POST", f"/adapters/{newest}/serve")
    damage(world.folder / "adapters" / newest / "adapter_model.safetensors")
    world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
    return str(world.call("GET", "/status")["model"]["message"])


def flip(file: Path) -> None:
    """Change a bit near the end."""
    with file.open("r+b") as content:
        content.seek(-100, os.SEEK_END)
        (byte,) = content.read(1)
        content.seek(-100, os.SEEK_END)
        content.write(bytes([byte ^ 0x40]))


def halve(file: Path) -> None:
    """Cut a file off in the middle."""
    os.truncate(file, file.stat().st_size // 2)


def checkpoint_damaged(world: World) -> str:
    """The job's newest checkpoint is cut off while the device is without power."""
    (job,) = world.open_jobs()
    folder = world.folder / "runs" / job["id"]
    until(lambda: list(folder.glob("*.safetensors")), "a checkpoint")
    world.kill()
    halve(max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime))
    world.start()
    return world.last_event()


def database_locked(world: World) -> str:
    """Another program holds its lock for half a minute."""
    with closing(sqlite3.connect(world.folder / "pocketllm.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = world.posted("a text for a locked database", seconds=60)
        other.execute("ROLLBACK")
    return said


def database_damaged(world: World) -> str:
    """Pages are overwritten while the daemon is down. The owner restores the backup, as it says."""
    backup, database = str(world.folder.parent / "backup.tar"), world.folder / "pocketllm.db"
    run(*pocketllm(world, "backup", backup))
    world.stop()
    content = bytearray(database.read_bytes())
    for page in range(4096, len(content), 2 * 4096):
        content[page : page + 512] = b"\xff" * 512
    database.write_bytes(content)
    said = refused_start(world.folder)
    run(*pocketllm(world, "restore", backup, "--yes"))
    world.start()
    return said


def database_missing(world: World) -> str:
    """It is moved away. The owner puts it back with the adapters that were set aside, as it says."""
    until(lambda: not world.open_jobs(), "the job's end")
    world.stop()
    elsewhere, adapters = world.folder.parent / "elsewhere", world.folder / "adapters"
    elsewhere.mkdir()
    learned = {path.name for path in adapters.iterdir()}
    for file in world.folder.glob("pocketllm.db*"):
        file.rename(elsewhere / file.name)
    world.start()
    said = str(world.call("GET", "/status")["model"]["message"])
    world.stop()
    kept = list((world.folder / "set-aside").iterdir())
    assert {path.name for path in kept} == learned
    for path in kept:
        path.rename(adapters / path.name)
    for file in world.folder.glob("pocketllm.db*"):
        file.unlink()
    for file in elsewhere.iterdir():
        file.rename(world.folder / file.name)
    world.start()
    return said


FAULTS = (
    *(disk_full, full_disk_at_start, full_disk_after_kill, backup_killed, restore_killed, read_only_disk),
    *(adapter_damaged, adapter_truncated, adapter_deleted, checkpoint_damaged),
    *(database_locked, database_damaged, database_missing),
)
