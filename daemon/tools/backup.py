"""Backups: a tar file with the database, the adapters and the owner's token, and the SHA-256 of each.

The database is copied by SQLite's own backup, so the daemon may run meanwhile. Adapters never change once the database
names them. Models are left out, since they can be imported again.
"""

import io
import json
import mmap
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from pocketllm.daemon.adapter_files import digest_of, set_aside_problem
from pocketllm.daemon.errors import DaemonError
from pocketllm.daemon.leftovers import FORMER_PREFIX, RESTORE_PREFIX
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import list_model_folders, open_model_folder, sha256_of

FORMAT = 1
_MANIFEST, _DATABASE, _TOKENS, _ADAPTERS = "backup.json", "pocketllm.db", "tokens.json", "adapters"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a backup."""

    created_at: str
    texts: int
    jobs: int
    adapters: int
    models: list[str]  #: that were imported; they are not in it
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    problem: str | None  #: None: it is as it was written


def write_backup(folder: DataFolder, file: BinaryIO, *, now: datetime) -> Contents:
    """Write a backup of a data folder. Raises DaemonError for a damaged database."""
    with (
        tempfile.NamedTemporaryFile(dir=folder.root, delete=False) as snapshot,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        texts, jobs, adapters = _snapshot(folder.database, Path(snapshot.name))
        members = {_DATABASE: Path(f"/proc/self/fd/{snapshot.fileno()}"), _TOKENS: folder.tokens}
        members |= {
            f"{_ADAPTERS}/{path.relative_to(folder.adapters)}": path
            for identity in adapters
            for path in sorted(folder.adapter(identity).rglob("*"))
            if path.is_file()
        }
        sums = {name: _added(tar, name, path) for name, path in members.items() if path.is_file()}
        contents = Contents(
            created_at=now.isoformat(),
            texts=texts,
            jobs=jobs,
            adapters=len(adapters),
            models=[model.manifest.name for model in list_model_folders(folder.models)],
            bytes=sum(path.stat().st_size for path in members.values() if path.is_file()),
        )
        text = json.dumps({"format": FORMAT, "sha256": sums, "contents": asdict(contents)}).encode()
        about = tarfile.TarInfo(_MANIFEST)
        about.size, about.mode = len(text), 0o600
        tar.addfile(about, io.BytesIO(text))
    return contents


def unpack(tar: tarfile.TarFile, into: Path) -> None:
    """Extract the ordinary files whose names stay below `into`. tarfile's own filter came with Python 3.11.4."""
    tar.extraction_filter = getattr(tarfile, "data_filter", None)
    inside = [one for one in tar if one.type == tarfile.REGTYPE and ".." not in Path(one.name).parts]
    tar.extractall(into, [one for one in inside if not Path(one.name).is_absolute()])


