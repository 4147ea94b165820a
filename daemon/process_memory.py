"""The memory of processes: how much they hold, what this one held at most, and a cap that the kernel keeps."""

import ctypes
import resource
import warnings
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
#: What the kernel counts as private data but is hardly ever touched: the stacks of threads, what the allocator sets
#: aside for each of them, code that is generated. Seen on x86-64: 81 MB more than what became resident.
UNTOUCHED_BYTES = 100 * 10**6
#: What torch, oneDNN and C++ say when an allocation fails; they have no exception of their own for that on the CPU.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "std::bad_alloc",
)


def peak_bytes() -> int:
    """The most resident memory this process has held, file pages included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def anonymous_bytes(pid: int) -> int | None:
    """What a process holds in memory beside pages of files; None where that is not to be learned, or it is gone."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * resource.getpagesize()


def cap_anonymous_memory(more_bytes: int) -> None:
    """Let this process take at most `more_bytes` of private memory beyond what it has now.

    Memory that is touched, that is: other address space has an allowance of its own. An allocation past it
    fails inside this process (torch raises RuntimeError) instead of waking the kernel's killer, which might pick
    somebody else. Mapped weights don't count. Without /proc/self/status: no cap.
    """
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        # The limit is on VmData, which is well above the resident part: count from there.
        held = int(lines["VmData"].removesuffix("kB").strip()) * 1024
    except (OSError, KeyError, ValueError):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + more_bytes + UNTOUCHED_BYTES, hard))


def fail_where_memory_ends() -> None:
    """Let torch raise where oneDNN finds no memory for a product, in place of a warning and doing it another way.

    That way is slower by orders of magnitude (seen: a job of 17 s took 280).
    """
    warnings.filterwarnings("error", message="mkldnn_matmul failed")


def lift_cap() -> None:
    """Let this process take memory as before `cap_anonymous_memory`."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def prefer_as_victim() -> None:
    """Tell the kernel to end this process before others when memory runs out; it loses nothing by that."""
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError:
        return


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def give_back_free_memory() -> None:
    """Return what has been freed to the system, where the C library can (glibc): it keeps it for the next time."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
