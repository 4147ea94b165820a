"""The daemon's process: builds everything, serves it, and shuts it down in order."""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from functools import partial
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import FastAPI

from pocketllm import __version__
from pocketllm.api.app import create_app
from pocketllm.api.security.tokens import load_or_create_token
from pocketllm.connections import BoundedProtocol
from pocketllm.daemon import logs
from pocketllm.daemon.conditions.android_screen import register_idle_hook
from pocketllm.daemon.conditions.fresh_look import FreshLook
from pocketllm.daemon.conditions.readings import unanswered
from pocketllm.daemon.errors import BadSettings, DaemonError
from pocketllm.daemon.leftovers import reserve_lent
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder, ignored_config, write_private
from pocketllm.daemon.process_memory import return_large_blocks
from pocketllm.daemon.processes import started_ticks
from pocketllm.daemon.scheduling.admission import IMMEDIATE_KEEP_ALIVE
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.services import Services, build_services
from pocketllm.daemon.settings import Settings, load_settings
from pocketllm.daemon.systemd_notify import notify
from pocketllm.storage.errors import DatabaseFull

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: How long open requests may take to end when the daemon stops.
SHUTDOWN_SECONDS = 5
#: How long a thread may keep the GIL while another waits: the default, 5 ms, is as long as a whole answer.
SWITCH_SECONDS = 0.001


#: Seconds between two ticks, at most: half of systemd's watchdog.
LONGEST_TICK_SECONDS = 60.0


def seconds_to_next_tick(settings: Settings, scheduler: Scheduler, fresh_look: FreshLook) -> float:
    """When to look again: soon while something happens, and seldom while no job waits, so that a phone can sleep."""
    if scheduler.worker_pid or fresh_look.under_way or unanswered(scheduler.readings):
        return settings.tick_seconds
    seconds = settings.idle_tick_seconds
    return seconds if scheduler.has_work else min(LONGEST_TICK_SECONDS, 4 * seconds)


