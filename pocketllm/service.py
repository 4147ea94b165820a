"""Installs PocketLLM as a service: a systemd unit, or a runit service with a boot script under Termux.

The files come from systemd/ and termux/, with the command's path filled in. Installing twice is harmless.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pocketllm.daemon.conditions.discovery import PROOT_ADVICE, Places
from pocketllm.engine.formats.atomic import atomic
from pocketllm.errors import CommandError, Document

#: A unit may take 300 s to start (TimeoutStartSec), and `systemctl restart` waits for that.
_COMMAND_SECONDS = 330
_UNIT = "pocketllm.service"
#: With these in its path systemd starts no program; a % is doubled, and the rest may stand in quotes.
_REFUSED = re.compile(r"""["'\\\x00-\x1f\x7f]""")
_WITHOUT_SYSTEMD = """Nothing was installed, because systemd does not answer here. What to do:
- After `su` or `sudo`: log in as this user, locally or by ssh, and run the command again.
- If this user never logs in: `sudo pocketllm service install --system`.
- In a container or without systemd: have your init or start script run `pocketllm serve`."""


def service_manager(*, system: bool, environment: Mapping[str, str] = os.environ) -> "Systemd | Runit":
    """Return this machine's service manager. Raises CommandError where there is none."""
    places = Places(environment=environment)
    if places.is_proot:
        raise CommandError(f"Nothing starts services inside a proot. Instead, {PROOT_ADVICE}.")
    if places.is_termux:
        return Runit(home=Path(environment["HOME"]), prefix=Path(environment.get("PREFIX", "")), command=own_command())
    if shutil.which("systemctl", path=environment.get("PATH")) is None:
        raise CommandError(
            "Neither Termux nor systemd was found here. Configure your service manager to run `pocketllm serve`."
        )
    if system:
        return Systemd(Path("/etc/systemd/system"), ("systemctl",), "pocketllm-system.service", own_command())
    config = Path(environment.get("XDG_CONFIG_HOME") or Path(environment["HOME"]) / ".config")
    return Systemd(config / "systemd" / "user", ("systemctl", "--user"), _UNIT, own_command())


def own_command() -> Path:
    """Return the path of this environment's `pocketllm` command."""
    beside = Path(sys.executable).parent / "pocketllm"
    found = beside if beside.is_file() else shutil.which("pocketllm")
    if found is None:
        raise CommandError("The command `pocketllm` is not installed: run `pip install .` in the checkout first.")
    return Path(found).absolute()


@dataclass(frozen=True)
class Systemd:
    """A unit of systemd's user or system manager."""

    folder: Path
    systemctl: Sequence[str]
    template: str
    command: Path

    @property
    def unit(self) -> Path:
        """The unit's path."""
        return self.folder / _UNIT

    def install(self) -> list[str]:
        """Install the unit and start it; returns what was done, in sentences. Raises CommandError."""
        is_users = "--user" in self.systemctl
        paths = (self.command, self.command.resolve(), (self.command.parent / "python").resolve())
        for path in paths:  # by ProtectHome and PrivateTmp
            if _REFUSED.search(str(path)) or (not is_users and path.parts[1] in ("home", "root", "run", "tmp")):
                raise CommandError(
                    f"The unit's sandbox hides {path}, or systemd cannot start it. Install Python and PocketLLM "
                    "elsewhere, such as in /opt/pocketllm, and run this again with the command installed there."
                )
        text = files("pocketllm").joinpath("systemd", self.template).read_text(encoding="utf-8")
        start = 'ExecStart="{}" serve'.format(str(self.command).replace("%", "%%"))
        try:
            _run(*self.systemctl, "show-environment")
        except CommandError as error:
            raise CommandError(f"{error}\n{_WITHOUT_SYSTEMD}") from error
        if not is_users:
            _run("systemd-sysusers", "--inline", 'u pocketllm - "PocketLLM" /var/lib/pocketllm')
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unit.write_text(re.sub("(?m)^ExecStart=.*", lambda _: start, text), encoding="utf-8")
        _run(*self.systemctl, "daemon-reload")
        _run(*self.systemctl, "enable", _UNIT)
        _run(*self.systemctl, "restart", _UNIT)
        done = [f"Wrote {self.unit}.", "The daemon is running and starts at every boot."]
        if is_users:
            done.append(_linger())
        return done

    def uninstall(self) -> list[str]:
        """Stop and remove it; returns what was done. The owner's data stay."""
        if not self.unit.exists():
            return [f"{self.unit} does not exist; nothing to do."]
        _run(*self.systemctl, "disable", "--now", _UNIT)
        self.unit.unlink()
        _run(*self.systemctl, "daemon-reload")
        return [f"Stopped the daemon and deleted {self.unit}. Texts, models and adapters stay."]

    def status(self) -> Document:
        """Return its state; `running` is None where that is unknown."""
        installed = self.unit.exists()
        said = _run(*self.systemctl, "is-active", _UNIT, may_fail=True).strip()
        running = {"active": True, "inactive": False, "failed": False, "activating": False}.get(said)
        manager = "systemd (user)" if "--user" in self.systemctl else "systemd (system)"
        there = [str(self.unit)] if installed else []
        return {"manager": manager, "installed": installed, "running": running, "files": there, "message": said}


