"""Memory of processes: current and peak, and a limit that the kernel enforces."""

import ctypes
import math
import resource
import warnings
from contextlib import suppress
from pathlib import Path

_STATUS, _MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
#: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h.
_RETURN_LARGE_BLOCKS = {-3: 2**20, -1: 2**21, -8: 1}
#: Private data that the kernel counts but that is hardly touched: thread stacks, allocator arenas, generated code.
#: Measured on x86-64: 81 MB more than became resident.
UNTOUCHED_BYTES = 100 * 10**6
#: Messages of torch, oneDNN and C++ when an allocation fails; on the CPU they have no exception of their own.
_OUT_OF_MEMORY = ("can't allocate memory", "could not create a memory", "std::bad_alloc")
#: oneDNN says these also for other reasons, as where a sandbox forbids it to write code and run it.
_PERHAPS_OUT_OF_MEMORY = ("could not create a primitive", "could not execute a primitive")
#: With more than this left, memory is not the reason.
_LITTLE_BYTES = 256 * 10**6
#: What many small allocations leave to a library in Rust, in which a failed one may hang the process.
_SPARE_BYTES = 16 * 10**6


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
    Does nothing without /proc/self/status. A lower limit of the user's own (`ulimit -d`) stays.
    """
    # The limit is on VmData, which is larger than the resident part.
    if (current := bytes_of("VmData")) is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = current + more_bytes + UNTOUCHED_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


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
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed. To be asked while the error is handled, when what it refers to is not yet free."""
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said for words in _OUT_OF_MEMORY):
        return True
    return any(words in said for words in _PERHAPS_OUT_OF_MEMORY) and _free_bytes() < _LITTLE_BYTES


def check_room() -> None:
    """Raise MemoryError shortly before memory ends."""
    if _free_bytes() < _SPARE_BYTES:
        raise MemoryError


def _free_bytes() -> float:
    """What this process may still allocate, as far as the system says."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = math.inf if limit == resource.RLIM_INFINITY else limit - (bytes_of("VmData") or 0)
    available = bytes_of("MemAvailable", _MEMORY)
    return allowed if available is None else min(allowed, available)


def bytes_of(name: str, file: Path = _STATUS) -> int | None:
    """A size of this process, or in another file of /proc; None if it does not say."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return int(lines[name].removesuffix("kB").strip()) * 1024
    except (OSError, KeyError, ValueError):
        return None


def give_back_free_memory() -> None:
    """Return freed memory to the system, if the C library supports it (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
