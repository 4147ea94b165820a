"""What the running daemon is made of: built in one place, handed to whoever serves it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pocketllm.daemon.generator import Generator
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.planning import plan_job
from pocketllm.daemon.runner import Runner, WorkerProcess
from pocketllm.daemon.scheduler import Scheduler
from pocketllm.daemon.sensors import Sensor, default_sensors
from pocketllm.daemon.settings import Settings
from pocketllm.mezo.errors import ModelFileError, ModelNotFound
from pocketllm.mezo.native import open_native
from pocketllm.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts, and the clock that they share."""

    settings: Settings
    folder: DataFolder
    store: Store
    scheduler: Scheduler
    generator: Generator
    now: Callable[[], datetime]
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def model_problem(self) -> str | None:
        """What keeps the configured model from being used; None when it is ready."""
        return model_problem(self.folder, self.settings)


def build_services(
    settings: Settings, *, sensors: list[Sensor] | None = None, runner: Runner | None = None
) -> Services:
    """Open the data folder and put the parts together. Raises StorageError.

    sensors and runner: others than this machine's own, for a rehearsal.
    """
    folder = DataFolder(settings.data_dir)
    folder.make()
    store = Store.open(folder.database)
    scheduler = Scheduler(
        store,
        folder,
        default_sensors() if sensors is None else sensors,
        runner or WorkerProcess(folder),
        settings,
        model_problem=lambda: model_problem(folder, settings),
        planner=lambda training, steps: plan_job(open_native(folder.models / settings.model), training, steps=steps),
    )
    generator = Generator(
        folder.models / settings.model,
        keep_alive_seconds=settings.keep_alive_seconds,
        max_waiting=settings.max_waiting,
        clock=time.monotonic,
    )
    return Services(
        settings=settings,
        folder=folder,
        store=store,
        scheduler=scheduler,
        generator=generator,
        now=lambda: datetime.now(UTC),
    )


def model_problem(folder: DataFolder, settings: Settings) -> str | None:
    """What keeps the configured model from being used; None when it is ready. Looks at the folder, not the weights."""
    try:
        open_native(folder.models / settings.model)
    except ModelNotFound:
        return f"The model {settings.model!r} is not imported. Run `pocketllm models add`."
    except ModelFileError as error:
        return str(error)
    return None
