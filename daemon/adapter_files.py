"""An adapter's files: whether they are as they were written, and what is served in place of damaged ones."""

import hashlib
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pocketllm.daemon.paths import DataFolder, adapter_id_of
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.atomic import final_name
from pocketllm.engine.formats.lora_folder import CONFIG_NAME, WEIGHTS_NAME, base_sha256
from pocketllm.engine.formats.model_folder import MANIFEST_NAME, open_model_folder, sha256_of
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME as MODEL_WEIGHTS_NAME
from pocketllm.storage.store import Store
from pocketllm.storage.tables import OPEN_STATES, Adapter, JobState

log = logging.getLogger(__name__)


def files_of(folder: Path) -> tuple[Path, Path]:
    """Description and weights: of a LoRA adapter, or of a full-parameter model."""
    names = (MANIFEST_NAME, MODEL_WEIGHTS_NAME) if (folder / MANIFEST_NAME).exists() else (CONFIG_NAME, WEIGHTS_NAME)
    return folder / names[0], folder / names[1]


def digest_of(folder: Path) -> str:
    """SHA-256 of an adapter's files, in hex. Raises OSError."""
    digest = hashlib.sha256()
    for file in files_of(folder):
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def set_aside_problem(folder: DataFolder) -> str | None:
    """What the owner is to do about adapters that were set aside; None where none were."""
    if not folder.set_aside.is_dir() or not any(folder.set_aside.iterdir()):
        return None
    return (
        f"The database does not list the adapters in {folder.set_aside}. To use them, stop the daemon, put the former "
        "database back and move them to the folder adapters. If you do not need them, delete that folder."
    )


class AdapterFiles:
    """Checks adapters. A file is read again only after it has changed."""

    def __init__(self, store: Store, folder: DataFolder) -> None:
        self._store, self._folder = store, folder
        self._checked: dict[str, tuple[object, str | None]] = {}  #: id -> state of the files, and their problem
        #: What was replaced since the daemon started, for people; None: nothing.
        self.notice: str | None = None

    def problem(self, adapter: Adapter) -> str | None:
        """Why an adapter cannot be used; None when its files, and the model's weights, are as they were."""
        folder, model = self._folder.adapter(adapter.id), self._folder.models / adapter.model / MANIFEST_NAME
        try:
            files = (*files_of(folder), model) if model.exists() else files_of(folder)
            state = [(about.st_ino, about.st_size, about.st_mtime_ns) for about in map(Path.stat, files)]
        except OSError as error:
            return f"The files of adapter {adapter.id} are missing ({error.strerror})."
        known = self._checked.get(adapter.id)
        if known is None or known[0] != state:
            known = self._checked[adapter.id] = state, self._read(adapter, folder)
        return known[1]

    def serving(self, model: str, now: datetime) -> Adapter | None:
        """The serving adapter of a model; None is the base model. Serves an ancestor in place of a damaged one."""
        serving = self._store.adapters.serving(model)
        problem = None if serving is None else self.problem(serving)
        if serving is None or problem is None:
            return serving
        served = self._store.adapters.fall_back(
            serving.id, usable=lambda adapter: self.problem(adapter) is None, problem=problem, now=now
        )
        instead = served.id if served else "The base model"
        self.notice = f"{problem} {instead} is served instead, and its job's texts count as new."
        log.error("%s", self.notice)
        return served

    def sweep(self, jobs: Mapping[str, JobState], now: datetime) -> None:
        """Delete what ended jobs have left without an adapter, and set aside what is of none. No worker may run."""
        known = {adapter.id for adapter in self._store.adapters.all()}
        known |= {adapter_id_of(job) for job, state in jobs.items() if state in OPEN_STATES}
        ours = known | set(map(adapter_id_of, jobs))
        for left in self._folder.adapters.iterdir() if self._folder.adapters.is_dir() else ():
            if left.name in known or left.name.startswith(".st"):  # where Syncthing keeps its state
                continue
            if final_name(left.name) in ours:
                shutil.rmtree(left, ignore_errors=True)
                continue
            target = self._folder.set_aside / left.name
            with suppress(OSError):  # the next sweep tries again
                target.parent.mkdir(mode=0o700, exist_ok=True)
                left.rename(f"{target}-{now:%Y%m%dT%H%M%SZ}" if target.exists() else target)

    def _read(self, adapter: Adapter, folder: Path) -> str | None:
        try:
            if adapter.sha256 not in (None, digest_of(folder)):  # older versions stored none
                return f"The files of adapter {adapter.id} are damaged: their checksum does not match."
        except OSError as error:
            return f"The files of adapter {adapter.id} cannot be read ({error.strerror})."
        with suppress(ModelFileError):  # told elsewhere
            base = open_model_folder(self._folder.models / adapter.model).manifest.weights_sha256
            if base_sha256(folder) not in (None, base):
                return f"Adapter {adapter.id} was trained on other weights of {adapter.model}. Import those again."
        return None
