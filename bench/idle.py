"""What the daemon costs while it does nothing: processor time, wake-ups and memory, with all sensors as on a phone.

python -m bench.idle [--minutes 10] [--quick]

The daemon believes itself on a phone: commands with the names of Termux' and Android's are on its PATH and answer.
Their processor time is counted as the daemon's. A wake-up is a thread of the daemon that was asleep and ran.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common.child import memory_of
from bench.common.harness import Limit, finish, parser, progress, start
from bench.common.shapes import ensure, models_folder
from pocketllm.child import running_daemon

LIMITS = {"cpu_percent": Limit(at_most=0.5), "wakeups_a_minute": Limit(at_most=60)}
#: After its start the daemon has a few things to do.
_SETTLE_SECONDS = 20.0
_BATTERY = '{"percentage": 60, "plugged": "UNPLUGGED", "status": "DISCHARGING", "temperature": 25.1, "health": "GOOD"}'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    settle, seconds = (2.0, 3.0) if options.quick else (_SETTLE_SECONDS, 60 * options.minutes)
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny", "bfloat16").absolute()
        folder, commands = Path(scratch) / "data", Path(scratch) / "bin"
        (folder / "models").mkdir(parents=True)
        (folder / "models" / model.name).symlink_to(model)
        for name, answer in {"termux-battery-status": _BATTERY, "getprop": "1"}.items():
            _executable(commands, name, answer)
        os.environ |= {"TERMUX_VERSION": "bench", "PATH": f"{commands}:{os.environ['PATH']}"}
        with running_daemon(folder, [sys.executable, "-m", "pocketllm", "serve", "--model", model.name]) as client:
            client.post("texts", body=[{"text": "A few words that are not enough for a job.", "source": "bench"}])
            pid = int(client.get("health")["pid"])
            time.sleep(settle)
            progress(f"idle for {seconds:g} s ...")
            cpu, wakeups, began = _cpu_seconds(pid), _wakeups(pid), time.monotonic()
            time.sleep(seconds)
            passed = time.monotonic() - began
            cpu, wakeups = _cpu_seconds(pid) - cpu, _wakeups(pid) - wakeups
            resident = memory_of(pid)["VmRSS"]
            readings = {reading["name"]: reading["value"] for reading in client.get("status")["readings"]}
    if (readings["battery"], readings["screen"]) != (60, False):
        raise SystemExit(f"The daemon has not taken this for a phone: {readings}")
    values: dict[str, float | None] = {
        "cpu_percent": 100 * cpu / passed,
        "wakeups_a_minute": 60 * wakeups / passed,
        "memory_mb": resident / 1e6,
    }
    raw = {"seconds": passed, "cpu_seconds": cpu, "wakeups": wakeups}
    return finish("idle", [], values=values, limits=LIMITS, raw=raw, options=options)


def _cpu_seconds(pid: int) -> float:
    """Of the process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _wakeups(pid: int) -> int:
    """How often its threads have gone to sleep; what threads that have ended did is lost, and counts as nothing."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def _executable(folder: Path, name: str, answer: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.idle", "What the daemon costs while it does nothing.")
    made.add_argument("--minutes", type=float, default=10)
    made.add_argument("--models", type=Path, help="keep the tiny model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
