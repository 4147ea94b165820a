"""Faults of the device, for real. Each takes its cause away again, and returns what the owner saw."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from bench.common.world import until
from pocketllm.daemon.process_memory import anonymous_bytes
from tests.support.daemon.commands import commands
from tests.support.daemon.real_daemon import children, refused_start
from tests.support.stress.disks import fail_for_good, filled, repair, run
from tests.support.stress.world import World

#: The default of total_memory_bytes.
_TOTAL_BYTES = 10**9


def disk_full(world: World) -> str:
    with filled(world.folder):
        return world.posted_for(15)


def full_disk_at_start(world: World) -> str:
    world.stop()
    return used_on_full_disk(world)


def full_disk_after_kill(world: World) -> str:
    """The log is left as it was."""
    world.kill()
    return used_on_full_disk(world)


def used_on_full_disk(world: World) -> str:
    """The daemon must start, find texts, and delete some."""
    with filled(world.folder):
        world.start()
        found = world.call("GET", "/texts?limit=500&query=fault")["data"]
        assert len(found) == len(world.acknowledged)
        for identity in acknowledged_ids(world, 5):
            delete_for_good(world, identity)
        assert commands(world.folder)("texts", "delete", "--yes", *acknowledged_ids(world, 5)).exit_code == 0
        left = world.call("GET", "/texts?limit=500&query=fault")["data"]
        assert len(left) == len(world.acknowledged)
        said = world.posted("a text for a full disk")
    assert world.posted("a text once there is room") == "stored"
    return f"{len(found)} texts found, {len(left)} left; then {said}"


def acknowledged_ids(world: World, count: int) -> list[str]:
    """The ids of acknowledged texts that are about to be deleted."""
    texts = [world.acknowledged.pop(0) for _ in range(count)]
    return [world.query("SELECT id FROM text WHERE text = ?", text)[0][0] for text in texts]


def delete_for_good(world: World, identity: str) -> None:
    """Delete a text; its bytes must be gone from the database and its log then."""
    [(words,)] = world.query("SELECT text FROM text WHERE id = ?", identity)
    assert world.call("DELETE", f"/texts/{identity}")["deletion"]["texts"] == 1
    holding = [file for file in world.folder.glob("pocketllm.db*") if str(words).encode() in file.read_bytes()]
    assert not holding, holding


def pocketllm(world: World, name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "pocketllm", name, "--data-dir", str(world.folder), *words]


def read_only_disk(world: World) -> str:
    """The file system fails and becomes read-only; the device is started again, which repairs it."""
    place = world.folder.parent
    fail_for_good(place)
    said = world.posted_for(8)
    world.kill()
    until(lambda: not subprocess.run(["umount", place], check=False, capture_output=True).returncode, "the disk")
    repair(place)
    world.start()
    return said


def adapter_damaged(world: World) -> str:
    """A bit of the served adapter's weights changes; what /status says once text is asked for."""
    until(lambda: not world.open_jobs(), "the job's end")
    newest = world.call("GET", "/adapters")["data"][0]["id"]
    world.call("POST", f"/adapters/{newest}/serve")
    flip(world.folder / "adapters" / newest / "adapter_model.safetensors")
    world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
    return str(world.call("GET", "/status")["model"]["message"])


def flip(file: Path) -> None:
    """Change a bit near the end."""
    with file.open("r+b") as content:
        content.seek(-100, os.SEEK_END)
        (byte,) = content.read(1)
        content.seek(-100, os.SEEK_END)
        content.write(bytes([byte ^ 0x40]))


def checkpoint_damaged(world: World) -> str:
    """The job's newest checkpoint is cut off while the device is without power."""
    (job,) = world.open_jobs()
    folder = world.folder / "runs" / job["id"]
    until(lambda: list(folder.glob("*.safetensors")), "a checkpoint")
    world.kill()
    newest = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    os.truncate(newest, newest.stat().st_size // 2)
    world.start()
    return world.last_event()


def database_damaged(world: World) -> str:
    """Pages are overwritten while the daemon is down. The owner restores the backup, as it says."""
    backup, database = str(world.folder.parent / "backup.tar"), world.folder / "pocketllm.db"
    run(*pocketllm(world, "backup", backup))
    world.stop()
    content = bytearray(database.read_bytes())
    for page in range(4096, len(content), 2 * 4096):
        content[page : page + 512] = b"\xff" * 512
    database.write_bytes(content)
    said = refused_start(world.folder)
    run(*pocketllm(world, "restore", backup, "--yes"))
    world.start()
    return said


def database_missing(world: World) -> str:
    """It is moved away. The owner puts it back with the adapters that were set aside, as it says."""
    until(lambda: not world.open_jobs(), "the job's end")
    world.stop()
    elsewhere, adapters = world.folder.parent / "elsewhere", world.folder / "adapters"
    elsewhere.mkdir()
    learned = {path.name for path in adapters.iterdir()}
    for file in world.folder.glob("pocketllm.db*"):
        file.rename(elsewhere / file.name)
    world.start()
    said = str(world.call("GET", "/status")["model"]["message"])
    world.stop()
    kept = list((world.folder / "set-aside").iterdir())
    assert {path.name for path in kept} == learned
    for path in kept:
        path.rename(adapters / path.name)
    for file in world.folder.glob("pocketllm.db*"):
        file.unlink()
    for file in elsewhere.iterdir():
        file.rename(world.folder / file.name)
    world.start()
    return said


def worker_out_of_memory(world: World) -> str:
    """The kernel gives it no more."""
    pid = child_of(world, "worker")
    with limited(pid, resource.RLIMIT_DATA, 1 << 20):
        return end_of(world, pid)


def worker_stopped(world: World) -> str:
    """And never continued."""
    pid = child_of(world, "worker")
    os.kill(pid, signal.SIGSTOP)
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


def generator_stopped(world: World) -> str:
    """While it answers."""
    words = {"prompt": "Wind", "max_tokens": 4}
    world.call("POST", "/generate", words)
    os.kill(child_of(world, "generator"), signal.SIGSTOP)
    with pytest.raises(httpx.HTTPStatusError) as failed:
        world.call("POST", "/generate", words, seconds=120)
    return str(failed.value.response.json()["detail"])


def no_descriptors(world: World) -> str:
    """The daemon has none left, until those who hold them go away."""
    used = len(list(Path(f"/proc/{world.pid}/fd").iterdir()))
    with limited(world.pid, resource.RLIMIT_NOFILE, used + 2):
        with connected(world.port, 40):
            said = world.posted("a text without descriptors", seconds=5)
        return f"{said} | {world.posted_for(5)}"


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
    with ExitStack() as held:
        for _ in range(count):
            with suppress(OSError):
                held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
        yield


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
    *(disk_full, full_disk_at_start, full_disk_after_kill, read_only_disk),
    *(adapter_damaged, checkpoint_damaged, database_damaged, database_missing),
    *(worker_out_of_memory, worker_stopped, generator_stopped, no_descriptors, total_memory),
)
