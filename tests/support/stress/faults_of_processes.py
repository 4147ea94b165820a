"""Faults of processes, connections and clocks. Each takes its cause away again, and returns what the owner saw."""

import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from bench.common.world import until
from pocketllm.daemon.paths import write_private
from pocketllm.daemon.process_memory import anonymous_bytes
from tests.support.daemon.real_daemon import children, refused_start
from tests.support.executables import executable
from tests.support.installed_phone import PROGRAMS, InstalledPhone
from tests.support.stress.world import World

#: The default of total_memory_bytes.
_TOTAL_BYTES = 10**9


def worker_log_unwritable(world: World) -> str:
    """No file of the worker may grow, its log neither. That is no crash."""
    said = worker_limited(world, resource.RLIMIT_FSIZE, 0)
    assert not said.startswith("crashed")
    return said


def worker_out_of_memory(world: World) -> str:
    """The kernel gives it no more."""
    return worker_limited(world, resource.RLIMIT_DATA, 1 << 20)


def worker_stopped(world: World) -> str:
    """And never continued."""
    pid = child_of(world, "worker")
    os.kill(pid, signal.SIGSTOP)
    return end_of(world, pid)


def worker_limited(world: World, limit: int, value: int) -> str:
    """The newest event when a limit has ended the worker."""
    pid = child_of(world, "worker")
    with limited(pid, limit, value):
        return end_of(world, pid)


def child_of(world: World, name: str) -> int:
    """The process id of the worker or the generator, which must run."""
    pid = world.pid_of(name)
    assert pid is not None
    return pid


def end_of(world: World, worker: int) -> str:
    """Wait for this worker's end; the newest event."""
    until(lambda: world.pid_of("worker") != worker, "the worker's end")
    return world.last_event()


def worker_killed_early(world: World) -> str:
    """Something else kills four workers in a row before their first step, as Android does."""
    known = {None, world.pid_of("worker")}
    (job,) = world.open_jobs()
    world.call("POST", f"/jobs/{job['id']}/pause")
    world.call("POST", f"/jobs/{job['id']}/resume")
    for _ in range(4):
        until(lambda: world.pid_of("worker") not in known, "a new worker")
        known.add(pid := child_of(world, "worker"))
        os.kill(pid, signal.SIGKILL)
    until(world.blockers, "what holds the job back")
    said = world.blockers()
    until(lambda: world.pid_of("worker") not in known, "the next try")
    return said


def generator_stopped(world: World) -> str:
    """While it answers."""
    words = {"prompt": "Wind", "max_tokens": 4}
    world.call("POST", "/generate", words)
    os.kill(child_of(world, "generator"), signal.SIGSTOP)
    try:
        world.call("POST", "/generate", words, seconds=120)
    except httpx.HTTPStatusError as error:
        return str(error.response.json()["detail"])
    return "an answer"


def no_file_growth(world: World) -> str:
    """No file of the daemon may grow any more, until it is let again."""
    with limited(world.pid, resource.RLIMIT_FSIZE, 4096):
        return world.posted_for(8)


def second_daemon(world: World) -> str:
    """On the same folder."""
    return refused_start(world.folder)


def no_descriptors(world: World) -> str:
    """The daemon has none left, until those who hold them go away."""
    used = len(list(Path(f"/proc/{world.pid}/fd").iterdir()))
    with limited(world.pid, resource.RLIMIT_NOFILE, used + 2):
        with connected(world.port, 40):
            said = world.posted("a text without descriptors", seconds=5)
        return f"{said} | {world.posted_for(5)}"


