"""Child processes: their environment, with OpenMP and the allocator; and those that run to their end, with a limit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE
from typing import Any

from pocketllm.daemon.errors import ChildFailed
from pocketllm.engine.errors import EngineError

#: glibc returns memory to the system after each large `free`, and the page faults of allocating it again cost a third
#: of a step's elementwise operations (silu of 2048 x 1536 bf16: 1.8, not 0.6 ms). So it keeps what a step reuses:
#: blocks below 32 MB come from the heap, which grows by 16 MB and keeps up to 256 MB free. One arena for all threads,
#: since others never shrink: after memory ran out, a smaller attempt would fail too. Other C libraries ignore these.
_KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}

#: How long threads of GNU's OpenMP spin before they sleep: some 80 microseconds. A token, or a step of exact gradients,
#: takes thousands of products of some microseconds each, and waking the threads takes longer. Tokens a second by torch
#: (SmolLM2-135M, two cores): without spinning 31, with 1,000 turns 44, 4,000 50, 10,000 51, and beside a job nearly as
#: many: the worker's priority is lower. A step of exact gradients: without 1.9 s, with 4,000 turns 1.3; more turns gain
#: nothing at that priority (docs/notes.md).
_SPIN_TURNS = "4000"
#: The same for LLVM's OpenMP, which Termux' torch has. Without it, threads sleep at once where the policy is passive.
#: Seconds of a step of exact gradients, alone and beside another one: 2.1 and 2.8 without spinning, 1.6 and 3.1 with
#: this, 1.6 and 3.2 with 1 ms, 1.6 and 3.2 with its own default of 200 ms.
_SPIN_TIME = "80us"

#: The defaults of a child's environment.
CHILD_SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": _SPIN_TURNS,
    "KMP_BLOCKTIME": _SPIN_TIME,
    **_KEEP_MEMORY,
}

#: The most characters of a last line in an error.
_LAST_WORDS_CHARACTERS = 300
#: The limit for a tool, on the largest models and the slowest phones. Usually it takes a few seconds.
_TOOL_SECONDS = 1800


def child_environment() -> dict[str, str]:
    """This process's environment, with CHILD_SETTINGS where the user has set nothing; and no backtraces of Rust's:
    to print one where memory has run out takes memory, and hangs.

    OpenMP's threads spin endlessly by default. At the lowest priority, on shared cores, a spinning thread takes the
    time of the one it waits for: a step took seven times as long, and a tiny model's a hundred times.
    """
    return {**CHILD_SETTINGS, **os.environ, "RUST_BACKTRACE": "0"}


def run(command: Sequence[str], *, timeout_seconds: float, name: str = "") -> str:
    """The command's standard output. Raises ChildFailed. name: in its message.

    It runs in its own session, so that its children are killed with it: a hung termux-api leaves one.
    """
    name = name or command[0]
    try:
        process = subprocess.Popen(
            command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=child_environment(), start_new_session=True
        )
    except OSError as error:
        raise ChildFailed(f"{name} cannot be run: {error.strerror}") from error
    with process:
        try:
            output, complaints = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(f"{name} did not answer within {timeout_seconds:g} s") from error
        finally:
            with suppress(ProcessLookupError, PermissionError):  # gone; some systems let no zombie's group be signalled
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode < 0:
        raise ChildFailed(f"{name} was killed by signal {-process.returncode}")
    if process.returncode:
        raise ChildFailed(f"{name} exited with code {process.returncode}: {last_words(complaints)}")
    return str(output, errors="replace")


def answer_of(tool: str, *arguments: object, refused: type[Exception]) -> dict[str, Any]:
    """What daemon/tools/TOOL.py gives to `answer`, in a process of its own. Raises `refused` with its reason, and
    ChildFailed.
    """
    command = [sys.executable, "-m", f"pocketllm.daemon.tools.{tool}", *map(str, arguments)]
    try:
        said = run(command, timeout_seconds=_TOOL_SECONDS, name=f"The {tool} process")
    except ChildFailed as error:
        raise ChildFailed(f"{error}. Perhaps memory or the disk was full; free some, then try again.") from error
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    if "error" in found:
        raise refused(found["error"])
    return found


def answer(work: Callable[[], dict[str, Any]]) -> None:
    """Print what the work returns, or why it cannot be done."""
    try:
        found = work()
    except EngineError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


def last_words(output: bytes) -> str:
    """The last line of a process's output, shortened; of a traceback, the error."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1][:_LAST_WORDS_CHARACTERS] if lines else "no output"
