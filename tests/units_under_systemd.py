"""Both units under a real systemd, installed by the command: sandbox, memory limits, and a real job in bfloat16.

`python -m tests.arm64_system` runs this in its virtual machine, as root. It changes the machine that it runs on.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pocketllm.client import Client
from pocketllm.home import find_target
from tests.support.daemon.real_daemon import eventually

POCKETLLM = "/opt/pocketllm/bin/pocketllm"
OWNER = "owner"
#: A model of a few million parameters, which computes in bfloat16.
MODELS = Path("/var/tmp/models")
CONFIG = 'model = "tiny"\n[gate]\nrequire_power = false\nrequire_idle = false\nrequire_screen_off = false\n'
NOTES = [{"text": f"Note {day}: up to the hut, wind west, kettle mended.", "source": "notes"} for day in range(40)]
STEPS = 3
LIMITS = {"memory.high": 1500 << 20, "memory.max": 2 << 30, "memory.swap.max": 256 << 20, "pids.max": 128}
#: An emulated core takes some fifty times as long as a real one.
SECONDS = 1200


def say(text: object) -> None:
    """To the machine's console: an emulated minute is long."""
    sys.stdout.write(f"{time.monotonic():.0f} s: {text}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Service:
    """A unit of one of systemd's managers, and how to give its owner's commands."""

    data: Path
    config: Path
    manager: Sequence[str]  #: systemctl
    command: Sequence[str]  #: comes before the owner's commands
    system: bool

    def run(self, *command: str) -> str:
        say(" ".join(command))
        return subprocess.run([*self.command, *command], check=True, stdout=subprocess.PIPE, text=True).stdout

    def show(self, name: str) -> str:
        return self.run(*self.manager, "show", "--value", "-p", name, "pocketllm").strip()

    def install(self) -> None:
        """Install it. Of a failure, systemd knows more than the command."""
        self.run("mkdir", "-p", str(self.config.parent), str(self.data))
        self.run("cp", "-r", str(MODELS), str(self.data))
        self.config.write_text(CONFIG)
        # One that it sees: the scan's priority, which the system unit forbids, must not stop the tick.
        watched = [{"path": str(self.data / "models"), "name": "watched"}]
        (self.data / "folders.json").write_text(json.dumps(watched))
        try:
            self.run(POCKETLLM, "service", "install", *(["--system"] if self.system else []))
        finally:
            say(subprocess.run(["journalctl", "-n", "30", "-o", "cat"], stdout=subprocess.PIPE, text=True).stdout)

    @property
    def group(self) -> Path:
        """Its control group."""
        return Path("/sys/fs/cgroup") / self.show("ControlGroup").removeprefix("/")


def systems() -> Service:
    return Service(Path("/var/lib/pocketllm"), Path("/etc/pocketllm/config.toml"), ("systemctl",), (), True)


def users() -> Service:
    subprocess.run(["useradd", "--create-home", OWNER], check=True)
    subprocess.run(["loginctl", "enable-linger", OWNER], check=True)
    number = subprocess.run(["id", "-u", OWNER], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    eventually(lambda: Path(f"/run/user/{number}/bus").exists(), "the user's manager")
    home = Path("/home") / OWNER
    become = ("runuser", "-u", OWNER, "--", "env", f"XDG_RUNTIME_DIR=/run/user/{number}", f"HOME={home}")
    config = home / ".config/pocketllm/config.toml"
    return Service(home / ".local/share/pocketllm", config, ("systemctl", "--user"), become, False)


def of_process(pid: int, file: str, name: str) -> str:
    """A line of a file in /proc about a process, without its name."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(line.removeprefix(name).strip() for line in lines if line.startswith(name))


@pytest.mark.parametrize("made", [systems, users])
def test_a_job_in_bfloat16_runs_to_its_end_within_the_unit(made: Any) -> None:
    service = made()
    service.install()
    assert service.show("ActiveState") == "active"
    seen = {name: int((service.group / name).read_text()) for name in LIMITS}
    assert seen == LIMITS
    with Client(find_target(None, service.data), answer_seconds=SECONDS) as client:
        client.post("texts", body=NOTES)
        job = client.post("jobs", body={"steps": STEPS})
        worker = eventually(lambda: client.get("status")["worker"]["pid"], "a worker", seconds=SECONDS)
        assert of_process(worker, "status", "NoNewPrivs:") == "1"
        assert of_process(worker, "status", "CapEff:") == "0" * 16
        assert of_process(worker, "status", "Uid:").split()[0] != "0"
        assert of_process(worker, "status", "Seccomp:") == "2"
        eventually(lambda: client.get("jobs", job["id"])["step"] >= 1, "a step", seconds=SECONDS)
        assert of_process(worker, "limits", "Max data size").split()[0].isdigit()
        open_states = ("queued", "running", "paused")
        eventually(lambda: client.get("jobs", job["id"])["state"] not in open_states, "its end", seconds=SECONDS)
        now = client.get("jobs", job["id"])
        assert now["state"] == "succeeded", now
        assert now["plan"]["compute_dtype"] == "bfloat16"
        answer = client.post("generate", body={"prompt": "Note 41:", "max_tokens": 8})
        assert answer["text"]
        readings = {reading["name"]: reading["value"] for reading in client.get("status")["readings"]}
        assert readings["memory pressure"] is not None
    peaks = {name: int((service.group / name).read_text()) for name in ("memory.peak", "pids.peak")}
    events = (service.group / "memory.events").read_text().split()
    say(f"{service.manager}: {peaks}, {' '.join(events)}, {os.cpu_count()} processors, {now['method']}")
    assert events[events.index("oom_kill") + 1] == "0"
    if service.system:
        files = Path("/var/backups/pocketllm")
        service.run("install", "-d", "-o", "pocketllm", str(files))
        service.run(POCKETLLM, "backup", "--data-dir", str(service.data), str(files / "today.tar"))
        others = [path for path in service.data.rglob("*") if path.lstat().st_uid != service.data.stat().st_uid]
        assert service.data.owner() == "pocketllm" and others == []
    service.run(POCKETLLM, "service", "uninstall", *(["--system"] if service.system else []))
    assert service.show("ActiveState") == "inactive"
