"""What the faults have in common: ways to break something, and to see what the owner sees."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.faults.disks import CannotInject, Kind, run
from bench.world import World, until


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault."""

    inject: Callable[[World], str]  #: injects it and takes its cause away; returns what the owner saw
    disk: Kind | None = None  #: a tmpfs, or an ext4 in a file
    quick: bool = False  #: also in a quick run


def used_on_full_disk(world: World) -> str:
    """What a daemon says on a full disk, on which it must start, find texts and delete one."""
    with filled(world):
        world.start()
        found = world.call("GET", "/texts?limit=500&query=fault")["data"]
        deleted_for_good(world)
        return f"{len(found)} texts found, one deleted; then {posted(world, 'a text for a full disk')}"


def deleted_for_good(world: World) -> None:
    """Delete an acknowledged text. Raises SystemExit unless its bytes are gone."""
    gone = world.acknowledged.pop(0)
    ((identity,),) = world.query("SELECT id FROM text WHERE text = ?", gone)
    if not world.call("DELETE", f"/texts/{identity}")["deletion"]["erased"]:
        raise SystemExit("A deleted text is not erased.")


def left(files: list[Path]) -> str:
    """Say that nothing is left. Raises SystemExit if something is."""
    if files:
        raise SystemExit(f"Left by a kill: {files}")
    return "nothing is left"


def kill(world: World) -> None:
    """Kill the daemon."""
    assert world.process is not None
    world.process.kill()
    world.process.wait()


@contextmanager
def filled(world: World) -> Iterator[None]:
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
def limited(pid: int, limit: int, value: int) -> Iterator[None]:
    """Meanwhile a process has a lower limit of something."""
    soft, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (value, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, limit, (soft, hard))


def posted_for(world: World, seconds: float, what: str) -> str:
    """Post texts for so long; all that was answered, and what stood in the way of a job."""
    saw, ends = set(), time.monotonic() + seconds
    while time.monotonic() < ends:
        saw |= {posted(world, f"a text for a {what} {time.monotonic()}"), blockers(world)}
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


def blockers(world: World) -> str:
    """What stands in the way of a job."""
    try:
        blockers = world.call("GET", "/status")["training"]["blockers"]
    except httpx.HTTPStatusError as error:
        return f"/status: {error.response.status_code} {error.response.json()['detail']}"
    except httpx.HTTPError as error:
        return type(error).__name__
    return "; ".join(blocker["message"] for blocker in blockers)


def last_event(world: World) -> str:
    """The newest event of any job."""
    events = world.query("SELECT kind, message FROM event ORDER BY id DESC LIMIT 1")
    return ": ".join(events[0])


def served_by(world: World, damage: Callable[[Path], object]) -> str:
    """What /status says once the served adapter's weights are damaged and text is asked for."""
    until(lambda: not world.open_jobs(), "the job's end")
    newest = world.call("GET", "/adapters")["data"][0]["id"]
    world.call("POST", f"/adapters/{newest}/serve")
    damage(world.folder / "adapters" / newest / "adapter_model.safetensors")
    world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
    return str(world.call("GET", "/status")["model"]["message"])


def flip(file: Path) -> None:
    """Change a byte near the end."""
    with file.open("r+b") as content:
        content.seek(-100, 2)
        byte = content.read(1)[0]
        content.seek(-1, 1)
        content.write(bytes([byte ^ 0x40]))


def refused_start(world: World) -> str:
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


def killed(world: World, *words: str, when: Callable[[], object]) -> None:
    """Run a command, and kill it once something is so."""
    command = [sys.executable, "-m", "pocketllm", words[0], "--data-dir", str(world.folder), *words[1:]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(lambda: process.poll() is not None or when(), "the moment for the kill", between_seconds=0.0002)
        process.kill()
    if process.returncode != -signal.SIGKILL:
        raise CannotInject("the command was done before it could be killed")


def command(world: World, name: str, *words: str) -> None:
    """Run a command of pocketllm on the folder."""
    run(sys.executable, "-m", "pocketllm", name, "--data-dir", str(world.folder), *words)


def children(pid: int) -> list[int]:
    """The children of a process."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += map(int, listing.read_text().split())
    return found


def status_of(world: World, body: Mapping[str, object]) -> str:
    """The status of an answer."""
    try:
        world.call("POST", "/v1/completions", body, seconds=300)
    except httpx.HTTPStatusError as error:
        return str(error.response.status_code)
    return "200"


def with_clock(world: World, offset: str) -> Path:
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
