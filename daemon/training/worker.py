"""The worker: resumes or starts one job and runs it to its adapter. `python -m pocketllm.daemon.training.worker`.

Crash-only: there is no shutdown path. Pausing is killing, and resuming is starting again. It exits when the daemon at
the other end of its standard input is gone.
"""

import argparse
import errno
import gc
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from pocketllm.daemon.locks import locked
from pocketllm.daemon.logs import describe_uncaught
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.process_memory import (
    fail_where_memory_ends,
    lift_cap,
    out_of_memory,
    peak_bytes,
    prefer_as_victim,
)
from pocketllm.daemon.training.run import TrainingRun
from pocketllm.engine.errors import EngineError, ModelFileError, TrainingDiverged
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.storage.errors import StorageTrouble, Superseded
from pocketllm.storage.store import Store

#: How long to wait for the lock of a worker that is being killed.
LOCK_SECONDS = 10.0
OUT_OF_MEMORY = (
    "The job needs more memory than training.memory_bytes allows. "
    "Lower training.block_tokens, or raise the limit; `pocketllm plan` shows what a job needs."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job to its end. Exit codes: 0 the job succeeded or failed (as stored), 75 try again later."""
    parser = argparse.ArgumentParser(description="Runs one job of a PocketLLM daemon, which starts it.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--start", type=int, required=True, help="The number of the job's start.")
    parser.add_argument("--seconds", type=float, required=True, help="What is probably left of the night.")
    parser.add_argument("--immediate", action="store_true", help="Somebody waits for it.")
    options = parser.parse_args(arguments)

    describe_uncaught()
    _die_with_parent()
    _lower_priority(immediate=options.immediate)
    prefer_as_victim()
    fail_where_memory_ends()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder = DataFolder(options.data_dir)
    with locked(folder.worker_lock, wait_seconds=LOCK_SECONDS) as acquired:
        if not acquired:
            sys.stderr.write("another worker is using this data folder\n")
            return os.EX_TEMPFAIL
        store = Store.open_for_worker(folder.database, options.job, options.start)
        try:
            finished = _run(folder, store, options.job, options.seconds)
        except (StorageTrouble, Superseded) as error:
            sys.stderr.write(f"{error}\n")
            return os.EX_TEMPFAIL
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            sys.stderr.write(f"The disk is full: {error}. Free some space.\n")
            return os.EX_TEMPFAIL
        finally:
            store.close()
    if not finished:
        # The heap is fragmented after running out of memory: resume in a fresh process. The lock is released before.
        command = [sys.executable, "-m", "pocketllm.daemon.training.worker", *(arguments or sys.argv[1:])]
        os.execv(sys.executable, command)
    return os.EX_OK


def _run(folder: DataFolder, store: Store, job_id: str, seconds: float) -> bool:
    """Run a job to its end; returns False if a fresh process is to resume it."""
    try:
        finished = _ran_in_memory(TrainingRun(folder, store, store.jobs.get(job_id), seconds))
    except EngineError as error:
        # A retry would fail the same way.
        cause = _cause(error, folder.models / store.jobs.get(job_id).model)
        store.jobs.fail(job_id, error=cause, now=datetime.now(UTC))
        finished = True
    store.jobs.set_peak_memory(job_id, peak_bytes())
    return finished


def _cause(error: EngineError, model: Path) -> str:
    """The error's message; of a loss that is no number, that of damaged weights if they are the cause."""
    if isinstance(error, TrainingDiverged):
        try:
            open_model_folder(model, verify=True)
        except ModelFileError as damage:
            return str(damage)
    return str(error)


def _ran_in_memory(run: TrainingRun) -> bool:
    """Run a job to its end; False if memory ran out and a retry with less is possible."""
    try:
        run.run()
        return True
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Outside the handler, since the exception refers to the activations.
    gc.collect()
    lift_cap()
    if run.use_less_memory():
        return False
    run.store.jobs.fail(run.job.id, error=OUT_OF_MEMORY, now=datetime.now(UTC))
    return True


def _lower_priority(*, immediate: bool) -> None:
    """Leave the processors to whatever else wants them; an immediate job gets a tenth beside a busy program."""
    nice = 10 if immediate else 19
    with suppress(OSError):  # it has a lower one already
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if not immediate:
        # Beside a job, the 99th percentile of suggestions was 340 ms by nice alone, and is 220 ms by this (two cores).
        with suppress(OSError, AttributeError):  # not on every system
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Where Linux divides the time between sessions, nice counts within ours alone (sched(7), autogroup).
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


def _die_with_parent() -> None:
    """Exit when the daemon closes the other end of standard input, which its death does too."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(os.EX_TEMPFAIL)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    sys.exit(main())
