"""The log of a process: without the owner's words, and without end repetitions."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pocketllm.daemon.errors import DaemonError
from pocketllm.engine.errors import EngineError
from pocketllm.storage.errors import StorageError

#: Their messages are about the machine, or ours. Those of others may quote the text that was worked on.
_QUOTING_NOTHING = (OSError, MemoryError, ImportError, RuntimeError, DaemonError, EngineError, StorageError)
#: The most warnings of a kind in each window of seconds.
_MOST, _WINDOW_SECONDS = 10, 60.0
#: More kinds than the daemon has: whoever brings about more does not fill the memory with their counts.
_KINDS = 1000


def configure(level: str) -> None:
    """Let this process log to its standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrivateFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(Sparing())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def describe_uncaught() -> None:
    """Let an exception that ends this process be described as in the log."""

    def hook(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        try:
            sys.stderr.write(described(error))
        except OSError:  # no room for the log: whatever it was, it is tried again
            os._exit(os.EX_TEMPFAIL)

    sys.excepthook = hook


def described(error: BaseException) -> str:
    """An exception and those that led to it, the last one last: for each the places it came through, and a summary."""
    parts: list[str] = []
    seen: set[int] = set()
    raised: BaseException | None = error
    while raised is not None and id(raised) not in seen:
        seen.add(id(raised))
        parts = [*traceback.format_tb(raised.__traceback__), f"{summary(raised)}\n", *parts]
        raised = raised.__cause__ or raised.__context__
    return "".join(parts)


def summary(error: BaseException) -> str:
    """An exception in one line: its type, where it was raised, and its message where that cannot quote the owner."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    message = str(error).partition("\n")[0] if isinstance(error, _QUOTING_NOTHING) else ""
    return f"{type(error).__name__}{where}{': ' if message else ''}{message}"


class PrivateFormatter(logging.Formatter):
    """A formatter that describes exceptions without their messages."""

    def formatException(self, ei: object) -> str:
        """The exception, described."""
        assert isinstance(ei, tuple)
        return described(ei[1]).rstrip()


class Sparing(logging.Filter):
    """Lets through a few warnings of each kind a minute, so that whoever provokes them does not fill the disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: dict[tuple[str, int, str], tuple[float, int]] = {}  #: since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it; the first one after some were left out says so."""
        if record.levelno < logging.WARNING:
            return True
        # asyncio's messages go on with the details of a socket.
        kind, now = (record.name, record.levelno, str(record.msg).partition("\n")[0][:80]), self._clock()
        since, count = self._counts.pop(kind, (now, 0))
        if now - since >= _WINDOW_SECONDS:
            if count > _MOST:
                record.msg = f"{record.msg} (and {count - _MOST:,} more of this kind)"
            since, count = now, 0
        self._counts[kind] = since, count + 1
        if len(self._counts) > _KINDS:
            del self._counts[next(iter(self._counts))]
        return count < _MOST
