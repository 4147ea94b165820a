"""A command in a process of its own, and what it took: time, resident memory, anonymous memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import cgroups
from bench.common.child import memory_of
from bench.common.harness import ROOT

MIB = 1 << 20
SAMPLE_SECONDS = 0.02
#: How closely `smallest_limit` looks.
RESOLUTION_BYTES = 16 * MIB


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a finished process took. Its own report, when it made one, is its last line of stdout."""

    exit_code: int  #: negative: the signal that ended it
    seconds: float  #: from start to end, imports and all
    peak_rss_bytes: int  #: by the kernel's own count, file pages included
    peak_anonymous_bytes: int  #: the most that was sampled from outside
    report: dict[str, Any]  #: empty when it made none
    error: str  #: the last line that it wrote to stderr
    timed_out: bool

    @property
    def completed(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.exit_code == 0


def run(
    command: Sequence[str],
    *,
    limit_bytes: int | None = None,
    evict: Sequence[Path] = (),
    timeout_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Measurement:
    """Run a command line in the checkout and measure it, under a hard limit when one is given.

    evict: files whose pages leave the page cache first. A page is charged to the group that touches it first, so
    without this the weights that an earlier run has read would cost a limited run nothing.
    environment: the process's own; by default it has ours.
    Raises OSError when there is a limit and cgroups cannot be written. Whatever is raised, the process is ended.
    """
    for file in evict:
        _evict(file)
    with (
        cgroups.limited(limit_bytes) if limit_bytes is not None else nullcontext(list[str]()) as in_group,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        started = time.monotonic()
        process = subprocess.Popen(
            [*in_group, *command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        try:
            sampled, maxrss, timed_out = _watch(process, timeout_seconds)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - started
        error_lines = _lines(err)
        return Measurement(
            exit_code=process.returncode,
            seconds=seconds,
            peak_rss_bytes=maxrss,
            peak_anonymous_bytes=sampled,
            report=_report(_lines(out)),
            error=error_lines[-1] if error_lines else "",
            timed_out=timed_out,
        )


def report_of(command: Sequence[str], what: str, **how: Any) -> dict[str, Any]:
    """The report of a command that is to run to its end. Raises SystemExit, which says what failed, when it does not.

    how: see `run`.
    """
    found = run(command, **how)
    if not found.completed:
        raise SystemExit(f"{what} failed: {found.error or f'exit code {found.exit_code}'}")
    return found.report


def smallest_limit(
    completes: Callable[[int], bool], *, floor: int, ceiling: int, resolution: int = RESOLUTION_BYTES
) -> int | None:
    """The smallest limit in bytes, to `resolution`, under which `completes(limit)`; None when not even `ceiling` does.

    `floor` is a limit under which it is known to fail, such as what an idle process takes.
    """
    if not completes(ceiling):
        return None
    fails, works = floor, ceiling
    while works - fails > resolution:
        middle = (fails + works) // 2
        if completes(middle):
            works = middle
        else:
            fails = middle
    return works


def _watch(process: subprocess.Popen[bytes], timeout_seconds: float | None) -> tuple[int, int, bool]:
    """Wait for the end; return the most anonymous memory seen, the kernel's peak RSS, and whether time ran out."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    anonymous, timed_out = 0, False
    while True:
        # wait4 rather than poll: the kernel's own count of the peak comes with the exit status. It starts from the
        # peak of the process that started the child, so benches that use this do not import torch themselves.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return anonymous, usage.ru_maxrss * 1024, timed_out
        anonymous = max(anonymous, memory_of(process.pid).get("RssAnon", 0))
        if deadline is not None and time.monotonic() > deadline and not timed_out:
            timed_out = True
            process.send_signal(signal.SIGKILL)
        time.sleep(SAMPLE_SECONDS)


def _evict(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _report(lines: Sequence[str]) -> dict[str, Any]:
    try:
        report = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}
