"""A scan of the watched folders: what is new or changed comes in, what is gone for certain is forgotten.

A scan takes a stat a file, and reads only those that have changed. It may be killed at any time, and goes on then.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from pathspec import GitIgnoreSpec

from pocketllm.daemon.documents import validated
from pocketllm.daemon.errors import InvalidValue
from pocketllm.daemon.folder_scans import Scan, WatchedFolder, scans, watched_folders, write_scans
from pocketllm.daemon.paths import DataFolder
from pocketllm.readers.base import Example, Found, Kind, Ownerless, ReadOptions, Skipped, name_key
from pocketllm.readers.notes import paragraphs
from pocketllm.readers.reading import read
from pocketllm.readers.walk import Entry, below
from pocketllm.storage.repositories.folders import FileRead, FolderStore, Read
from pocketllm.storage.repositories.texts import NewText, text_id

IGNORE_NAME = ".pocketllmignore"
#: Copies and other things that programs leave.
IGNORED = ("*.sync-conflict-*", "*conflicted copy*", "logseq/bak/", "@eaDir/", "~$*")
#: A file that changed less than this ago may still be written; one that is missing for the grace is forgotten.
STILL_SECONDS, GRACE = 5.0, timedelta(hours=1)
#: More files than these, and more than this part of all, are not forgotten at once unless the owner says so.
FEW, MANY, ONE_IN = 1, 50, 5
#: A paragraph with fewer words, as a heading is, belongs to the next one.
SHORT_WORDS = 8
#: Texts, and ends of files, of a transaction.
TOGETHER = 1000


def scan_all(
    folder: DataFolder,
    store: FolderStore,
    *,
    now: Callable[[], datetime],
    max_bytes: int,
    forget: bool = False,
    on_file: Callable[[str], None] = lambda name: None,
    take_adapter: Callable[[WatchedFolder, Scan], Scan] = lambda watched, last: last,
) -> list[Scan]:
    """Scan each folder of the list, and keep what was found. Raises BadSettings.

    max_bytes: of a text. forget: forget also where many files are gone at once. on_file: called with each file that is
    read. take_adapter: scans a folder of adapters.
    """
    watched = watched_folders(folder)
    store.keep_only([one.path for one in watched])
    found = scans(folder, watched)
    for number, one in enumerate(watched):
        if one.adapters:
            found[number] = take_adapter(one, found[number])
            continue
        options = ReadOptions(me=frozenset(map(name_key, one.me)), max_bytes=max_bytes, as_written=one.as_written)
        found[number] = scan(one, found[number], folder, store, options, now=now, forget=forget, on_file=on_file)
    write_scans(folder, found)
    return found


def scan(
    watched: WatchedFolder,
    last: Scan,
    folder: DataFolder,
    store: FolderStore,
    options: ReadOptions,
    *,
    now: Callable[[], datetime],
    forget: bool,
    on_file: Callable[[str], None],
) -> Scan:
    """Scan one folder, as long as it is on the list. See `scan_all`."""
    root, (versions, missing), began = Path(watched.path), store.files(watched.path), now()
    known = len(versions)
    done = last.model_copy(update={"scanned_at": began, "unreadable": 0, "vanished": 0, "problem": None})
    try:
        done.device, is_empty = root.stat().st_dev, not any(root.iterdir())
        ignored = ignored_in(root)
    except OSError as error:
        done.problem = f"It cannot be opened: {error.strerror}. Nothing was forgotten. {advice(error)}".strip()
        return done
    back = list[str]()
    way = watched.model_dump_json()  # a folder that is added again in another way is read again

    def changed() -> Iterator[Read]:
        for entry in below(root, None, ignored):
            digest = blake2b(f"{entry.version} {way}".encode(), digest_size=8).digest()
            version = int.from_bytes(digest, "big", signed=True) & ~1 | (entry.device != done.device)
            before = versions.pop(entry.name, None)  # what is left of them in the end was not there
            if entry.name in missing:
                back.append(f"{watched.path}/{entry.name}")
            if entry.reason or "\ufffd" in entry.name:  # which two names that are not UTF-8 may share
                done.unreadable += not entry.reason or entry.reason.startswith("cannot")
            elif before != version and is_still(entry, now()):
                on_file(entry.name)
                done.nobodys = [name for name in done.nobodys if name != entry.name]
                file = FileRead(f"{watched.path}/{entry.name}", version, set())
                for one in texts_of(*read(entry, options), watched.name, options.max_bytes):
                    if isinstance(one, NewText):
                        file.ids.add(text_id(one))
                        yield file, one
                    elif isinstance(one, Ownerless) and entry.name not in done.nobodys:
                        done.nobodys.append(entry.name)
                    elif isinstance(one, Skipped) and one.reason.startswith("cannot"):
                        done.unreadable += 1
                        break
                else:
                    yield file, None

    rows = changed()
    while some := list(islice(rows, TOGETHER)):
        if not store.put(some, now(), lambda: watched in watched_folders(folder)):
            return last
    store.drop_replaced(now())
    store.mark(back, None)
    if is_empty and known:
        done.problem = "It is empty. Nothing was forgotten."
    elif last.device in (0, done.device):
        gone = [name for name in versions if is_gone(root / name)]
        store.mark([f"{watched.path}/{name}" for name in gone if name not in missing], began)
        due = [name for name in gone if name in missing and (forget or began - missing[name] >= GRACE)]
        if not forget:
            many = len(due) > max(FEW, min(MANY, known // ONE_IN))
            kept = {name for name in due if many or (versions[name] & 1 and is_unmounted(root / name, done.device))}
            due, done.vanished = [name for name in due if name not in kept], len(kept)
        if due:
            store.forget([f"{watched.path}/{name}" for name in due], began)
    else:
        done.problem = "It is on a different disk than before. Nothing was forgotten in this scan."
    done.texts = store.texts(watched.path)
    return done


def ignored_in(root: Path) -> Callable[[str], bool]:
    """Whether the file or folder (with a slash at its end) of a name is not to be read, by IGNORED and IGNORE_NAME.

    Raises OSError.
    """
    own: Sequence[str] = ()
    with suppress(FileNotFoundError):
        own = (root / IGNORE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    return GitIgnoreSpec.from_lines([*IGNORED, *own]).match_file


def is_still(entry: Entry, now: datetime) -> bool:
    """Whether nobody writes it. A time in the future is no reason to wait."""
    return not 0 <= now.timestamp() - entry.changed_at < STILL_SECONDS


def is_gone(path: Path) -> bool:
    """Whether there is no such file; one that is hidden or excluded now is not gone, nor one that cannot be seen."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def is_unmounted(path: Path, device: int) -> bool:
    """Whether a missing file, which was on another disk than this one, had its place on it unmounted."""
    return next(folder.stat().st_dev for folder in path.parents if folder.exists()) == device


