"""Runs a llama.cpp server that is killed with the process that started it.

`python -P child.py PARENT DATA_LIMIT PROGRAM ARGUMENTS`, with the arguments of llama-server. DATA_LIMIT is its
RLIMIT_DATA in bytes. PROGRAM is its path, which replaces this process, or xllamacpp, which runs in it. Imports nothing
of ours, to start quickly.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: Sequence[str]) -> int:
    """Become the server. Returns only if the parent is gone."""
    parent, data_limit, program, *rest = arguments
    # The kernel kills this process when its parent dies; that survives exec.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return os.EX_UNAVAILABLE  # the parent died before the call
    with suppress(ValueError):  # the user's own limit is lower, and stays
        resource.setrlimit(resource.RLIMIT_DATA, (int(data_limit), int(data_limit)))
    if program != "xllamacpp":
        os.execv(program, [program, *rest])
    _serve(rest)
    return os.EX_SOFTWARE


def _serve(arguments: Sequence[str]) -> None:
    """Run the package's server with llama-server's arguments."""
    import xllamacpp

    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    params: Any = xllamacpp.CommonParams()
    params.model.path = options["--model"]
    params.hostnames = [options["--host"]]
    params.n_ctx, params.n_parallel = int(options["--ctx-size"]), int(options["--parallel"])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(options["--threads"])
    params.warmup, params.verbosity = False, 1
    params.cache_ram_mib, params.ui = 0, False
    if lora := options.get("--lora"):
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    server = xllamacpp.Server(params)
    while server:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
