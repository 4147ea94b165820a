"""The service as Termux has it, with the real runit and the real daemon, in a prefix that looks like Termux's."""

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx

from pocketllm.service import Runit, own_command
from tests.support.executables import executable

TERMUX_SHELL = "/data/data/com.termux/files/usr/bin/sh"
PROGRAMS = ("runsvdir", "sv", "start-stop-daemon", "dash")
_BATTERY = {"percentage": 90, "plugged": "PLUGGED_AC", "status": "CHARGING", "temperature": 25.0, "health": "GOOD"}
#: Nothing is looked at again for a minute, as on a phone that sleeps; and a job of some milliseconds.
_SETTINGS = """port = 0
model = "{model}"
idle_tick_seconds = 60
[training]
new_words = 20
steps = 2
block_tokens = 16
batch = 1
rank = 2
method = "mezo"
"""


#: Termux:API: for no network it schedules the job and then fails; and a job whose conditions hold runs at once.
_TERMUX_API = """echo "$*" >>"{asked}"
case "$*" in *"network none"*) exit 1 ;; esac
[ ! -e "{idle}" ] || dash "$4"
"""


class InstalledPhone:
    """A home and a prefix in which the service is installed, on the charger and with its screen off.

    What Android's programs would be asked notes its calls in the file `calls`, Termux:API in `asked`. Where the file
    `idle` is, Android considers the phone idle.
    """

    def __init__(self, root: Path, model: Path) -> None:
        self.home, self.prefix, self.calls = root / "home", root / "usr", root / "calls"
        self.data = self.home / ".local/share/pocketllm"
        self.idle_file, self.asked = root / "idle", root / "asked"
        self._boots: list[subprocess.Popen[bytes]] = []
        (self.data / "models").mkdir(parents=True)
        (self.data / "models" / model.name).symlink_to(model)
        (self.home / "config.toml").write_text(_SETTINGS.format(model=model.name))
        (self.prefix / "tmp").mkdir(parents=True)
        self.calls.touch()
        executable(self.prefix / "bin", "termux-battery-status", f"echo '{json.dumps(_BATTERY)}'")
        executable(self.prefix / "bin", "getprop", "echo 1")
        executable(self.prefix / "libexec", "termux-api", _TERMUX_API.format(asked=self.asked, idle=self.idle_file))
        for name in ("termux-wake-lock", "termux-wake-unlock"):
            executable(self.prefix / "bin", name, f'echo {name} >> "{self.calls}"')
        self.environment = {
            "HOME": str(self.home),
            "PREFIX": str(self.prefix),
            "TERMUX_VERSION": "0.119",
            "PATH": f"{self.prefix}/bin:/usr/bin:/bin:/usr/sbin",
            "POCKETLLM_CONFIG": str(self.home / "config.toml"),
            "POCKETLLM_BACKOFF_SECONDS": "0",
        }
        Runit(self.home, self.prefix, own_command()).install()
        for file in [*(self.prefix / "var/service").rglob("*"), *self.home.glob(".*/**/*pocketllm*")]:
            if file.is_file() and (text := file.read_text(errors="replace")).startswith(f"#!{TERMUX_SHELL}"):
                file.write_text(text.replace(TERMUX_SHELL, shutil.which("dash") or "", 1))

    def boot(self) -> subprocess.Popen[bytes]:
        """What Termux:Boot does."""
        script = str(self.home / ".termux/boot/00-pocketllm")
        self._boots.append(subprocess.Popen(["dash", script], env=self.environment, start_new_session=True))
        return self._boots[-1]

    def log_in(self) -> None:
        """What termux-services does for each login shell."""
        pid_file, services = self.prefix / "var/run/service-daemon.pid", self.prefix / "var/service"
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        supervisor = shutil.which("runsvdir") or ""
        command = ["start-stop-daemon", "-S", "-b", "-m", "-p", str(pid_file), "-x", supervisor, "--", str(services)]
        subprocess.run(command, env=self.environment, check=False)

    def idle(self) -> None:
        """What Android's JobScheduler does while the phone is idle on the charger."""
        hook = self.home / ".local/bin/pocketllm-idle-hook"
        subprocess.run(["dash", hook], env=self.environment, check=True, capture_output=True)

    def sv(self, *arguments: str) -> str:
        """What runit says of the service."""
        command = ["sv", *arguments, str(self.prefix / "var/service/pocketllm")]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    @property
    def log(self) -> str:
        """What the service has written."""
        file = self.prefix / "var/log/sv/pocketllm/current"
        return file.read_text() if file.exists() else ""

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
        supervises = f"runsvdir\0{self.prefix}/var/service"
        return [pid for pid, line in command_lines().items() if supervises in line]

    def switch_off(self) -> None:
        """End the supervisors with their services."""
        for pid in self.supervisors():
            os.kill(pid, signal.SIGHUP)
        for boot in self._boots:
            boot.wait(timeout=60)


def command_lines() -> dict[int, str]:
    """Every process with its command line, whose words end with a zero byte."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            found[int(process.name)] = (process / "cmdline").read_text(errors="replace")
    return found