def serve(overrides: dict[str, Any]) -> int:
    """Run the daemon until SIGTERM or Ctrl-C; returns the exit code.

    overrides: settings that stand above environment and config.toml. Raises DaemonError or StorageError when it
    cannot start: bad settings, another daemon on the data folder, the port in use, an unusable database.
    """
    settings = load_settings(overrides)
    logs.configure(settings.log_level)
    # They log every tick, and every plug-in.
    for chatty in ("apscheduler", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.umask(0o077)
    return_large_blocks()
    folder = DataFolder(settings.data_dir)
    folder.make()
    if ignored := ignored_config(folder.root):
        log.warning("%s", ignored)
    with locked(folder.daemon_lock) as acquired:
        if not acquired:
            raise DaemonError(
                f"Another daemon is running on {folder.root}. Stop it first, or choose another folder with --data-dir."
            )
        with _listening(settings.port) as listener, _listening_at(folder.socket) as beside:
            _serve(settings, folder, [listener, *beside])
    return os.EX_OK


def _serve(settings: Settings, folder: DataFolder, listeners: list[socket.socket]) -> None:
    with reserve_lent(folder):
        services = build_services(settings)
        try:
            services.scheduler.recover(services.now())
        except DatabaseFull as full:  # reading needs no room
            log.warning("%s", full)
    try:
        services.fresh_look.wake_lock.release()  # a killed daemon leaves it taken
        app = create_app(services, token=load_or_create_token(folder.tokens), lifespan=_lifespan(services, listeners))
        # What exists now lives until the end. Under load the collector would scan it every few seconds, which stops
        # all answers for 150 ms on a fast machine.
        gc.freeze()
        sys.setswitchinterval(SWITCH_SECONDS)
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
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
        services.folder_scans.close()
        services.fresh_look.wake_lock.close()
        services.store.close()


class _Server(uvicorn.Server):
    """A uvicorn server that shuts down in order on SIGTERM and Ctrl-C; a second Ctrl-C does not wait for open requests.

    uvicorn's own raises the signal again after its shutdown: that would end the process before the worker is gone,
    with a code that a service manager takes for a crash. It also wakes ten times a second, which drains a phone.
    """

    def __init__(self, config: uvicorn.Config, ending: threading.Event) -> None:
        """ending: set when the shutdown begins, to end streams that would never end by themselves."""
        super().__init__(config)
        self._ending = ending
        self._wake: Callable[[], object] | None = None

    async def main_loop(self) -> None:
        """Wait for the shutdown."""
        await self.on_tick(0)  # once: every second it would set the Date header, which is switched off
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(ending.set)
        if not self.should_exit:
            await ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._ending.set()
        if self._wake is not None:
            self._wake()


class Ticker:
    """Calls `tick` at an interval, at given times and when asked; what asks during a call leads to one more then."""

    def __init__(self, tick: Callable[[], Awaitable[tuple[float, Sequence[datetime]]]], *, seconds: float) -> None:
        """tick: returns the seconds to the next one, and more times to tick at. seconds: the same while it fails."""
        self._tick, self._seconds = tick, seconds
        # After a suspend a job is late, and counts all the same.
        self._scheduler = AsyncIOScheduler(timezone="UTC", job_defaults={"misfire_grace_time": None})
        self._asked = asyncio.Event()

    def start(self) -> None:
        """Start ticking, in the running event loop."""
        self._scheduler.start()
        self._ticks = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop ticking."""
        self._ticks.cancel()
        self._scheduler.shutdown(wait=False)

    def tick_now(self) -> None:
        """Do not wait for the next tick. Called in the event loop."""
        self._asked.set()

    async def _due(self) -> None:
        self._asked.set()

    async def _run(self) -> None:
        while True:
            self._asked.clear()
            times: Sequence[datetime] = ()
            try:
                self._seconds, times = await self._tick()
            except Exception:
                log.exception("a tick failed")
            self._scheduler.remove_all_jobs()
            self._scheduler.add_job(self._due, "interval", seconds=self._seconds)
            for at in times:
                self._scheduler.add_job(self._due, "date", run_date=at)
            # APScheduler goes by the wall clock: after that is set back by an hour, it would wait for an hour.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._seconds + 1.0)


def _lifespan(services: Services, listeners: list[socket.socket]) -> Any:
    """The app's lifespan: the ticker, `daemon.json`, and systemd's notifications."""
    settings, scheduler = services.settings, services.scheduler

    async def tick() -> tuple[float, Sequence[datetime]]:
        await asyncio.to_thread(scheduler.tick, services.now())
        services.fresh_look.settle(scheduler.readings)
        services.generator.max_keep_alive = IMMEDIATE_KEEP_ALIVE if scheduler.wants_generators_memory else inf
        if await services.generator.unload_if_idle():
            ticker.tick_now()
        notify("WATCHDOG=1", f"STATUS={scheduler.summary}")
        return seconds_to_next_tick(settings, scheduler, services.fresh_look), scheduler.due

    ticker = Ticker(tick, seconds=settings.idle_tick_seconds)

    def look() -> None:
        services.fresh_look.begin(services.now())
        ticker.tick_now()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        # Android's idle hook, ignored before and after; what it does before is there for the first tick.
        signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(look))
        ticker.start()
        services.wake.listener = lambda: loop.call_soon_threadsafe(ticker.tick_now)
        services.announce.listener = partial(_announce, services, listeners)
        services.announce()
        notify("READY=1", f"STATUS=serving {settings.model}")
        threading.Thread(target=register_idle_hook, daemon=True).start()
        try:
            yield
        finally:
            notify("STOPPING=1")
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            services.wake.listener = None
            ticker.stop()
            await services.generator.close()

    return lifespan


def _announce(services: Services, listeners: list[socket.socket]) -> None:
    """Write the daemon's address and settings to the data folder, for local programs of the same owner."""
    folder, port = services.folder, listeners[0].getsockname()[1]
    about = {
        "pid": os.getpid(),
        "process_started": started_ticks(os.getpid()),
        "port": port,
        "url": f"http://{HOST}:{port}",
        "socket": str(folder.socket) if listeners[1:] else None,
        "version": __version__,
        "started_at": services.started_at.isoformat(),
        "settings": services.settings.model_dump(mode="json"),
    }
    try:
        with reserve_lent(folder):
            write_private(folder.announcement, json.dumps(about, indent=2).encode() + b"\n")
    except OSError as error:
        advice = "give commands --url %s and the environment variable POCKETLLM_TOKEN"
        log.warning(f"%s cannot be written (%s): {advice}", folder.announcement, error.strerror, about["url"])
    log.info("serving %s on %s", services.settings.model, about["url"])
    if problem := services.model_problem():
        log.warning("%s", problem)


@contextmanager
def _listening(port: int) -> Any:
    """A listening loopback socket. Raises BadSettings."""
    # asyncio disables Nagle's algorithm (40 ms an answer) only for sockets whose protocol is named.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A daemon that has just stopped leaves its port in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(128)
        except OSError as error:
            raise BadSettings(
                f"Port {port} on {HOST} cannot be used ({error.strerror}). Choose another with --port, or 0 for any."
            ) from error
        yield listener
    finally:
        listener.close()


@contextmanager
def _listening_at(path: Path) -> Iterator[list[socket.socket]]:
    """A listening Unix socket for the owner alone; none where the system has none, or the path is too long.

    Requests through it need a token, too.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)  # left by a killed daemon, since this one holds the folder's lock
        listening = [listener]
        try:
            listener.bind(str(path))
            path.chmod(0o600)  # nobody can connect before listen()
            listener.listen(128)
        except OSError as error:
            log.warning("no Unix socket at %s: %s", path, error)
            listening = []
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)