def read_backup(file: Path, into: Path) -> Contents:
    """Unpack a backup into an empty folder. Raises DaemonError unless all of it is as it was written."""
    try:
        with (
            file.open("rb") as opened,
            # Of a file that claims more than it has, tarfile would ask `read` for as much memory.
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
            tarfile.open(fileobj=cast(BinaryIO, data), mode="r:") as tar,
        ):
            unpack(tar, into)
        manifest = json.loads((into / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DaemonError(f"{file} was written by a newer PocketLLM (format {manifest['format']}).")
        damaged = [name for name, digest in manifest["sha256"].items() if sha256_of(into / name) != digest]
        contents = Contents(**manifest["contents"])
    except PermissionError:
        raise
    except (tarfile.TarError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DaemonError(f"{file} is not a backup, or it is truncated: {error}") from error
    if damaged:
        raise DaemonError(f"{file} is damaged: the checksum of {damaged[0]} does not match.")
    return contents


def restore(file: Path, folder: DataFolder, *, now: datetime) -> tuple[Contents, Path | None]:
    """Put a backup in the place of what is in a data folder. Returns it, and where the former contents are now.

    Raises DaemonError, before any change, if the backup is damaged or a daemon runs on the folder.
    """
    folder.make()
    with locked(folder.daemon_lock) as acquired, locked(folder.scan_lock) as alone:
        if not (acquired and alone):
            what = "A scan of watched folders" if acquired else "A daemon"
            raise DaemonError(f"{what} is running on {folder.root}. Stop it first.")
        with tempfile.TemporaryDirectory(dir=folder.root, prefix=RESTORE_PREFIX) as scratch:
            contents = read_backup(file, Path(scratch))
            former = folder.root / f"{FORMER_PREFIX}{now:%Y%m%dT%H%M%SZ}"
            database = [folder.database.with_name(folder.database.name + end) for end in ("", "-wal", "-shm")]
            replaced = [*database, folder.tokens, folder.adapters, folder.starts, folder.runs, folder.added]
            there = [path for path in replaced if path.exists()]
            if there:
                former.mkdir(mode=0o700)
            for path in there:
                path.rename(former / path.name)
            for name in (_TOKENS, _ADAPTERS, _DATABASE):  # the database last: without it, the folder is empty
                if (Path(scratch) / name).exists():
                    shutil.move(Path(scratch) / name, folder.root / name)
    return contents, former if there else None


def verify(folder: DataFolder) -> Iterator[Check]:
    """Look at the database, at each adapter, and at the weights of each model."""
    problem, rows = _looked_at(folder.database)
    yield Check(name="database", problem=problem)
    for identity, digest in rows:
        try:
            sound = digest is None or digest_of(folder.adapter(str(identity))) == digest
            problem = None if sound else "its checksum does not match"
        except (OSError, ValueError) as error:  # a damaged id may be no file's name
            problem = str(error)
        yield Check(name=f"adapter {identity}", problem=problem)
    if problem := set_aside_problem(folder):
        yield Check(name="set aside", problem=problem)
    for model in sorted(folder.models.iterdir()) if folder.models.is_dir() else ():
        if not model.name.startswith("."):
            try:
                open_model_folder(model, verify=True)
                yield Check(name=f"model {model.name}", problem=None)
            except (ModelFileError, OSError) as error:
                yield Check(name=f"model {model.name}", problem=str(error))


def _looked_at(path: Path) -> tuple[str | None, list[tuple[str, str | None]]]:
    """What is wrong with a database, and the adapters that it names with their digests, as far as it can be read."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            orphan = database.execute("PRAGMA foreign_key_check").fetchone()
            rows = database.execute("SELECT id, sha256 FROM adapter ORDER BY created_at").fetchall()
    except sqlite3.DatabaseError as error:
        return str(error), []
    if found == "ok" and orphan is not None:
        found = f"a row of {orphan[0]} refers to a missing row"
    return None if found == "ok" else str(found), rows


def _snapshot(database: Path, target: Path) -> tuple[int, int, list[str]]:
    """Copy a database while it is in use; returns the number of texts and jobs in the copy, and the adapters' ids.

    The target loses its name first.
    """
    try:
        with closing(sqlite3.connect(target)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")  # a journal would have a name
            target.unlink()
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, isolation_level=None)) as source:
                source.execute("BEGIN")  # what is counted is what is copied
                if (found := source.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    raise DaemonError(f"The database {database} is damaged: {found}")
                source.backup(copy)
                (texts,) = source.execute("SELECT count(*) FROM text").fetchone()
                (jobs,) = source.execute("SELECT count(*) FROM job").fetchone()
                return texts, jobs, [identity for (identity,) in source.execute("SELECT id FROM adapter")]
    except sqlite3.DatabaseError as error:
        raise DaemonError(f"The database {database} cannot be read: {error}.") from error


def _added(tar: tarfile.TarFile, name: str, path: Path) -> str:
    """Add a file, readable by its owner alone; returns its SHA-256."""
    with path.open("rb") as content:
        about = tar.gettarinfo(arcname=name, fileobj=content)
        about.mode, about.uid, about.gid, about.uname, about.gname = 0o600, 0, 0, "", ""
        tar.addfile(about, content)
    return sha256_of(path)
