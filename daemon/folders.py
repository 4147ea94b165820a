"""The folders that are watched: their list, and when the daemon scans them.

The list is a file in the data folder, which the owner's commands write, and no route.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from pocketllm.daemon.child_environment import last_words
from pocketllm.daemon.errors import BadSettings
from pocketllm.daemon.paths import DataFolder, write_private

log = logging.getLogger(__name__)

#: Between two scans; and how old one may be when a night's job begins.
INTERVAL_SECONDS, FRESH_SECONDS = 3600.0, 600.0
SCAN = (sys.executable, "-m", "pocketllm", "folders", "scan", "--json", "--data-dir")


class WatchedFolder(BaseModel, extra="forbid", frozen=True):
    """A folder whose files are learned from."""

    path: str  #: absolute
    name: str  #: the source of its texts
    me: tuple[str, ...] = ()  #: the owner's names in chats and mail
    as_written: bool = False  #: notes keep their mark-up


class Scan(BaseModel):
    """A watched folder and its last scan."""

    path: str
    name: str = Field(description="The source of its texts.")
    scanned_at: AwareDatetime | None = Field(None, description="Null before the first scan.")
    texts: int = 0
    unreadable: int = Field(0, description="Files and folders in it that cannot be opened.")
    vanished: int = Field(0, description="Files missing all at once. Their texts are kept until you confirm.")
    nobodys: list[str] = Field([], description="Chats and mailboxes in which none of the names is the owner's.")
    problem: str | None = Field(None, description="Why nothing was read or forgotten.")
    device: int = Field(0, description="The device number of its file system.")


_T = TypeVar("_T")
_FOLDERS, _SCANS = TypeAdapter(list[WatchedFolder]), TypeAdapter(list[Scan])


def watched_folders(folder: DataFolder) -> list[WatchedFolder]:
    """The list. Raises BadSettings for a file that is no such list."""
    return _read(folder.folders, _FOLDERS)


def write_folders(folder: DataFolder, watched: Sequence[WatchedFolder]) -> None:
    """Replace the list, whole or not at all."""
    write_private(folder.folders, _FOLDERS.dump_json(list(watched), indent=2) + b"\n")


def scans(folder: DataFolder) -> list[Scan]:
    """The last scan of each watched folder. Raises BadSettings."""
    last = {scan.path: scan for scan in _read(folder.scans, _SCANS)}
    return [last.get(one.path, Scan(path=one.path, name=one.name)) for one in watched_folders(folder)]


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
        self._began: float | None = None

    def begin(self, older_than: float) -> bool:
        """Begin a scan if the last one began longer ago, in seconds. Returns whether one is under way."""
        if self._process is not None:
            return True
        recent = self._began is not None and self._uptime() - self._began < older_than
        if recent or not self._folder.folders.exists():
            return False
        self._began = self._uptime()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:  # out of processes or memory, which is no reason for a job to fail
            log.warning("the scan of the watched folders could not begin: %s", error)
            return False
        os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)
        threading.Thread(target=self._follow, args=[self._process], daemon=True).start()
        return True

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        said = process.communicate()[1]
        if process.returncode:
            log.warning("the scan of the watched folders failed: %s", last_words(said))
        self._process = None
        self._ended()

    def close(self) -> None:
        """End a scan. It goes on at the next one."""
        if (process := self._process) is not None:
            process.kill()
