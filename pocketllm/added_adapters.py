"""Adapters that were trained elsewhere: each is checked and copied, and a job of its own judges it."""

from datetime import datetime
from pathlib import Path

from pocketllm.daemon.adapter_files import digest_of, files_of
from pocketllm.daemon.folder_scans import Scan, WatchedFolder
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import Settings
from pocketllm.engine.errors import AdapterError, EngineError
from pocketllm.engine.formats.lora_folder import CONFIG_NAME, WEIGHTS_NAME, base_sha256, fitting_paths
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.planning.shapes import read_shapes
from pocketllm.scan import STILL_SECONDS
from pocketllm.storage.store import Store
from pocketllm.storage.tables import ADDED, Job, Requester


def add_adapter(
    source: Path, data: DataFolder, store: Store, settings: Settings, *, now: datetime, request_key: str | None = None
) -> tuple[Job, str]:
    """Copy an adapter of the model in the settings, and queue a job that judges it; returns it, and what is to be said.

    request_key: the job does not run at once, and there is one for the key. Raises EngineError.
    """
    from pocketllm.engine.params.lora import load_adapter  # with torch, which a scan can mostly do without

    model = open_model_folder(data.models / settings.model)
    adapter = load_adapter(source, fitting_paths(source, read_shapes(model).linears))
    if (base := base_sha256(source)) not in (None, model.manifest.weights_sha256):
        raise AdapterError(f"{source} was trained on other weights than those of {settings.model}. Import those here.")
    training = settings.training.model_copy(update={"mode": "lora", "rank": adapter.rank})
    job = Job(
        requested_by=Requester.OWNER,
        immediate=request_key is None,
        model=settings.model,
        method=ADDED,
        start_from=ADDED,
        seed=0,
        settings=training.model_dump(mode="json"),
        created_at=now,
    )
    adapter.save(data.added / job.id)  # before a worker can look for it
    said = f"rank {adapter.rank}, of {len(adapter.a)} linear maps"
    if base is None:
        said += f"; it does not say on which weights it was trained, only that their shapes are those of {job.model}"
    job = store.jobs.add(job, request_key=request_key)
    store.jobs.add_event(job.id, kind=ADDED, message=said, now=now)
    return job, said


def take_newest(
    watched: WatchedFolder, last: Scan, data: DataFolder, store: Store, settings: Settings, *, now: datetime
) -> Scan:
    """Add the newest adapter in a watched folder that fits, once. One that is still being written is left for later."""
    root, done = Path(watched.path), last.model_copy(update={"scanned_at": now, "problem": None})
    try:
        whole = [one for one in root.iterdir() if all((one / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME))]
        for one in sorted(whole, key=lambda one: (one / WEIGHTS_NAME).stat().st_mtime, reverse=True):
            if any(0 <= now.timestamp() - file.stat().st_ctime < STILL_SECONDS for file in files_of(one)):
                continue
            try:
                key = f"adapter {digest_of(one)}"
                if not store.jobs.is_known(key):
                    add_adapter(one, data, store, settings, now=now, request_key=key)
                break
            except EngineError as error:  # of another model, perhaps
                done.problem = done.problem or str(error)
    except OSError as error:
        done.problem = f"It cannot be read: {error}."
    return done
