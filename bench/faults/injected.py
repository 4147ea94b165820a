"""The faults: each is injected into a running daemon's world, and its cause goes away again."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.faults.disks import CannotInject, Kind, device_of, mount_image, run
from bench.phone.installed import PROGRAMS, InstalledPhone
from bench.world import World, until
from pocketllm.daemon.process_memory import anonymous_bytes

#: The default of total_memory_bytes.
_TOTAL_BYTES = 10**9


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault."""

    inject: Callable[[World], str]  #: injects it and takes its cause away; returns what the owner saw
    disk: Kind | None = None  #: a tmpfs, or an ext4 in a file
    quick: bool = False  #: also in a quick run


def disk_full(world: World) -> str:
    """The disk fills while a job runs, and has room again a while later."""
    with _filled(world):
        return _posted_for(world, 15, "full disk")


def full_disk_at_start(world: World) -> str:
    """The daemon is started on a full disk: texts are read and deleted."""
    world.stop()
    return _used_on_full_disk(world)


def full_disk_after_kill(world: World) -> str:
    """The same after a kill, by which the log is left as it was."""
    _kill(world)
    return _used_on_full_disk(world)


def worker_log_unwritable(world: World) -> str:
    """No file of the worker may grow, its log neither."""
    pid = world.call("GET", "/status")["worker"]["pid"]
    with _limited(pid, resource.RLIMIT_FSIZE, 0):
        until(lambda: world.call("GET", "/status")["worker"]["pid"] != pid, "the worker's end")
    if (said := _last_event(world)).startswith("crashed"):
        raise SystemExit(f"Want of room counts as a crash: {said}")
    return said


def backup_killed(world: World) -> str:
    """A backup is killed while it is written; the next deletion takes away what it has left."""
    place = world.folder.parent / "backups"
    place.mkdir()
    _killed(world, "backup", str(place / "backup.tar"), when=lambda: list(place.iterdir()))
    _deleted_for_good(world)
    return _left(list(place.iterdir()))


def restore_killed(world: World) -> str:
    """A restore is killed while it unpacks; the next start takes away what it has left."""
    backup = world.folder.parent / "backup.tar"
    _command(world, "backup", str(backup))
    world.stop()
    _killed(world, "restore", str(backup), "--yes", when=lambda: list(world.folder.glob(".restore-*")))
    world.start()
    return _left(list(world.folder.glob(".restore-*")))


def read_only_disk(world: World) -> str:
    """The file system fails and becomes read-only; the device is started again, which repairs it."""
    place = world.folder.parent
    device = device_of(place)
    Path(f"/sys/fs/ext4/{device.name}/trigger_fs_error").write_text("1")
    said = _posted_for(world, 8, "read-only disk")
    _kill(world)
    until(lambda: not subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode, "the disk")
    subprocess.run(["e2fsck", "-fy", str(place.with_suffix(".img"))], check=False, capture_output=True)
    mount_image(place)
    world.start()
    return said


def no_file_growth(world: World) -> str:
    """No file of the daemon may grow any more, until it is let again."""
    assert world.process is not None
    with _limited(world.process.pid, resource.RLIMIT_FSIZE, 4096):
        return _posted_for(world, 8, "limit")


def worker_out_of_memory(world: World) -> str:
    """The kernel gives the worker no more memory."""
    pid = world.call("GET", "/status")["worker"]["pid"]
    with _limited(pid, resource.RLIMIT_DATA, 1 << 20):
        until(lambda: world.call("GET", "/status")["worker"]["pid"] != pid, "the worker's end")
    return _last_event(world)


def worker_stopped(world: World) -> str:
    """The worker is stopped and never continued."""
    pid = world.call("GET", "/status")["worker"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: world.call("GET", "/status")["worker"]["pid"] != pid, "the stopped worker's end")
    return _last_event(world)


def worker_killed_early(world: World) -> str:
    """Something else kills four workers in a row before their first step, as Android does."""
    known = {world.call("GET", "/status")["worker"]["pid"]}
    (job,) = world.open_jobs()
    world.call("POST", f"/jobs/{job['id']}/pause")
    world.call("POST", f"/jobs/{job['id']}/resume")
    for _ in range(4):
        until(lambda: world.call("GET", "/status")["worker"]["pid"] not in {None, *known}, "a new worker")
        known.add(pid := world.call("GET", "/status")["worker"]["pid"])
        os.kill(pid, signal.SIGKILL)
    until(lambda: _blockers(world), "what holds the job back")
    said = _blockers(world)
    until(lambda: world.call("GET", "/status")["worker"]["pid"] not in {None, *known}, "the next try")
    return said


