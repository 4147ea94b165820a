"""The daemon's process: the one place that builds everything, serves it, and takes it down in order."""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import FastAPI

from pocketllm import __version__
from pocketllm.api.app import create_app
from pocketllm.api.security.tokens import load_or_create_token
from pocketllm.daemon.conditions.readings import unanswered
from pocketllm.daemon.errors import AlreadyRunning, BadSettings, PortInUse
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.services import Services, build_services
from pocketllm.daemon.settings import Settings, load_settings
from pocketllm.daemon.systemd_notify import ServiceManager
from pocketllm.storage.database import explained

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_TICK = "tick"
#: How long open requests may take to end when the daemon stops.
SHUTDOWN_SECONDS = 5
#: How long a thread may keep Python's lock while another waits for it: the usual 5 ms are as long as a whole answer.
SWITCH_SECONDS = 0.001


def serve(overrides: dict[str, Any]) -> int:
    """Run the daemon until SIGTERM or Ctrl-C; returns the exit code.

    overrides: settings that stand above environment and config.toml. Raises DaemonError or StorageError when it
    cannot start: bad settings, another daemon on the data folder, the port in use, an unusable database.
    """
    settings = load_settings(overrides)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Every two seconds 'job executed' is no news, nor is what alembic has plugged in.
    for chatty in ("apscheduler", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.umask(0o077)
    folder = DataFolder(settings.data_dir)
    _make(folder)
    with _only_daemon(folder) as acquired:
        if not acquired:
            raise AlreadyRunning(
                f"Another daemon runs on {folder.root}. Stop it first, or choose another folder with --data-dir."
            )
        with _listening(settings.port) as listener, _at(folder.socket) as beside:
            _serve(settings, folder, [listener, *beside])
    return os.EX_OK


def _serve(settings: Settings, folder: DataFolder, listeners: list[socket.socket]) -> None:
    services = build_services(settings)
    try:
        with explained(folder.database):
            services.scheduler.recover(services.now())
        app = create_app(services, token=load_or_create_token(folder.tokens), lifespan=_lifespan(services, listeners))
        # What is there by now stays. Under load the collector would go through all of it every few seconds, and nothing
        # is answered meanwhile: 150 ms on a fast machine.
        gc.freeze()
        sys.setswitchinterval(SWITCH_SECONDS)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            server_header=False,
            date_header=False,
        )
        asyncio.run(_Server(config, services.ending).serve(sockets=listeners))
    finally:
        folder.announcement.unlink(missing_ok=True)
        services.scheduler.close(services.now())
        services.store.close()


class _Server(uvicorn.Server):
    """Ends in order on SIGTERM and Ctrl-C; on the second Ctrl-C without waiting for open requests.

    uvicorn's own raises the signal again when it has shut down: that would end the process before the worker is
    gone, and with a code that a service manager takes for a crash. And it wakes ten times a second to see whether
    there was one, which a phone's battery would notice.
    """

    def __init__(self, config: uvicorn.Config, ending: threading.Event) -> None:
        """ending: is set as soon as the end is asked for, so that streams that never end by themselves do."""
        super().__init__(config)
        self._ending = ending
        self._wake: Callable[[], object] | None = None

    async def main_loop(self) -> None:
        """Wait for the end."""
        await self.on_tick(0)  # what it sets every second is the date in the answers, which these do without
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(ending.set)
        if not self.should_exit:
            await ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note that the server is to end."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._ending.set()
        if self._wake is not None:
            self._wake()


