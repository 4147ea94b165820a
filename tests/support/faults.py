"""Faults of the machine, for as long as a test wants them."""

import ctypes
import platform
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_room(most: int = 0) -> Iterator[None]:
    """Let every write to a file fail that would make it longer than this, as on a full disk.

    most: bytes. It is so in this process and in those that it starts.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


#: The number of the call, by processor.
_SETPRIORITY = {"x86_64": 141, "aarch64": 140}


def forbid_setpriority() -> None:
    """Let the kernel refuse it to this process for good, as systemd's `SystemCallFilter=~@resources` does."""
    call = _SETPRIORITY[platform.machine()]
    # Of classic BPF: load the call's number; unless it is this one, skip the next; refuse with EPERM; allow.
    lines = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((38, 1, 0, 0, 0), (22, 2, ctypes.byref(program), 0, 0)):  # no new privileges; seccomp
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