def generator_stopped(world: World) -> str:
    """The generator is stopped while it answers."""
    world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
    os.kill(world.call("GET", "/status")["generator"]["pid"], signal.SIGSTOP)
    try:
        world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4}, seconds=120)
    except httpx.HTTPStatusError as error:
        return str(error.response.json()["detail"])
    return "an answer"


def adapter_damaged(world: World) -> str:
    """A bit of the served adapter's weights flips."""
    return _served_by(world, _flip)


def adapter_truncated(world: World) -> str:
    """The file of the served adapter's weights ends in the middle."""
    return _served_by(world, lambda file: os.truncate(file, file.stat().st_size // 2))


def adapter_deleted(world: World) -> str:
    """The served adapter's weights are deleted."""
    return _served_by(world, Path.unlink)


def checkpoint_damaged(world: World) -> str:
    """The job's newest checkpoint is cut off while the device is without power."""
    (job,) = world.open_jobs()
    run = world.folder / "runs" / job["id"]
    until(lambda: list(run.glob("*.safetensors")), "a checkpoint")
    _kill(world)
    newest = max(run.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    os.truncate(newest, newest.stat().st_size // 2)
    world.start()
    return _last_event(world)


def database_locked(world: World) -> str:
    """Another program holds the database's lock for half a minute."""
    with closing(sqlite3.connect(world.folder / "pocketllm.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = posted(world, "a text for a locked database", seconds=60)
        other.execute("ROLLBACK")
    return said


def database_damaged(world: World) -> str:
    """Pages of the database are overwritten while the daemon is down. The owner restores the backup, as it says."""
    backup = world.folder.parent / "backup.tar"
    _command(world, "backup", str(backup))
    world.stop()
    with (world.folder / "pocketllm.db").open("r+b") as file:
        size = file.seek(0, 2)
        for page in range(4096, size, 2 * 4096):
            file.seek(page)
            file.write(b"\xff" * 512)
    said = _refused_start(world)
    _command(world, "restore", str(backup), "--yes")
    world.start()
    return said


def database_missing(world: World) -> str:
    """The database is moved away. The owner puts it back with the adapters that were set aside, as it says."""
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
    if {path.name for path in kept} != learned:
        raise SystemExit(f"Of the adapters {learned}, {kept} were kept.")
    for path in kept:
        path.rename(adapters / path.name)
    for file in world.folder.glob("pocketllm.db*"):
        file.unlink()
    for file in elsewhere.iterdir():
        file.rename(world.folder / file.name)
    world.start()
    return said


def second_daemon(world: World) -> str:
    """A second daemon is started on the same folder."""
    return _refused_start(world)


def no_descriptors(world: World) -> str:
    """The daemon has no file descriptor left, until those who hold them go away."""
    assert world.process is not None
    used = len(list(Path(f"/proc/{world.process.pid}/fd").iterdir()))
    held = []
    with _limited(world.process.pid, resource.RLIMIT_NOFILE, used + 2):
        for _ in range(40):
            with suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", world.port), timeout=2))
        said = posted(world, "a text without descriptors", seconds=5)
        for one in held:
            one.close()
        return f"{said} | {_posted_for(world, 5, 'few descriptors')}"


def idle_connections(world: World) -> str:
    """Another app opens 1,500 connections and says nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    held = []
    for _ in range(1500):
        with suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", world.port), timeout=2))
    said = posted(world, "a text among many connections")
    for one in held:
        one.close()
    return said


def clock_set_back(world: World) -> str:
    """The daemon's clock is set back by an hour; it must still pause and start jobs at once."""
    offset = _with_clock(world, "+0\n")
    time.sleep(2)
    offset.write_text("-3600\n")
    began = time.monotonic()
    world.call("POST", "/status/snooze", {"minutes": 10})
    until(lambda: world.call("GET", "/status")["worker"]["pid"] is None, "the pause")
    paused = time.monotonic() - began
    world.call("POST", "/status/snooze", {})
    until(lambda: world.call("GET", "/status")["worker"]["pid"], "a worker again")
    return f"paused after {paused:.1f} s, running again {time.monotonic() - began - paused:.1f} s later"


def idle_hook_at_start(world: World) -> str:
    """On an idle phone that charges, Android runs the idle hook as the service registers it, and while it starts."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise CannotInject(f"{', '.join(missing)}: not installed")
    world.stop()
    phone = InstalledPhone(world.folder.parent / "phone", world.model)
    phone.environment |= world.settings() | {
        "POCKETLLM_DATA_DIR": str(world.folder),
        "POCKETLLM_MODEL": world.model.name,
        "POCKETLLM_PORT": str(world.port),
    }
    phone.idle_file.touch()
    phone.boot()
    try:
        until(lambda: phone.sv("status").startswith("run: "), "the service")
        until(lambda: phone.sv("1") or world.answers(), "an answer, with a signal at each look")
        until((phone.data / "idle.stamp").exists, "the idle hook")
        said = posted(world, "a text after the idle hook")
        if "ended with code" in phone.log:
            raise SystemExit(f"The daemon must outlive the idle hook: {phone.log}")
        return said
    finally:
        phone.switch_off()
        until(lambda: not world.answers(), "the service's end")
        world.start()


def clock_was_wrong(world: World) -> str:
    """The clock is wrong by a year while a job is snoozed; once it is right, the job must go on at once."""
    offset = _with_clock(world, "+31536000\n")
    world.call("POST", "/status/snooze", {"minutes": 60})
    until(lambda: world.call("GET", "/status")["worker"]["pid"] is None, "the pause")
    offset.write_text("+0\n")
    waited = until(lambda: world.call("GET", "/status")["worker"]["pid"], "a worker again")
    return f"running again {waited:.1f} s after the clock was right"


def _with_clock(world: World, offset: str) -> Path:
    """Start the daemon again with another clock; the file that sets it, in seconds. Raises CannotInject."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        raise CannotInject("libfaketime is not installed")
    world.stop()
    file = world.folder.parent / "offset"
    file.write_text(offset)
    world.environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    world.start()
    return file


def wake_lock_left(world: World) -> str:
    """The daemon is killed while it holds Android's wake lock; the next one gives it back."""
    world.stop()
    commands, calls = world.folder.parent / "bin", world.folder.parent / "calls"
    commands.mkdir()
    for name in ("wake-lock", "wake-unlock"):
        (commands / f"termux-{name}").write_text(f"#!/bin/sh\necho {name} >> {calls}\n")
        (commands / f"termux-{name}").chmod(0o755)
    world.environment = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    world.start()
    until(lambda: calls.exists() and calls.read_text().endswith("wake-lock\n"), "the wake lock")
    assert world.process is not None
    world.process.kill()
    world.process.wait()
    calls.unlink()
    world.start()
    until(lambda: calls.exists() and calls.read_text().startswith("wake-unlock\n"), "its release")
    return "released at the next start"


def total_memory(world: World) -> str:
    """Many ask for scored text at once while a job runs: all processes together stay below the setting's 1 GB."""
    body = {"model": "pocketllm:base", "prompt": "Wind west", "max_tokens": 100, "logprobs": 5, "n": 4}
    assert world.process is not None
    pid, most = world.process.pid, 0
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(_status_of, world, body) for _ in range(24)]
        while not all(one.done() for one in asked):
            family = [pid, *_children(pid), *(one for child in _children(pid) for one in _children(child))]
            most = max(most, sum(anonymous_bytes(one) or 0 for one in family))
            time.sleep(0.02)
    if most >= _TOTAL_BYTES:
        raise SystemExit(f"All processes together took {most / 1e6:.0f} MB.")
    answers = sorted({one.result() for one in asked})
    return f"{most / 1e6:.0f} MB at most; answers {', '.join(answers)}"


def _children(pid: int) -> list[int]:
    """The children of a process."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += map(int, listing.read_text().split())
    return found


def _status_of(world: World, body: Mapping[str, object]) -> str:
    """The status of an answer."""
    try:
        world.call("POST", "/v1/completions", body, seconds=300)
    except httpx.HTTPStatusError as error:
        return str(error.response.status_code)
    return "200"


def _used_on_full_disk(world: World) -> str:
    """What a daemon says on a full disk, on which it must start, find texts and delete one."""
    with _filled(world):
        world.start()
        found = world.call("GET", "/texts?limit=500&query=fault")["data"]
        _deleted_for_good(world)
        return f"{len(found)} texts found, one deleted; then {posted(world, 'a text for a full disk')}"


def _deleted_for_good(world: World) -> None:
    """Delete an acknowledged text. Raises SystemExit unless its bytes are gone."""
    gone = world.acknowledged.pop(0)
    ((identity,),) = world.query("SELECT id FROM text WHERE text = ?", gone)
    if not world.call("DELETE", f"/texts/{identity}")["deletion"]["erased"]:
        raise SystemExit("A deleted text is not erased.")


def _left(files: list[Path]) -> str:
    if files:
        raise SystemExit(f"Left by a kill: {files}")
    return "nothing is left"


def _kill(world: World) -> None:
    assert world.process is not None
    world.process.kill()
    world.process.wait()


@contextmanager
def _filled(world: World) -> Iterator[None]:
    """Meanwhile the world's disk has no byte left."""
    filler = world.folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _limited(pid: int, limit: int, value: int) -> Iterator[None]:
    """Meanwhile a process has a lower limit of something."""
    soft, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (value, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, limit, (soft, hard))


def _posted_for(world: World, seconds: float, what: str) -> str:
    """Post texts for so long; all that was answered, and what stood in the way of a job."""
    saw, ends = set(), time.monotonic() + seconds
    while time.monotonic() < ends:
        saw |= {posted(world, f"a text for a {what} {time.monotonic()}"), _blockers(world)}
        time.sleep(0.2)
    return " | ".join(sorted(saw - {""}))


def posted(world: World, text: str, *, seconds: float = 60) -> str:
    """Post a text; what was answered. An acknowledged one must be there at the end."""
    try:
        world.call("POST", "/texts", {"text": text, "source": "faults"}, seconds=seconds)
    except httpx.HTTPStatusError as error:
        return f"{error.response.status_code} {error.response.json()['detail']}"
    except httpx.HTTPError as error:
        return type(error).__name__
    world.acknowledged.append(text)
    return "stored"


def _blockers(world: World) -> str:
    """What stands in the way of a job."""
    try:
        blockers = world.call("GET", "/status")["training"]["blockers"]
    except httpx.HTTPStatusError as error:
        return f"/status: {error.response.status_code} {error.response.json()['detail']}"
    except httpx.HTTPError as error:
        return type(error).__name__
    return "; ".join(blocker["message"] for blocker in blockers)


def _last_event(world: World) -> str:
    events = world.query("SELECT kind, message FROM event ORDER BY id DESC LIMIT 1")
    return ": ".join(events[0])


def _served_by(world: World, damage: Callable[[Path], object]) -> str:
    """What /status says once the served adapter's weights are damaged and text is asked for."""
    until(lambda: not world.open_jobs(), "the job's end")
    newest = world.call("GET", "/adapters")["data"][0]["id"]
    world.call("POST", f"/adapters/{newest}/serve")
    damage(world.folder / "adapters" / newest / "adapter_model.safetensors")
    world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
    return str(world.call("GET", "/status")["model"]["message"])


def _flip(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(-100, 2)
        byte = content.read(1)[0]
        content.seek(-1, 1)
        content.write(bytes([byte ^ 0x40]))


def _refused_start(world: World) -> str:
    """What a start says that must fail, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "pocketllm", "serve", "--port", "0", "--data-dir", str(world.folder)],
        env=os.environ | world.settings(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    if done.returncode != 1 or "Traceback" in said:
        raise SystemExit(f"A start that must be refused: exit code {done.returncode}, {said}")
    return said.strip()


def _killed(world: World, *words: str, when: Callable[[], object]) -> None:
    """Run a command, and kill it once something is so."""
    command = [sys.executable, "-m", "pocketllm", words[0], "--data-dir", str(world.folder), *words[1:]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(lambda: process.poll() is not None or when(), "the moment for the kill", between_seconds=0.0002)
        process.kill()
    if process.returncode != -signal.SIGKILL:
        raise CannotInject("the command was done before it could be killed")


def _command(world: World, name: str, *words: str) -> None:
    run(sys.executable, "-m", "pocketllm", name, "--data-dir", str(world.folder), *words)


FAULTS: Mapping[str, Case] = {
    "disk_full": Case(inject=disk_full, disk="small"),
    "full_disk_at_start": Case(inject=full_disk_at_start, disk="small", quick=True),
    "full_disk_after_kill": Case(inject=full_disk_after_kill, disk="small", quick=True),
    "worker_log_unwritable": Case(inject=worker_log_unwritable),
    "backup_killed": Case(inject=backup_killed, quick=True),
    "restore_killed": Case(inject=restore_killed),
    "read_only_disk": Case(inject=read_only_disk, disk="image", quick=True),
    "no_file_growth": Case(inject=no_file_growth),
    "worker_stopped": Case(inject=worker_stopped),
    "worker_killed_early": Case(inject=worker_killed_early),
    "worker_out_of_memory": Case(inject=worker_out_of_memory),
    "generator_stopped": Case(inject=generator_stopped),
    "adapter_damaged": Case(inject=adapter_damaged, quick=True),
    "adapter_truncated": Case(inject=adapter_truncated),
    "adapter_deleted": Case(inject=adapter_deleted),
    "checkpoint_damaged": Case(inject=checkpoint_damaged),
    "database_locked": Case(inject=database_locked),
    "database_damaged": Case(inject=database_damaged, quick=True),
    "database_missing": Case(inject=database_missing, quick=True),
    "second_daemon": Case(inject=second_daemon, quick=True),
    "no_descriptors": Case(inject=no_descriptors),
    "idle_connections": Case(inject=idle_connections),
    "clock_set_back": Case(inject=clock_set_back),
    "idle_hook_at_start": Case(inject=idle_hook_at_start, quick=True),
    "clock_was_wrong": Case(inject=clock_was_wrong),
    "wake_lock_left": Case(inject=wake_lock_left),
    "total_memory": Case(inject=total_memory),
}