def idle_connections(world: World) -> str:
    """Another app opens 1,500."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with connected(world.port, 1500):
        return world.posted("a text among many connections")


@contextmanager
def limited(pid: int, limit: int, value: int) -> Iterator[None]:
    """Meanwhile a process has a lower limit of something."""
    soft, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (value, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, limit, (soft, hard))


@contextmanager
def connected(port: int, count: int) -> Iterator[None]:
    """Meanwhile another app holds this number of connections, and says nothing."""
    held = []
    for _ in range(count):
        with suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=2))
    try:
        yield
    finally:
        for one in held:
            one.close()


def clock_set_back(world: World) -> str:
    """By an hour; the daemon must still pause and start jobs at once."""
    offset = with_clock(world, "+0")
    time.sleep(2)
    set_clock(offset, "-3600")
    world.call("POST", "/status/snooze", {"minutes": 10})
    paused = until(lambda: world.pid_of("worker") is None, "the pause")
    world.call("POST", "/status/snooze", {})
    back = until(lambda: world.pid_of("worker"), "a worker again")
    return f"paused after {paused:.1f} s, running again {back:.1f} s later"


def clock_was_wrong(world: World) -> str:
    """By a year while a job is snoozed; once it is right, the job must go on at once."""
    offset = with_clock(world, "+31536000")
    world.call("POST", "/status/snooze", {"minutes": 60})
    until(lambda: world.pid_of("worker") is None, "the pause")
    set_clock(offset, "+0")
    waited = until(lambda: world.pid_of("worker"), "a worker again")
    return f"running again {waited:.1f} s after the clock was right"


def with_clock(world: World, offset: str) -> Path:
    """Start the daemon again with another clock; the file that sets it, in seconds."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    world.stop()
    file = world.folder.parent / "offset"
    set_clock(file, offset)
    world.environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    world.start()
    return file


def set_clock(file: Path, offset: str) -> None:
    """Change the clock: the file at once, since a process ends that reads an empty one."""
    write_private(file, f"{offset}\n".encode())


def idle_hook_at_start(world: World) -> str:
    """On an idle phone that charges, Android runs the idle hook as the service registers it, and while it starts."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed: apt-get install runit")
    world.stop()
    phone = InstalledPhone(world.folder.parent / "phone", world.model)
    own = {"DATA_DIR": str(world.folder), "MODEL": world.model.name, "PORT": str(world.port)}
    phone.environment |= world.settings() | {f"POCKETLLM_{name}": value for name, value in own.items()}
    phone.idle_file.touch()
    phone.boot()
    try:
        until(lambda: phone.sv("status").startswith("run: "), "the service")
        until(lambda: phone.sv("1") or world.answers(), "an answer, with a signal at each look")
        until((phone.data / "idle.stamp").exists, "the idle hook")
        said = world.posted("a text after the idle hook")
        assert "ended with code" not in phone.log
        return said
    finally:
        phone.switch_off()
        until(lambda: not world.answers(), "the service's end")
        world.start()


def wake_lock_left(world: World) -> str:
    """The daemon is killed while it holds Android's wake lock; the next one gives it back."""
    world.stop()
    folder, calls = world.folder.parent / "bin", world.folder.parent / "calls"
    for name in ("wake-lock", "wake-unlock"):
        executable(folder, f"termux-{name}", f"echo {name} >> {calls}")
    world.environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    world.start()
    until(lambda: calls.exists() and calls.read_text().endswith("wake-lock\n"), "the wake lock")
    world.kill()
    calls.unlink()
    world.start()
    until(lambda: calls.exists() and calls.read_text().startswith("wake-unlock\n"), "its release")
    return "released at the next start"


def total_memory(world: World) -> str:
    """Many ask for scored text at once while a job runs: all processes together stay below the setting's 1 GB."""
    body = {"model": "pocketllm:base", "prompt": "Wind west", "max_tokens": 100, "logprobs": 5, "n": 4}

    def ask() -> int:
        try:
            world.call("POST", "/v1/completions", body, seconds=300)
        except httpx.HTTPStatusError as error:
            return error.response.status_code
        return httpx.codes.OK

    most = 0
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask) for _ in range(24)]
        while not all(one.done() for one in asked):
            started = children(world.pid)
            family = [world.pid, *started, *(one for child in started for one in children(child))]
            most = max(most, sum(anonymous_bytes(one) or 0 for one in family))
            time.sleep(0.02)
    assert most < _TOTAL_BYTES
    return f"{most / 1e6:.0f} MB at most; answers {', '.join(sorted({str(one.result()) for one in asked}))}"


FAULTS = (
    *(worker_log_unwritable, worker_out_of_memory, worker_stopped, worker_killed_early, generator_stopped),
    *(no_file_growth, second_daemon, no_descriptors, idle_connections, clock_set_back, clock_was_wrong),
    *(idle_hook_at_start, wake_lock_left, total_memory),
)
