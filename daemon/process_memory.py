"""Memory of processes: current and peak, and a limit that the kernel enforces."""

import ctypes
import resource
import warnings
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
#: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h.
_RETURN_LARGE_BLOCKS = {-3: 2**20, -1: 2**21, -8: 1}
#: Private data that the kernel counts but that is hardly touched: thread stacks, allocator arenas, generated code.
#: Measured on x86-64: 81 MB more than became resident.
UNTOUCHED_BYTES = 100 * 10**6
#: Messages of torch, oneDNN and C++ when an allocation fails; on the CPU they have no exception of their own.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "std::bad_alloc",
)


def peak_bytes() -> int:
    """Peak resident memory of this process, including file pages."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def anonymous_bytes(pid: int) -> int | None:
    """Anonymous resident memory of a process; None if it is unknown, or the process is gone."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * resource.getpagesize()


def cap_anonymous_memory(more_bytes: int) -> None:
    """Limit this process to `more_bytes` of touched private memory beyond its current memory.

    Untouched address space has its own allowance. An allocation beyond the limit fails in this process (torch raises
    RuntimeError) instead of waking the kernel's OOM killer, which might kill another one. Mapped weights do not count.
    Does nothing without /proc/self/status.
    """
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        # The limit is on VmData, which is larger than the resident part.
        current = int(lines["VmData"].removesuffix("kB").strip()) * 1024
    except (OSError, KeyError, ValueError):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (current + more_bytes + UNTOUCHED_BYTES, hard))


def return_large_blocks() -> None:
    """Let glibc return what large requests took, in place of keeping it for the next one; others' libraries do.

    By itself its thresholds grow with the largest block that was freed, and each thread has an arena of its own.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _RETURN_LARGE_BLOCKS.items():
            mallopt(parameter, value)


def fail_where_memory_ends() -> None:
    """Let torch raise where oneDNN has no memory for a product, instead of warning and falling back.

    The fallback is slower by orders of magnitude (a job of 17 s took 280).
    """
    warnings.filterwarnings("error", message="mkldnn_matmul failed")


def lift_cap() -> None:
    """Remove the limit of `cap_anonymous_memory`."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def prefer_as_victim() -> None:
    """Let the kernel's OOM killer prefer this process, which loses nothing by being killed."""
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError:
        return


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def give_back_free_memory() -> None:
    """Return freed memory to the system, if the C library supports it (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
