"""Paths in the data folder, which is made private when it is first used."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pocketllm.daemon.errors import BadSettings, DaemonError

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


def adapter_id_of(job_id: str) -> str:
    """The id of the adapter that a job makes."""
    return job_id.replace("job-", "adapter-")


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one that only the owner can read. What is cut short changes nothing."""
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    scratch.rename(path)


@dataclass(frozen=True)
class DataFolder:
    """The data folder and the paths in it."""

    root: Path

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.root / "pocketllm.db"

    @property
    def tokens(self) -> Path:
        """Access tokens, mode 0600."""
        return self.root / "tokens.json"

    @property
    def sessions(self) -> Path:
        """Digests of the sessions of browsers, mode 0600."""
        return self.root / "sessions.json"

    @property
    def announcement(self) -> Path:
        """The running daemon's address; absent while none runs."""
        return self.root / "daemon.json"

    @property
    def socket(self) -> Path:
        """The running daemon's socket, for programs of the same owner; mode 0600."""
        return self.root / "pocketllm.sock"

    @property
    def llama_socket(self) -> Path:
        """The socket of the generator's llama.cpp server."""
        return self.root / "llama.sock"

    @property
    def daemon_lock(self) -> Path:
        """Held by the one daemon."""
        return self.root / "daemon.lock"

    @property
    def worker_lock(self) -> Path:
        """Held by the one worker."""
        return self.root / "worker.lock"

    @property
    def worker_log(self) -> Path:
        """The output of the last worker."""
        return self.root / "worker.log"

    @property
    def folders(self) -> Path:
        """The list of watched folders; absent while there is none."""
        return self.root / "folders.json"

    @property
    def scans(self) -> Path:
        """What the last scan of each of them found."""
        return self.root / "scans.json"

    @property
    def scan_lock(self) -> Path:
        """Held by who scans the watched folders."""
        return self.root / "scan.lock"

    @property
    def idle_stamp(self) -> Path:
        """Touched by Android's job scheduler while it considers the phone idle."""
        return self.root / "idle.stamp"

    @property
    def models(self) -> Path:
        """One folder a model."""
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        """One PEFT folder an adapter."""
        return self.root / "adapters"

    def adapter(self, adapter_id: str) -> Path:
        """The folder of one adapter."""
        return self.adapters / adapter_id

    @property
    def set_aside(self) -> Path:
        """Adapters that the database does not know."""
        return self.root / "set-aside"

    @property
    def starts(self) -> Path:
        """One folder an open job."""
        return self.root / "starts"

    def start(self, job_id: str) -> Path:
        """An open job's initial adapter; deleted when the job has ended."""
        return self.starts / job_id

    @property
    def runs(self) -> Path:
        """One folder an open job with checkpoints."""
        return self.root / "runs"

    def run(self, job_id: str) -> Path:
        """An open job's checkpoints; deleted when the job has ended."""
        return self.runs / job_id

    @property
    def backups(self) -> Path:
        """Where backups were written, each path ended by a zero byte; locked while one is."""
        return self.root / "backups"

    @property
    def reserve(self) -> Path:
        """Room for deleting texts when the disk is full."""
        return self.root / "reserve"

    @property
    def exports(self) -> Path:
        """One folder for each file that is being exported; deleted when it is sent."""
        return self.root / "exports"

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
