"""What may lie beside the database: files of killed commands, copies of it, and room for deleting on a full disk."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pocketllm.daemon.errors import DaemonError
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.engine.formats.atomic import scratch_prefix

#: Folders in the data folder: what a restore unpacks into, and where it puts what was there.
RESTORE_PREFIX, FORMER_PREFIX = ".restore-", "before-restore-"
#: Twice what SQLite's log holds before it is copied into the database.
RESERVE_BYTES = 8 << 20
_LOCK_SECONDS = 10.0


@contextmanager
def reserve_lent(folder: DataFolder) -> Iterator[None]:
    """Free the reserved room meanwhile, and reserve again what there is: SQLite needs room for deleting, too."""
    folder.reserve.unlink(missing_ok=True)
    try:
        yield
    finally:
        with suppress(OSError, AttributeError), folder.reserve.open("wb") as file:  # not every libc can allocate
            os.posix_fallocate(file.fileno(), 0, min(RESERVE_BYTES, shutil.disk_usage(folder.root).free))


@contextmanager
def noted_backup(folder: DataFolder, target: Path) -> Iterator[None]:
    """Note where a backup is written; it is not swept meanwhile. Raises DaemonError while another is written."""
    with locked(folder.backups, wait_seconds=_LOCK_SECONDS) as alone:
        if not alone:
            raise DaemonError(f"Another backup of {folder.root} is being written. Try again when it is done.")
        if target.absolute() not in _backups(folder):
            with folder.backups.open("ab") as file:
                file.write(os.fsencode(target.absolute()) + b"\0")
        yield


def sweep(folder: DataFolder, *, starting: bool = False) -> bool:
    """Delete what killed commands left of the database; False if any of it stays, or while a backup is written.

    Only the daemon may call it: no restore runs beside it. starting: no export runs either.
    """
    with locked(folder.backups) as alone:
        if not alone:
            return False
        left = list(folder.root.glob(f"{RESTORE_PREFIX}*")) + [folder.exports] * starting
        for target in _backups(folder):
            left += target.parent.glob(f"{glob.escape(scratch_prefix(target))}*")
        for path in left:
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return not any(map(os.path.lexists, left))


def copies(folder: DataFolder) -> list[str]:
    """The copies of the database that stay: backups that are there, or on a disk that is not, and restores' own."""
    backups = [path for path in _backups(folder) if os.path.lexists(path) or not os.path.lexists(path.parent)]
    return [str(path) for path in (*backups, *sorted(folder.root.glob(f"{FORMER_PREFIX}*")))]


def _backups(folder: DataFolder) -> list[Path]:
    """Where backups were written."""
    with suppress(FileNotFoundError):
        return [Path(os.fsdecode(name)) for name in folder.backups.read_bytes().split(b"\0") if name]
    return []
