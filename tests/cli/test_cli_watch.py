"""`pocketllm watch`: lines in a pipe, a live view at a terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.commands import WAIT_SECONDS, Run, child_environment
from tests.support.daemon_documents import JOB
from tests.support.daemon_double import DaemonDouble

EVENTS = [
    {"id": 8, "job": "job-1", "at": "2026-05-01T10:00:00Z", "kind": "paused", "message": "no power"},
    {"id": 9, "job": "job-1", "at": "2026-05-01T10:05:00Z", "kind": "resumed", "message": "a \x1b[31mworker"},
]


def test_in_a_pipe_each_event_is_a_line(run: Run, double: DaemonDouble) -> None:
    double.events = list(EVENTS)
    result = run("watch")
    first, second = result.stdout.splitlines()
    assert first.endswith("job-1 paused: no power") and "\x1b" not in second
    assert result.exit_code == 1 and "too busy" in result.stderr
    assert [path for _, path, _ in double.requests][:2] == ["/events", "/events?after=7&wait=30"]
    assert double.requests[2][1] == "/events?after=9&wait=30"


def test_with_json_each_line_is_a_document(run: Run, double: DaemonDouble) -> None:
    double.events = list(EVENTS)
    assert [json.loads(line) for line in run("watch", "--json").stdout.splitlines()] == EVENTS


def test_at_a_terminal_it_is_live_and_ends_with_ctrl_c(home: Path, double: DaemonDouble) -> None:
    double.jobs = [dict(JOB)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pocketllm", "watch"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**child_environment(home), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore it, and so this process; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    said = b""
    while said.count(b"job-1") < 2 or b"battery is low" not in said:  # shown, and shown again
        said += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # at its end; who does not read makes it wait with what it still has to write
        while os.read(ours, 4096):
            pass
    assert process.wait(WAIT_SECONDS) == 0
    os.close(ours)