@dataclass(frozen=True)
class Runit:
    """A service of Termux's runit, and the script by which Termux:Boot starts runit."""

    home: Path
    prefix: Path
    command: Path

    @property
    def _places(self) -> dict[Path, tuple[str, ...]]:
        """Each file's target, and its source."""
        return {
            self._service / "run": ("service", "run"),
            self._service / "finish": ("service", "finish"),
            self._service / "log/run": ("service", "log", "run"),
            self.home / ".termux/boot/00-pocketllm": ("boot.sh",),
            self.home / ".local/bin/pocketllm-idle-hook": ("idle-hook.sh",),
        }

    def install(self) -> list[str]:
        """Install the service and start it; returns what was done, in sentences. Raises CommandError."""
        environment = str(self.command.parent.parent)
        for file, source in self._places.items():
            text = files("pocketllm").joinpath("termux", *source).read_text(encoding="utf-8")
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic(file) as scratch:
                scratch.write_text(text.replace("@VENV@", environment), encoding="utf-8")
                scratch.chmod(0o755)
        done = [f"Wrote {file}." for file in self._places]
        link = self.prefix / "bin/pocketllm"
        if not link.exists():
            link.unlink(missing_ok=True)  # to an environment that is gone
            link.symlink_to(self.command)
        elif not link.samefile(self.command):
            done.append(f"{link} is another program and was not replaced; PocketLLM's command is {self.command}.")
        if self._supervised:
            _run("sv", "-w", "60", "restart", str(self._service))
            return [*done, "The daemon is running and starts at every boot."]
        if shutil.which("service-daemon") is None:
            return [
                *done,
                "The daemon starts at the next boot, or in the next session after `pkg install termux-services`.",
            ]
        places = (f"SVDIR={self.prefix}/var/service", f"LOGDIR={self.prefix}/var/log")
        _run("env", *places, "service-daemon", "start", may_fail=True)  # as where the services run already
        return [*done, "The daemon is running and starts at every boot."]

    def uninstall(self) -> list[str]:
        """Stop and remove it; returns what was done. The owner's data stay."""
        if self._supervised:
            _run("sv", "exit", str(self._service), may_fail=True)
        shutil.rmtree(self._service, ignore_errors=True)
        for file in self._places:
            file.unlink(missing_ok=True)
        link = self.prefix / "bin/pocketllm"
        if link.is_symlink() and link.readlink() == self.command:
            link.unlink()
        return ["Stopped the daemon and deleted the service. Texts, models and adapters stay."]

    def status(self) -> Document:
        """Return its state."""
        there = [str(file) for file in self._places if file.is_file()]
        said = _run("sv", "status", str(self._service), may_fail=True).strip() if self._supervised else "not supervised"
        installed, running = len(there) == len(self._places), said.startswith("run:")
        state = {"manager": "runit (Termux)", "installed": installed, "running": running}
        return {**state, "files": there, "message": said}

    @property
    def _service(self) -> Path:
        return self.prefix / "var/service/pocketllm"

    @property
    def _supervised(self) -> bool:
        """Whether runsv supervises it."""
        return (self._service / "supervise" / "ok").exists() and shutil.which("sv") is not None


def _linger() -> str:
    """Let the user's services run while the user is logged out."""
    try:
        _run("loginctl", "enable-linger")
    except CommandError as error:
        return f'It stops when you log out ({error}). To keep it running: `loginctl enable-linger "$USER"`.'
    return "It keeps running when you log out."


def _run(*command: str, may_fail: bool = False) -> str:
    """A command's output. Raises CommandError."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"`{' '.join(command)}` could not be run: {error}.") from error
    if ended.returncode and not may_fail:
        why = (ended.stderr or ended.stdout).strip() or f"exit code {ended.returncode}"
        raise CommandError(f"`{' '.join(command)}` failed: {why}")
    return ended.stdout
