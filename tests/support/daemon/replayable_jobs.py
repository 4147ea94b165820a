"""Jobs that are made by MeZO's own steps on the tiny model, without a worker: what there is to replay."""

from dataclasses import asdict

import torch

from pocketllm.daemon.adapter_files import digest_of
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.data.batches import shuffled
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.params.full import FullWeights, save_full
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.method import MeZO, MeZOPlan
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter as AdapterRow
from pocketllm.storage.tables import Job, Outcome, Step
from tests.support.daemon.workers import NOW, new_job
from tests.support.models.learning import some_adapter, some_blocks

STEPS = 6


def training(**changes: object) -> TrainingSettings:
    """Small, and with steps that show."""
    small = {"steps": STEPS, "batch": 2, "probes": 1, "step_size": 1e-2, "epsilon": 1e-3}
    return TrainingSettings.model_validate(small | changes)


def learn(
    folder: DataFolder, store: Store, settings: TrainingSettings, *, seed: int = 3, parent: str | None = None
) -> Job:
    """A job that has succeeded: its rows are in the store, and its adapter is in the data folder."""
    options = settings.model_dump(mode="json")
    job = store.jobs.add(new_job(mode=settings.mode, seed=seed, total_steps=STEPS, settings=options))
    store.jobs.start(job.id, now=NOW)
    job = store.jobs.update(job.id, parent=parent)
    full = settings.mode == "full"
    model_folder = open_model_folder(folder.adapter(parent) if parent and full else folder.models / "tiny")
    model = LanguageModel(model_folder)
    theta: Adapter | FullWeights
    if full:
        theta = model.full()
    elif parent:
        theta = load_adapter(folder.adapter(parent))
    else:
        theta = some_adapter(model)
        for b in theta.b.values():
            b.zero_()
    model.set_parameters(theta)

    plan = MeZOPlan(
        seed=seed,
        epsilon=settings.epsilon,
        step_size=settings.step_size,
        probes=settings.probes or 1,
        noise=settings.noise,
    )
    mezo = MeZO(lambda points, batch: model.losses_at(points, batch, 4), theta, plan, to_start=lambda: None)
    batch = shuffled((some_blocks(),), size=settings.batch or 2, seed=seed)
    with torch.inference_mode():
        for step in range(1, STEPS + 1):
            record = mezo.step(step, batch(step), remaining=1 - (step - 1) / STEPS, share=1.0)
            store.step_log.append(Step(job_id=job.id, seconds=1.0, **asdict(record)))
    identity = job.id.replace("job-", "adapter-")
    if isinstance(theta, FullWeights):
        save_full(model_folder, theta, folder.adapter(identity), created_at=NOW)
    else:
        theta.metadata = {"job": job.id, "base_weights_sha256": model_folder.manifest.weights_sha256}
        theta.save(folder.adapter(identity))
    row = AdapterRow(
        id=identity,
        sha256=digest_of(folder.adapter(identity)),
        job_id=job.id,
        model="tiny",
        mode=settings.mode,
        parent=parent,
        outcome=Outcome.LEARNED,
        created_at=NOW,
    )
    store.jobs.succeed(job.id, adapter=row, publish=True, now=NOW)
    return store.jobs.get(job.id)