class _Ticker:
    """Has the scheduler look at everything, every so often: soon again while a job runs, else now and then."""

    def __init__(self, services: Services, manager: ServiceManager) -> None:
        self._services, self._manager = services, manager
        self._seconds = services.settings.idle_tick_seconds
        self._jobs = AsyncIOScheduler(timezone="UTC")

    def start(self) -> None:
        """Begin, in the running loop."""
        loop = asyncio.get_running_loop()
        self._services.wake.listener = lambda: loop.call_soon_threadsafe(self._now)
        self._jobs.add_job(
            self._tick,
            "interval",
            id=_TICK,
            seconds=self._seconds,
            next_run_time=self._services.now(),
            coalesce=True,  # after a suspend one look is enough
            max_instances=1,
            misfire_grace_time=None,
        )
        self._jobs.start()

    def stop(self) -> None:
        """End."""
        self._services.wake.listener = None
        self._jobs.shutdown(wait=False)

    def _now(self) -> None:
        with suppress(JobLookupError):  # ending
            self._jobs.modify_job(_TICK, next_run_time=self._services.now())

    async def _tick(self) -> None:
        settings, scheduler = self._services.settings, self._services.scheduler
        await asyncio.to_thread(scheduler.tick, self._services.now())
        await self._services.generator.unload_if_idle()
        self._manager.notify("WATCHDOG=1", f"STATUS={scheduler.summary}")
        soon = scheduler.worker_pid or unanswered(scheduler.readings)
        seconds = settings.tick_seconds if soon else settings.idle_tick_seconds
        if seconds != self._seconds:
            self._seconds = seconds
            with suppress(JobLookupError):  # ending
                self._jobs.reschedule_job(_TICK, trigger="interval", seconds=seconds)


def _lifespan(services: Services, listeners: list[socket.socket]) -> Any:
    """What runs beside the requests: the tick, and what tells others that the daemon is there."""
    manager = ServiceManager()
    ticker = _Ticker(services, manager)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        ticker.start()
        _announce(services, listeners)
        manager.notify("READY=1", f"STATUS=serving {services.settings.model}")
        try:
            yield
        finally:
            manager.notify("STOPPING=1")
            ticker.stop()
            await services.generator.close()

    return lifespan


def _announce(services: Services, listeners: list[socket.socket]) -> None:
    """Say in the data folder where the daemon is, so that local programs of the same owner find it."""
    folder, port = services.folder, listeners[0].getsockname()[1]
    about = {
        "pid": os.getpid(),
        "port": port,
        "url": f"http://{HOST}:{port}",
        "socket": str(folder.socket) if listeners[1:] else None,
        "version": __version__,
        "started_at": services.started_at.isoformat(),
    }
    scratch = folder.announcement.with_suffix(".new")
    scratch.write_text(json.dumps(about, indent=2) + "\n")
    scratch.rename(folder.announcement)
    log.info("serving %s on %s", services.settings.model, about["url"])
    if problem := services.model_problem():
        log.warning("%s", problem)


def _make(folder: DataFolder) -> None:
    try:
        folder.make()
    except OSError as error:
        raise BadSettings(f"The data folder {folder.root} cannot be used: {error.strerror}.") from error


def _only_daemon(folder: DataFolder) -> AbstractContextManager[bool]:
    return locked(folder.daemon_lock)


@contextmanager
def _listening(port: int) -> Any:
    """A listening loopback socket. Raises PortInUse."""
    # With the protocol named: asyncio turns Nagle's delay off (40 ms an answer) only for such sockets.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A daemon that has just stopped leaves its port waiting; that is no reason not to start.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(128)
        except OSError as error:
            raise PortInUse(
                f"Port {port} on {HOST} cannot be had ({error.strerror}). Choose another with --port, or 0 for any."
            ) from error
        yield listener
    finally:
        listener.close()


@contextmanager
def _at(path: Path) -> Iterator[list[socket.socket]]:
    """A listening Unix socket that only the owner can open; none where the system has none, or the path is too long.

    It is no way around the token: what may open it may read the token, and an app that is let in may be run by the
    owner.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)  # left by a daemon that was killed: this one holds the folder's lock
        listening = [listener]
        try:
            listener.bind(str(path))
            path.chmod(0o600)  # nothing is let in before listen()
            listener.listen(128)
        except OSError as error:
            log.warning("no Unix socket at %s: %s", path, error)
            listening = []
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)
