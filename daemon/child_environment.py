"""The environment of the processes that compute."""

import os

#: glibc gives memory back to the system after each large `free`, and the page faults of taking it again cost a third
#: of a step's elementwise work (silu of 2048 x 1536 bf16: 1.8 against 0.6 ms). So it shall keep what a step uses
#: again and again: take blocks below 32 MB from the heap, grow that by 16 MB, and let 256 MB of it lie free. One heap
#: for all threads: those of their own never shrink, so that after memory ran out once a smaller try found none
#: either. It costs a replica (engine/streamed/model.py) a few per cent. Other C libraries ignore these.
_KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}

#: How long threads of GNU's OpenMP look for work before they sleep: some 80 microseconds. A token, and a step of exact
#: gradients, is thousands of products of some microseconds; waking the threads for each would take longer than the
#: products. Tokens a second by torch, alone and beside a job with two replicas (SmolLM2-135M, two cores): without
#: 31 and 33, with 1,000 turns 44 and 23, 4,000 50 and 12, 10,000 51 and 6. A step of exact gradients: without 1.9 s,
#: with 4,000 turns 1.3, 20,000 1.2. A generator is mostly alone: a job waits while the owner is there.
_SPIN_TURNS = "4000"

#: What a child gets where the user has set nothing else.
CHILD_SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": _SPIN_TURNS, **_KEEP_MEMORY}

#: The most of a last line that goes into an error.
_LAST_WORDS_CHARACTERS = 300


def child_environment() -> dict[str, str]:
    """Ours, with OpenMP threads that soon sleep while they wait, and an allocator that keeps its memory.

    By default the threads spin without end. At the lowest priority, on cores that others use too, the spinning thread
    takes the time that the one it waits for would need: a step was seen to take seven times as long then, and a tiny
    model's a hundred times. What the user has set stays.
    """
    return {**CHILD_SETTINGS, **os.environ}


def last_words(output: bytes) -> str:
    """The last line that a process has said, cut short: of a traceback the error itself."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1][:_LAST_WORDS_CHARACTERS] if lines else "it said nothing"
