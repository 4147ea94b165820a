"""The environment of child processes: OpenMP and the allocator; and what a tool answers that runs in one."""

import json
import os
import sys
from subprocess import DEVNULL, TimeoutExpired, run
from typing import Any

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


def answer_of(tool: str, *arguments: object, failed: type[Exception]) -> dict[str, Any]:
    """The JSON object that daemon/tools/TOOL.py prints, in a process of its own. Raises `failed` with the reason."""
    command = [sys.executable, "-m", f"pocketllm.daemon.tools.{tool}", *map(str, arguments)]
    try:
        done = run(command, stdin=DEVNULL, capture_output=True, env=child_environment(), timeout=_TOOL_SECONDS)
    except TimeoutExpired as error:
        raise failed(f"The {tool} process took more than {_TOOL_SECONDS} seconds. Try again.") from error
    except OSError as error:
        raise failed(f"The {tool} process could not start: {error}. Try again.") from error
    if done.returncode < 0:
        raise failed(f"The {tool} process was killed by signal {-done.returncode}, perhaps because memory ran out.")
    if done.returncode:
        raise failed(f"The {tool} process failed: {last_words(done.stderr)}. Check the disk space, then try again.")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def last_words(output: bytes) -> str:
    """The last line of a process's output, shortened; of a traceback, the error."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1][:_LAST_WORDS_CHARACTERS] if lines else "no output"
