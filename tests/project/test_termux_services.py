"""The service for Termux under the real runit, with the real daemon, in a prefix that looks like Termux's."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pocketllm.service import Runit, own_command
from tests.support.executables import answering, executable
from tests.support.real_daemon import eventually
from tests.support.tiny_models import tiny_model_folder

pytestmark = pytest.mark.skipif(
    shutil.which("runsvdir") is None or shutil.which("start-stop-daemon") is None,
    reason="runit is not installed: apt-get install runit",
)
#: Nothing is looked at again for a minute, as on a phone that sleeps.
CONFIG = """port = 0
model = "tiny"
idle_tick_seconds = 60
[training]
new_words = 20
steps = 2
block_tokens = 16
batch = 1
rank = 2
method = "mezo"
"""
TERMUX_SHELL = "/data/data/com.termux/files/usr/bin/sh"


class Phone:
    """A home and a prefix in which the service is installed, and what Termux's programs are told there."""

    def __init__(self, root: Path) -> None:
        self.home, self.prefix = root / "home", root / "usr"
        self.data = self.home / ".local/share/pocketllm"
        self.boots: list[subprocess.Popen[bytes]] = []
        tiny_model_folder(self.data / "models")
        (self.prefix / "tmp").mkdir(parents=True)
        commands = self.prefix / "bin"
        executable(commands, "service-daemon", "")  # nothing runs yet
        battery = {"percentage": 90, "plugged": "PLUGGED_AC", "status": "CHARGING", "temperature": 25.0}
        answering(commands, "termux-battery-status", json.dumps(battery))
        answering(commands, "getprop", "1\n")  # the screen is off
        self.calls = root / "calls"
        self.calls.touch()
        for name in ("termux-wake-lock", "termux-wake-unlock"):
            executable(commands, name, f'echo {name} >> "{self.calls}"')
        self.environment = {
            "HOME": str(self.home),
            "PREFIX": str(self.prefix),
            "TERMUX_VERSION": "0.119",
            "PATH": f"{self.prefix}/bin:/usr/bin:/bin:/usr/sbin",
            "POCKETLLM_CONFIG": str(self.home / "config.toml"),
            "POCKETLLM_FINISH_SECONDS": "0",
        }
        (self.home / "config.toml").write_text(CONFIG)

    def install(self) -> None:
        """Install the service, with this machine's shell in the place of Termux's."""
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{self.prefix}/bin:{path}"
        try:
            Runit(self.home, self.prefix, own_command()).install()
        finally:
            os.environ["PATH"] = path
        for file in [*(self.prefix / "var/service").rglob("*"), *self.home.glob(".*/**/*pocketllm*")]:
            if file.is_file() and (text := file.read_text(errors="replace")).startswith(f"#!{TERMUX_SHELL}"):
                file.write_text(text.replace(TERMUX_SHELL, "/usr/bin/dash", 1))

    def boot(self) -> subprocess.Popen[bytes]:
        """What Termux:Boot does."""
        script = str(self.home / ".termux/boot/00-pocketllm")
        self.boots.append(subprocess.Popen(["dash", script], env=self.environment, start_new_session=True))
        return self.boots[-1]

    def log_in(self) -> None:
        """What termux-services does for each login shell."""
        pid_file, services = self.prefix / "var/run/service-daemon.pid", self.prefix / "var/service"
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        found = shutil.which("runsvdir") or ""
        subprocess.run(
            ["start-stop-daemon", "-S", "-b", "-m", "-p", pid_file, "-x", found, "--", services],
            env=self.environment,
            check=False,
        )

    def sv(self, *arguments: str) -> str:
        """What runit says of the service."""
        command = ["sv", *arguments, str(self.prefix / "var/service/pocketllm")]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    @property
    def daemon(self) -> int | None:
        """The process that answers, if one does."""
        try:
            url = json.loads((self.data / "daemon.json").read_text())["url"]
            return int(httpx.get(f"{url}/health", trust_env=False).json()["pid"])
        except (OSError, ValueError, httpx.HTTPError):
            return None

    def supervisors(self) -> list[int]:
        """The processes that supervise services here."""
        return [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if f"runsvdir\0{self.prefix}/var/service" in _command(process)
        ]


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Phone]:
    made = Phone(tmp_path)
    made.install()
    yield made
    for pid in made.supervisors():
        os.kill(pid, signal.SIGHUP)  # to end, with its services
    for boot in made.boots:
        boot.wait(timeout=60)
    eventually(lambda: not made.supervisors() and made.daemon is None, "the end of the services")


def test_it_runs_from_the_boot_on_and_comes_back_when_it_is_killed(phone: Phone) -> None:
    phone.boot()
    pid = eventually(lambda: phone.daemon, "an answer after the boot")
    assert phone.sv("status").startswith("run: ")
    for _ in range(2):
        os.kill(pid, signal.SIGKILL)
        before, pid = pid, eventually(lambda: phone.daemon, "an answer after the kill")
        assert pid != before
    log = phone.prefix / "var/log/sv/pocketllm/current"
    assert "ended with code -1; starting again" in eventually(lambda: log.read_text(), "a log")
    phone.sv("down")
    eventually(lambda: phone.daemon is None and phone.sv("status").startswith("down: "), "it stays down")


def test_a_login_after_the_boot_starts_no_second_supervisor(phone: Phone) -> None:
    boot = phone.boot()
    eventually(lambda: phone.daemon, "an answer after the boot")
    phone.log_in()
    assert phone.supervisors() == [boot.pid]


def test_a_boot_after_a_login_starts_no_second_supervisor(phone: Phone) -> None:
    phone.log_in()
    eventually(lambda: phone.daemon, "an answer after the login")
    running = phone.supervisors()
    assert phone.boot().wait(timeout=30) == 0
    assert phone.supervisors() == running and len(running) == 1
    assert "the services run already" in (phone.home / ".pocketllm-boot.log").read_text()


def test_androids_idle_hook_starts_the_job_that_waits(phone: Phone) -> None:
    """The screen has been off for less than ten minutes, as far as the daemon has seen: Android knows better."""
    phone.boot()
    eventually(lambda: phone.daemon, "an answer after the boot")
    url = json.loads((phone.data / "daemon.json").read_text())["url"]
    token = json.loads((phone.data / "tokens.json").read_text())["owner"]
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, trust_env=False) as client:
        texts = [{"text": f"Note {number}: wind west, glass rising.", "source": "notes"} for number in range(40)]
        assert client.post("/texts", json=texts).status_code == 201

        def reasons() -> list[str]:
            return [reason for job in client.get("/jobs").json()["data"] for reason in job["reasons"]]

        [reason] = eventually(reasons, "a job, and why it waits")
        assert "in use 0 minutes ago" in reason
        subprocess.run(["dash", phone.home / ".local/bin/pocketllm-idle-hook"], env=phone.environment, check=True)
        eventually(lambda: client.get("/jobs").json()["data"][0]["state"] == "succeeded", "the end of the job")
    eventually(lambda: "unlock" in phone.calls.read_text(), "the lock is given back")
    assert phone.calls.read_text().split() == ["termux-wake-lock", "termux-wake-unlock"], "one for look and job"
