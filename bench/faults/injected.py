"""The faults: each is injected into a running daemon's world, and its cause goes away again."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from bench.faults import of_files
from bench.faults.acts import (
    Case,
    blockers,
    children,
    last_event,
    limited,
    posted,
    posted_for,
    refused_start,
    status_of,
    with_clock,
)
from bench.faults.disks import CannotInject
from bench.phone.installed import PROGRAMS, InstalledPhone
from bench.world import World, until
from pocketllm.daemon.process_memory import anonymous_bytes

#: The default of total_memory_bytes.
_TOTAL_BYTES = 10**9


def worker_out_of_memory(world: World) -> str:
    """The kernel gives the worker no more memory."""
    pid = world.call("GET", "/status")["worker"]["pid"]
    with limited(pid, resource.RLIMIT_DATA, 1 << 20):
        until(lambda: world.call("GET", "/status")["worker"]["pid"] != pid, "the worker's end")
    return last_event(world)


def worker_stopped(world: World) -> str:
    """The worker is stopped and never continued."""
    pid = world.call("GET", "/status")["worker"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: world.call("GET", "/status")["worker"]["pid"] != pid, "the stopped worker's end")
    return last_event(world)


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
    until(lambda: blockers(world), "what holds the job back")
    said = blockers(world)
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


def second_daemon(world: World) -> str:
    """A second daemon is started on the same folder."""
    return refused_start(world)


def no_descriptors(world: World) -> str:
    """The daemon has no file descriptor left, until those who hold them go away."""
    assert world.process is not None
    used = len(list(Path(f"/proc/{world.process.pid}/fd").iterdir()))
    held = []
    with limited(world.process.pid, resource.RLIMIT_NOFILE, used + 2):
        for _ in range(40):
            with suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", world.port), timeout=2))
        said = posted(world, "a text without descriptors", seconds=5)
        for one in held:
            one.close()
        return f"{said} | {posted_for(world, 5, 'few descriptors')}"


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
    offset = with_clock(world, "+0\n")
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
    offset = with_clock(world, "+31536000\n")
    world.call("POST", "/status/snooze", {"minutes": 60})
    until(lambda: world.call("GET", "/status")["worker"]["pid"] is None, "the pause")
    offset.write_text("+0\n")
    waited = until(lambda: world.call("GET", "/status")["worker"]["pid"], "a worker again")
    return f"running again {waited:.1f} s after the clock was right"


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
        asked = [threads.submit(status_of, world, body) for _ in range(24)]
        while not all(one.done() for one in asked):
            family = [pid, *children(pid), *(one for child in children(pid) for one in children(child))]
            most = max(most, sum(anonymous_bytes(one) or 0 for one in family))
            time.sleep(0.02)
    if most >= _TOTAL_BYTES:
        raise SystemExit(f"All processes together took {most / 1e6:.0f} MB.")
    answers = sorted({one.result() for one in asked})
    return f"{most / 1e6:.0f} MB at most; answers {', '.join(answers)}"


FAULTS: Mapping[str, Case] = {
    "disk_full": Case(inject=of_files.disk_full, disk="small"),
    "full_disk_at_start": Case(inject=of_files.full_disk_at_start, disk="small", quick=True),
    "full_disk_after_kill": Case(inject=of_files.full_disk_after_kill, disk="small", quick=True),
    "worker_log_unwritable": Case(inject=of_files.worker_log_unwritable),
    "backup_killed": Case(inject=of_files.backup_killed, quick=True),
    "restore_killed": Case(inject=of_files.restore_killed),
    "read_only_disk": Case(inject=of_files.read_only_disk, disk="image", quick=True),
    "no_file_growth": Case(inject=of_files.no_file_growth),
    "worker_stopped": Case(inject=worker_stopped),
    "worker_killed_early": Case(inject=worker_killed_early),
    "worker_out_of_memory": Case(inject=worker_out_of_memory),
    "generator_stopped": Case(inject=generator_stopped),
    "adapter_damaged": Case(inject=of_files.adapter_damaged, quick=True),
    "adapter_truncated": Case(inject=of_files.adapter_truncated),
    "adapter_deleted": Case(inject=of_files.adapter_deleted),
    "checkpoint_damaged": Case(inject=of_files.checkpoint_damaged),
    "database_locked": Case(inject=of_files.database_locked),
    "database_damaged": Case(inject=of_files.database_damaged, quick=True),
    "database_missing": Case(inject=of_files.database_missing, quick=True),
    "second_daemon": Case(inject=second_daemon, quick=True),
    "no_descriptors": Case(inject=no_descriptors),
    "idle_connections": Case(inject=idle_connections),
    "clock_set_back": Case(inject=clock_set_back),
    "idle_hook_at_start": Case(inject=idle_hook_at_start, quick=True),
    "clock_was_wrong": Case(inject=clock_was_wrong),
    "wake_lock_left": Case(inject=wake_lock_left),
    "total_memory": Case(inject=total_memory),
}
