"""Runs a daemon as a child process on a folder, and stops it whatever happens."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pocketllm.errors import CommandError, DaemonLost, NoDaemon
from pocketllm.home import announced_target, read_document

if TYPE_CHECKING:
    from pocketllm.client import Client

START_SECONDS = 60.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.1
LOG_TAIL_LINES = 15


@contextmanager
def running_daemon(
    data_dir: Path,
    command: Sequence[str],
    *,
    start_seconds: float = START_SECONDS,
    settings: Mapping[str, str] | None = None,
) -> "Iterator[Client]":
    """Start a daemon on an existing folder, yield a client of it, and stop it at the end.

    It is also stopped on errors, on Ctrl-C and on SIGTERM. Its output goes to `daemon.log` in the folder; when it
    dies, the CommandError shows the log's end. Must be entered in the main thread.

    settings: by their names in the environment, without the prefix.
    """
    log = data_dir / "daemon.log"
    with handled(leave, signal.SIGTERM, signal.SIGHUP), log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", "0", "--data-dir", str(data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(os.environ, data_dir)
            | {f"POCKETLLM_{name}": value for name, value in (settings or {}).items()},
            # Ctrl-C in the terminal must reach this process alone, which then stops the daemon in order.
            start_new_session=True,
        )
        try:
            with wait_until_answering(process, data_dir, log, start_seconds) as client:
                yield client
        except (NoDaemon, DaemonLost) as error:
            if process.poll() is None:
                raise
            raise failed(process, log) from error
        finally:
            stop(process)


def child_environment(environ: Mapping[str, str], data_dir: Path) -> dict[str, str]:
    """Return the environment of a daemon with the default settings, whatever the user's own daemon has.

    Only the gate differs: a demo waits neither for a charger nor for sensors that this machine lacks, but unsafe
    readings still block a job. And no job starts by itself.
    """
    others = {name: value for name, value in environ.items() if not name.startswith("POCKETLLM_")}
    return others | {
        "POCKETLLM_CONFIG": str(data_dir / "config.toml"),
        "POCKETLLM_TRAINING__NEW_WORDS": str(10**9),
        "POCKETLLM_GATE__REQUIRE_POWER": "false",
        "POCKETLLM_GATE__TRAIN_WHEN_UNKNOWN": '["power", "battery", "temperature"]',
    }


def wait_until_answering(
    process: "subprocess.Popen[bytes]", data_dir: Path, log: Path, start_seconds: float
) -> "Client":
    """Return a client once the daemon answers. Raises CommandError when it dies or takes too long."""
    from pocketllm.client import Client

    deadline = time.monotonic() + start_seconds
    while process.poll() is None and time.monotonic() < deadline:
        # After a crash `daemon.json` stays, and another daemon may have got the same port.
        its_own = read_document(data_dir / "daemon.json").get("pid") == process.pid
        if its_own and (target := announced_target(data_dir)):
            client = Client(target)
            with suppress(CommandError):
                client.get("health")
                return client
            client.close()
        time.sleep(POLL_SECONDS)
    raise failed(process, log)


def failed(process: "subprocess.Popen[bytes]", log: Path) -> CommandError:
    """Return the error for a daemon that died or does not answer, with the end of its log."""
    code = process.poll()
    happened = "did not answer in time" if code is None else f"stopped with exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return CommandError(
        "\n".join([f"The daemon {happened}. Last lines of its log, {log}:", *(f"  {line}" for line in lines)])
    )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the daemon and its children: ask, wait, then kill. A second Ctrl-C does not interrupt this."""
    with handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        # The daemon leads its own process group, so this reaches a worker that outlived it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def leave(number: int, frame: FrameType | None) -> None:
    """Handle a signal by SystemExit, so that `finally` blocks run."""
    raise SystemExit(128 + number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object] | signal.Handlers, *signals: int) -> Iterator[None]:
    """Handle these signals so inside the block."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
