"""The real daemon with a tiny model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon.real_daemon import Daemon, running
from tests.support.models.tiny_models import tiny_model_folder

#: So small a job that its steps take milliseconds.
SMALL_JOB = {"TRAINING__METHOD": "mezo", "TRAINING__BATCH": "2", "TRAINING__BLOCK_TOKENS": "16", "TRAINING__RANK": "2"}


@contextmanager
def tiny_daemon(folder: Path, **settings: str) -> Iterator[Daemon]:
    """One on a data folder of its own, which starts no job by itself."""
    tiny_model_folder(folder / "models")
    with running(folder, MODEL="tiny", TRAINING__NEW_WORDS="100000", **settings) as daemon:
        yield daemon
