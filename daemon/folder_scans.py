"""The folders that are watched: their list, and when the daemon scans them.

The list is a file in the data folder, which the owner's commands write, and no route.
"""

import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from pocketllm.daemon.child import last_words
from pocketllm.daemon.errors import BadSettings
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder, write_private

log = logging.getLogger(__name__)

#: Between two scans; how old one may be when a night's job begins; and when one is ended, as on a dead network disk.
INTERVAL_SECONDS, FRESH_SECONDS, MAX_SECONDS = 3600.0, 600.0, 1800.0
SCAN = (sys.executable, "-m", "pocketllm", "folders", "scan", "--json", "--data-dir")


class WatchedFolder(BaseModel, extra="forbid", frozen=True):
    """A folder whose files are learned from, or in which adapters appear."""

    path: str  #: absolute
    name: str  #: the source of its texts
    me: tuple[str, ...] = ()  #: the owner's names in chats and mail
    as_written: bool = False  #: notes keep their mark-up
    adapters: bool = False  #: it has no texts, but folders with adapters that were trained elsewhere


class Scan(BaseModel):
    """A watched folder and its last scan."""

    path: str
    name: str = Field(description="The source of its texts.")
    scanned_at: AwareDatetime | None = Field(None, description="Null before the first scan.")
    texts: int = 0
    unreadable: int = Field(0, description="Files and folders that cannot be read, or have names that are not UTF-8.")
    vanished: int = Field(0, description="Files missing all at once, or with a disk. Kept until you confirm.")
    nobodys: list[str] = Field([], description="Chats and mailboxes in which none of the names is the owner's.")
    problem: str | None = Field(None, description="Why nothing was read or forgotten.")
    device: int = Field(0, description="The device number of its file system.")


_T = TypeVar("_T")
_FOLDERS, _SCANS = TypeAdapter(list[WatchedFolder]), TypeAdapter(list[Scan])


def watched_folders(folder: DataFolder) -> list[WatchedFolder]:
    """The list. Raises BadSettings for a file that is no such list."""
    return _read(folder.folders, _FOLDERS)


@contextmanager
def changed_folders(folder: DataFolder) -> Iterator[list[WatchedFolder]]:
    """The list, to be changed in place, by one process at a time. Raises BadSettings."""
    with locked(folder.folders_lock, wait_seconds=math.inf):
        watched = watched_folders(folder)
        yield watched
        write_private(folder.folders, _FOLDERS.dump_json(watched, indent=2) + b"\n")


def scans(folder: DataFolder, watched: Sequence[WatchedFolder] | None = None) -> list[Scan]:
    """The last scan of each watched folder, or of these. Raises BadSettings."""
    last = {scan.path: scan for scan in _read(folder.scans, _SCANS)}
    folders = watched_folders(folder) if watched is None else watched
    return [last.get(one.path, Scan(path=one.path, name=one.name)) for one in folders]


def write_scans(folder: DataFolder, found: Sequence[Scan]) -> None:
    """Replace the last scans."""
    write_private(folder.scans, _SCANS.dump_json(list(found)))


def _read(file: Path, kind: TypeAdapter[list[_T]]) -> list[_T]:
    try:
        return kind.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise BadSettings(f"{file} cannot be read ({error}). Move it away and add the folders again.") from error


class FolderScans:
    """Scans the folders now and then, in a child process: the readers would stay in the daemon's memory."""

    def __init__(
        self, folder: DataFolder, uptime: Callable[[], float], ended: Callable[[], None], command: Sequence[str] = SCAN
    ) -> None:
        """ended: called when a scan has ended, in a thread of its own. command: takes the data folder."""
        self._folder, self._uptime, self._ended = folder, uptime, ended
        self._command = [*command, str(folder.root)]
        self._process: subprocess.Popen[bytes] | None = None
        self._last = -math.inf  # when one began, or ended

    def begin(self, older_than: float) -> bool:
        """Begin a scan if the last one was longer ago, in seconds. Returns whether one is under way."""
        if self._process is not None:
            if self._uptime() - self._last < MAX_SECONDS:
                return True
            log.warning("the scan of the watched folders took more than %.0f s and is ended", MAX_SECONDS)
            self.close()  # nobody waits for its end, which a dead disk may prevent
            self._last, self._process = self._uptime(), None
        if self._uptime() - self._last < older_than or not self._folder.folders.exists():
            return False
        self._last = self._uptime()
        try:
            self._process = process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:  # out of processes or memory, which is no reason for a job to fail
            log.warning("the scan of the watched folders could not begin: %s", error)
            return False
        threading.Thread(target=self._follow, args=[process], daemon=True).start()
        with suppress(OSError):  # it may have ended; and systemd's system unit forbids it
            os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        return True

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        said = process.communicate()[1]
        if process.returncode:
            log.warning("the scan of the watched folders failed: %s", last_words(said))
        if self._process is process:
            self._last, self._process = self._uptime(), None
        self._ended()

    def close(self) -> None:
        """End a scan. It goes on at the next one."""
        if (process := self._process) is not None:
            process.kill()
