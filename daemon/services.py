"""What the running daemon is made of: built in one place, handed to whoever serves it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import getpid

from pocketllm.daemon.conditions.discovery import Places, SensorSet, discover_sensors
from pocketllm.daemon.conditions.fresh_look import FreshLook
from pocketllm.daemon.conditions.wake_lock import INHIBIT, RELEASE, TAKE, WakeLock
from pocketllm.daemon.folder_scans import FolderScans
from pocketllm.daemon.generation.generator import Generator
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.process_memory import anonymous_bytes
from pocketllm.daemon.scheduling.planning import plan_job
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.scheduling.worker_process import WorkerProcess
from pocketllm.daemon.settings import Settings, write_model
from pocketllm.daemon.uptime import uptime
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories.quotas import Quota
from pocketllm.storage.store import Store

#: Private memory of the daemon at most, about.
DAEMON_BYTES = 100_000_000


class Waker:
    """Called, it calls its listener; while nobody listens, nothing happens."""

    def __init__(self) -> None:
        self.listener: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Call it. From any thread."""
        if self.listener is not None:
            self.listener()


@dataclass(kw_only=True)
class Services:
    """The parts, and the clock that they share."""

    settings: Settings
    folder: DataFolder
    store: Store
    scheduler: Scheduler
    generator: Generator
    fresh_look: FreshLook
    folder_scans: FolderScans
    now: Callable[[], datetime]
    wake: Waker = field(default_factory=Waker)  #: has the scheduler look at once, not when its time comes
    announce: Waker = field(default_factory=Waker)  #: tells programs of the same owner the settings
    ending: threading.Event = field(default_factory=threading.Event)  #: set when the daemon is to end
    uptime: Callable[[], float] = uptime  #: seconds, of a clock that nobody sets
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_uptime: float = 0.0

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the daemon started."""
        return self.uptime() - self.started_uptime

    def model_problem(self) -> str | None:
        """What keeps the configured model from being used; None when it is ready."""
        return model_problem(self.folder, self.settings)

    def use_model(self, model: str) -> None:
        """Switch to another model, and write it into config.toml. Raises NotFound, BadSettings or StorageError."""
        settings = self.settings.model_copy(update={"model": model})
        if problem := model_problem(self.folder, settings):
            raise NotFound(f"{problem} GET /models lists all models.")
        write_model(settings)
        self.scheduler.use(settings, self.now())
        self.settings, self.generator.model = settings, self.folder.models / model
        self.announce()
        self.wake()


def build_services(
    settings: Settings,
    *,
    sensor_set: SensorSet | None = None,
    runner: WorkerProcess | None = None,
    uptime: Callable[[], float] = uptime,
) -> Services:
    """Open the data folder and put the parts together. Raises StorageError.

    sensor_set, runner and uptime: others than this machine's own, for a rehearsal.
    """
    folder = DataFolder(settings.data_dir)
    folder.make()
    quota = Quota(texts_per_day=settings.app_texts_per_day, bytes=settings.app_bytes)
    store = Store.open(folder.database, quota)
    places = Places(supplies=settings.power_supplies)
    sensor_set = sensor_set or discover_sensors(folder.root, folder.idle_stamp, places)
    wake_lock = WakeLock(*map(places.command, (TAKE, RELEASE, INHIBIT)))
    generator = Generator(folder, settings, memory_bytes=settings.total_memory_bytes - DAEMON_BYTES)
    wake = Waker()
    folder_scans = FolderScans(folder, uptime, wake)
    scheduler = Scheduler(
        store,
        folder,
        sensor_set,
        runner or WorkerProcess(folder),
        settings,
        model_problem=lambda: services.model_problem(),
        planner=lambda training, ahead: plan_job(open_model_folder(generator.model), training, ahead),
        wake_lock=wake_lock,
        scan=folder_scans.begin,
        generator_bytes=lambda: (used := generator.held_bytes) and used + (anonymous_bytes(getpid()) or DAEMON_BYTES),
        uptime=uptime,
    )
    generator.before_start = lambda: scheduler.tick(now())
    services = Services(
        settings=settings,
        folder=folder,
        store=store,
        scheduler=scheduler,
        generator=generator,
        folder_scans=folder_scans,
        fresh_look=FreshLook(wake_lock, sensor_set.pace, uptime),
        now=now,
        wake=wake,
        uptime=uptime,
        started_uptime=uptime(),
    )
    return services


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def model_problem(folder: DataFolder, settings: Settings) -> str | None:
    """What keeps the configured model from being used; None when it is ready. Looks at the folder, not the weights."""
    if not (path := folder.models / settings.model).exists():
        return f"The model {settings.model!r} is not imported. Run `pocketllm models add`."
    try:
        open_model_folder(path)
    except ModelFileError as error:
        return str(error)
    return None
