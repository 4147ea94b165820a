"""A llama.cpp server that ends with the process that started it.

Run as `python -P child.py PARENT PROGRAM ARGUMENTS`, with the arguments of llama-server. PROGRAM is its path, and
replaces this process; or it is xllamacpp, which is run in this one. Nothing of ours is imported, to start quickly.
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: Sequence[str]) -> int:
    """Become the server. Returns only where there is nobody to serve."""
    parent, program, *rest = arguments
    # The kernel ends us with our parent, however that ends; and it keeps to that through exec.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return os.EX_UNAVAILABLE  # it had ended before we said so
    if program != "xllamacpp":
        os.execv(program, [program, *rest])
    _serve(rest)
    return os.EX_SOFTWARE


def _serve(arguments: Sequence[str]) -> None:
    """What llama-server does with these arguments, by the package."""
    import xllamacpp

    parsed = _parsed(arguments)
    params: Any = xllamacpp.CommonParams()
    params.model.path = parsed.model
    params.hostnames = [parsed.host]
    params.n_ctx, params.n_parallel = parsed.ctx_size, parsed.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = parsed.threads
    params.warmup, params.verbosity = False, 1
    params.cache_ram_mib, params.ui = 0, False
    if parsed.lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(parsed.lora, 1.0)]
    server = xllamacpp.Server(params)
    while server:
        signal.pause()


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--host", "--lora"):
        parser.add_argument(name)
    for name in ("--ctx-size", "--parallel", "--threads"):
        parser.add_argument(name, type=int)
    parser.add_argument("--no-warmup", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
