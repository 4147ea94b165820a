"""Paths in the data folder, which is made private when it is first used."""

import errno
import os
import stat
from pathlib import Path

from pocketllm.daemon.errors import BadSettings, DaemonError
from pocketllm.engine.formats.atomic import whole_file

#: The permissions of all but the owner.
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/pocketllm, by default ~/.local/share/pocketllm."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pocketllm"


def config_file() -> Path:
    """$POCKETLLM_CONFIG, else $XDG_CONFIG_HOME/pocketllm/config.toml, by default under ~/.config."""
    if named := os.environ.get("POCKETLLM_CONFIG"):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pocketllm" / "config.toml"


def ignored_config(data_dir: Path) -> str | None:
    """What to tell an owner who has put settings into the data folder, where none are read."""
    file = data_dir / "config.toml"
    if not is_there(file) or file.resolve() == config_file().resolve():
        return None
    return f"{file} is not read: settings come from {config_file()}, or from the file that POCKETLLM_CONFIG names"


def adapter_id_of(job_id: str) -> str:
    """The id of the adapter that a job makes."""
    return job_id.replace("job-", "adapter-")


def is_there(path: Path) -> bool:
    """Whether there is something. Raises PermissionError where one may not look: Path.exists says no from 3.14 on."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return False
    return True


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one that only the owner can read. What is cut short changes nothing."""
    with whole_file(path) as file:
        file.write(content)


class DataFolder:
    """The data folder and the paths in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "pocketllm.db"  #: of SQLite
        self.tokens = root / "tokens.json"  #: access tokens, mode 0600
        self.sessions = root / "sessions.json"  #: digests of the sessions of browsers, mode 0600
        self.announcement = root / "daemon.json"  #: the running daemon's address; absent while none runs
        self.socket = root / "pocketllm.sock"  #: the running daemon's, for programs of the same owner; mode 0600
        self.llama_socket = root / "llama.sock"  #: of the generator's llama.cpp server
        self.daemon_lock = root / "daemon.lock"  #: held by the one daemon
        self.worker_lock = root / "worker.lock"  #: held by the one worker
        self.worker_log = root / "worker.log"  #: the output of the last worker
        self.folders = root / "folders.json"  #: the list of watched folders; absent while there is none
        self.folders_lock = root / "folders.lock"  #: held by who changes the list
        self.scans = root / "scans.json"  #: what the last scan of each of them found
        self.scan_lock = root / "scan.lock"  #: held by who scans the watched folders
        self.idle_stamp = root / "idle.stamp"  #: touched by Android's job scheduler while the phone is idle
        self.models = root / "models"  #: one folder a model
        self.adapters = root / "adapters"  #: one PEFT folder an adapter
        self.set_aside = root / "set-aside"  #: adapters that the database does not know
        self.starts = root / "starts"  #: one folder an open job
        self.added = root / "added"  #: one folder an open job: an adapter that was trained elsewhere, to be judged
        self.runs = root / "runs"  #: one folder an open job with checkpoints
        self.backups = root / "backups"  #: where backups were written, each ended by a zero byte; locked while one is
        self.reserve = root / "reserve"  #: room for deleting texts when the disk is full
        self.exports = root / "exports"  #: one folder for each file that is being exported; deleted when it is sent

    def adapter(self, adapter_id: str) -> Path:
        """The folder of one adapter."""
        return self.adapters / adapter_id

    def start(self, job_id: str) -> Path:
        """An open job's initial adapter; deleted when the job has ended."""
        return self.starts / job_id

    def run(self, job_id: str) -> Path:
        """An open job's checkpoints; deleted when the job has ended."""
        return self.runs / job_id

    def make(self) -> None:
        """Create the folder, and make all that is in it the owner's alone, whatever the umask was.

        Raises BadSettings when it is another user's, or has a symbolic link in it, through which a write would land
        elsewhere, and DaemonError when it cannot be used now. Models may be links.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.root.stat().st_uid != os.geteuid():
                raise BadSettings(
                    f"The data folder {self.root} belongs to another user. Choose another with --data-dir."
                )
            self.root.chmod(0o700)
            for folder, folders, files in os.walk(self.root):
                within = Path(folder)
                if within == self.root and "models" in folders:
                    folders.remove("models")
                for name in (*folders, *files):
                    _make_private(within / name)
        except OSError as error:
            raise DaemonError(f"The data folder {self.root} cannot be used: {error.strerror}.") from error


def _make_private(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:  # deleted meanwhile by the daemon that runs on the folder
        return
    if stat.S_ISLNK(mode):
        raise BadSettings(f"{path} is a symbolic link; writes to it would change files elsewhere. Remove it.")
    if mode & _OTHERS:
        path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