def texts_of(kind: Kind | None, found: Iterable[Found], source: str, max_bytes: int) -> Iterator[NewText | Found]:
    """Yield the texts of a file, and what is none. A note's are its paragraphs, so that an edit changes one of them.

    What POST /texts would refuse is left out.
    """
    for one in found:
        if not isinstance(one, Example):
            yield one
        elif kind is Kind.NOTES:
            yield from (NewText(text=part, source=source) for part in pieces(one.item["text"]))
        else:
            with suppress(InvalidValue):
                yield validated({**one.item, "source": source}, "", max_bytes).new()


def pieces(text: str) -> list[str]:
    """Return a note's paragraphs, each with the short ones before it."""
    found, before = list[str](), ""
    for paragraph in paragraphs(text):
        before = f"{before}\n\n{paragraph}" if before else paragraph
        if len(paragraph.split()) >= SHORT_WORDS:
            found.append(before)
            before = ""
    return [*found, before] if before else found


def advice(error: OSError) -> str:
    """What lets the daemon read a folder that it may not."""
    if not isinstance(error, PermissionError):
        return ""
    if "TERMUX_VERSION" in os.environ:
        return "Run termux-setup-storage and grant the permission."
    return "Under systemd, the unit may hide it: add ProtectHome=tmpfs and BindReadOnlyPaths= to the unit."
