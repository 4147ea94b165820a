"""Faults of the disk and of the files on it."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from bench.faults.acts import (
    command,
    deleted_for_good,
    filled,
    flip,
    kill,
    killed,
    last_event,
    left,
    limited,
    posted,
    posted_for,
    refused_start,
    served_by,
    used_on_full_disk,
)
from bench.faults.disks import device_of, mount_image
from bench.world import World, until


def disk_full(world: World) -> str:
    """The disk fills while a job runs, and has room again a while later."""
    with filled(world):
        return posted_for(world, 15, "full disk")


def full_disk_at_start(world: World) -> str:
    """The daemon is started on a full disk: texts are read and deleted."""
    world.stop()
    return used_on_full_disk(world)


def full_disk_after_kill(world: World) -> str:
    """The same after a kill, by which the log is left as it was."""
    kill(world)
    return used_on_full_disk(world)


def worker_log_unwritable(world: World) -> str:
    """No file of the worker may grow, its log neither."""
    pid = world.call("GET", "/status")["worker"]["pid"]
    with limited(pid, resource.RLIMIT_FSIZE, 0):
        until(lambda: world.call("GET", "/status")["worker"]["pid"] != pid, "the worker's end")
    if (said := last_event(world)).startswith("crashed"):
        raise SystemExit(f"Want of room counts as a crash: {said}")
    return said


def backup_killed(world: World) -> str:
    """A backup is killed while it is written; the next deletion takes away what it has left."""
    place = world.folder.parent / "backups"
    place.mkdir()
    killed(world, "backup", str(place / "backup.tar"), when=lambda: list(place.iterdir()))
    deleted_for_good(world)
    return left(list(place.iterdir()))


def restore_killed(world: World) -> str:
    """A restore is killed while it unpacks; the next start takes away what it has left."""
    backup = world.folder.parent / "backup.tar"
    command(world, "backup", str(backup))
    world.stop()
    killed(world, "restore", str(backup), "--yes", when=lambda: list(world.folder.glob(".restore-*")))
    world.start()
    return left(list(world.folder.glob(".restore-*")))


def read_only_disk(world: World) -> str:
    """The file system fails and becomes read-only; the device is started again, which repairs it."""
    place = world.folder.parent
    device = device_of(place)
    Path(f"/sys/fs/ext4/{device.name}/trigger_fs_error").write_text("1")
    said = posted_for(world, 8, "read-only disk")
    kill(world)
    until(lambda: not subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode, "the disk")
    subprocess.run(["e2fsck", "-fy", str(place.with_suffix(".img"))], check=False, capture_output=True)
    mount_image(place)
    world.start()
    return said


def no_file_growth(world: World) -> str:
    """No file of the daemon may grow any more, until it is let again."""
    assert world.process is not None
    with limited(world.process.pid, resource.RLIMIT_FSIZE, 4096):
        return posted_for(world, 8, "limit")


def adapter_damaged(world: World) -> str:
    """A bit of the served adapter's weights flips."""
    return served_by(world, flip)


def adapter_truncated(world: World) -> str:
    """The file of the served adapter's weights ends in the middle."""
    return served_by(world, lambda file: os.truncate(file, file.stat().st_size // 2))


def adapter_deleted(world: World) -> str:
    """The served adapter's weights are deleted."""
    return served_by(world, Path.unlink)


def checkpoint_damaged(world: World) -> str:
    """The job's newest checkpoint is cut off while the device is without power."""
    (job,) = world.open_jobs()
    run = world.folder / "runs" / job["id"]
    until(lambda: list(run.glob("*.safetensors")), "a checkpoint")
    kill(world)
    newest = max(run.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    os.truncate(newest, newest.stat().st_size // 2)
    world.start()
    return last_event(world)


def database_locked(world: World) -> str:
    """Another program holds the database's lock for half a minute."""
    with closing(sqlite3.connect(world.folder / "pocketllm.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = posted(world, "a text for a locked database", seconds=60)
        other.execute("ROLLBACK")
    return said


def database_damaged(world: World) -> str:
    """Pages of the database are overwritten while the daemon is down. The owner restores the backup, as it says."""
    backup = world.folder.parent / "backup.tar"
    command(world, "backup", str(backup))
    world.stop()
    with (world.folder / "pocketllm.db").open("r+b") as file:
        size = file.seek(0, 2)
        for page in range(4096, size, 2 * 4096):
            file.seek(page)
            file.write(b"\xff" * 512)
    said = refused_start(world)
    command(world, "restore", str(backup), "--yes")
    world.start()
    return said


def database_missing(world: World) -> str:
    """The database is moved away. The owner puts it back with the adapters that were set aside, as it says."""
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
    if {path.name for path in kept} != learned:
        raise SystemExit(f"Of the adapters {learned}, {kept} were kept.")
    for path in kept:
        path.rename(adapters / path.name)
    for file in world.folder.glob("pocketllm.db*"):
        file.unlink()
    for file in elsewhere.iterdir():
        file.rename(world.folder / file.name)
    world.start()
    return said
