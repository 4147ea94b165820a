"""Installing PocketLLM as a service: a systemd unit, or a runit service with a boot entry under Termux.

The files are those in systemd/ and termux/; all that changes is the path of the command. Everything can be done twice.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from pocketllm.cli.errors import CommandError
from pocketllm.daemon.conditions.discovery import is_termux

_COMMAND_SECONDS = 30
_UNIT = "pocketllm.service"


@dataclass(frozen=True, kw_only=True)
class ServiceState:
    """What is known of the service."""

    manager: str
    installed: bool
    running: bool | None  #: None: the manager does not say
    files: tuple[str, ...]
    message: str


class ServiceManager(Protocol):
    """What starts the daemon and keeps it running."""

    def install(self) -> list[str]:
        """Put it in place and start it; what was done, a sentence each. Raises CommandError."""

    def uninstall(self) -> list[str]:
        """Stop it and take it away; what was done. The owner's data stay."""

    def status(self) -> ServiceState:
        """How it is."""


def service_manager(*, system: bool, environment: Mapping[str, str] = os.environ) -> ServiceManager:
    """What fits this machine. Raises CommandError where nothing does."""
    if is_termux(environment):
        return Runit(home=Path(environment["HOME"]), prefix=Path(environment.get("PREFIX", "")), command=own_command())
    if shutil.which("systemctl", path=environment.get("PATH")) is None:
        raise CommandError(
            "Neither Termux nor systemd was found here. Have `pocketllm serve` started by whatever starts services."
        )
    if system:
        return Systemd(Path("/etc/systemd/system"), ("systemctl",), "pocketllm-system.service", own_command())
    config = Path(environment.get("XDG_CONFIG_HOME") or Path(environment["HOME"]) / ".config")
    return Systemd(config / "systemd" / "user", ("systemctl", "--user"), _UNIT, own_command())


def own_command() -> Path:
    """The console script of the environment that this runs in."""
    beside = Path(sys.executable).parent / "pocketllm"
    found = beside if beside.is_file() else shutil.which("pocketllm")
    if found is None:
        raise CommandError("The command `pocketllm` is not installed: run `pip install .` in the checkout first.")
    return Path(found).absolute()


@dataclass(frozen=True)
class Systemd:
    """A unit of the user's manager or of the system's."""

    folder: Path
    systemctl: Sequence[str]
    template: str
    command: Path

    @property
    def unit(self) -> Path:
        """Where the unit lies."""
        return self.folder / _UNIT

    def install(self) -> list[str]:
        """See ServiceManager."""
        text = files("pocketllm").joinpath("systemd", self.template).read_text(encoding="utf-8")
        lines = [
            f"ExecStart={self.command} serve" if line.startswith("ExecStart=") else line for line in text.splitlines()
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unit.write_text("\n".join(lines) + "\n", encoding="utf-8")
        _run(*self.systemctl, "daemon-reload")
        _run(*self.systemctl, "enable", _UNIT)
        _run(*self.systemctl, "restart", _UNIT)
        done = [f"Written: {self.unit}.", "It runs now, and from now on whenever the machine starts."]
        if "--user" in self.systemctl:
            done.append(_linger())
        return done

    def uninstall(self) -> list[str]:
        """See ServiceManager."""
        if not self.unit.exists():
            return [f"There is no {self.unit}: nothing to do."]
        _run(*self.systemctl, "disable", "--now", _UNIT)
        self.unit.unlink()
        _run(*self.systemctl, "daemon-reload")
        return [f"Stopped and deleted: {self.unit}. Texts, models and adapters stay."]

    def status(self) -> ServiceState:
        """See ServiceManager."""
        installed = self.unit.exists()
        try:
            said = _run(*self.systemctl, "is-active", _UNIT, may_fail=True).strip()
        except CommandError as error:
            said = str(error)
        running = {"active": True, "inactive": False, "failed": False, "activating": False}.get(said)
        return ServiceState(
            manager="systemd, the user's" if "--user" in self.systemctl else "systemd, the system's",
            installed=installed,
            running=running,
            files=(str(self.unit),) if installed else (),
            message=said,
        )


@dataclass(frozen=True)
class Runit:
    """A service of Termux' runit, and the entry by which Termux:Boot starts that."""

    home: Path
    prefix: Path
    command: Path

    @property
    def _places(self) -> dict[Path, tuple[str, ...]]:
        """Where each file goes, and where it comes from."""
        service = self.prefix / "var/service/pocketllm"
        return {
            service / "run": ("service", "run"),
            service / "finish": ("service", "finish"),
            service / "log/run": ("service", "log", "run"),
            self.home / ".termux/boot/00-pocketllm": ("boot.sh",),
            self.home / ".local/bin/pocketllm-idle-hook": ("idle-hook.sh",),
        }

    def install(self) -> list[str]:
        """See ServiceManager."""
        environment = str(self.command.parent.parent)
        for file, source in self._places.items():
            text = files("pocketllm").joinpath("termux", *source).read_text(encoding="utf-8")
            file.parent.mkdir(parents=True, exist_ok=True)
            scratch = file.with_name(f"{file.name}.new")
            scratch.write_text(text.replace("@VENV@", environment), encoding="utf-8")
            scratch.chmod(0o755)
            scratch.rename(file)
        done = [f"Written: {file}." for file in self._places]
        if self._supervised:
            _run("sv", "restart", str(self._service))
            return [*done, "It runs now, and from now on after each boot."]
        return [*done, "It starts with the next session of Termux, or the next boot."]

    def uninstall(self) -> list[str]:
        """See ServiceManager."""
        if self._supervised:
            _run("sv", "exit", str(self._service), may_fail=True)
        shutil.rmtree(self._service, ignore_errors=True)
        for file in self._places:
            file.unlink(missing_ok=True)
        return ["Stopped and deleted. Texts, models and adapters stay."]

    def status(self) -> ServiceState:
        """See ServiceManager."""
        there = tuple(str(file) for file in self._places if file.is_file())
        said = _run("sv", "status", str(self._service), may_fail=True).strip() if self._supervised else "not supervised"
        return ServiceState(
            manager="runit, Termux'",
            installed=len(there) == len(self._places),
            running=said.startswith("run:"),
            files=there,
            message=said,
        )

    @property
    def _service(self) -> Path:
        return self.prefix / "var/service/pocketllm"

    @property
    def _supervised(self) -> bool:
        """Whether runsv has taken it up."""
        return (self._service / "supervise" / "ok").exists() and shutil.which("sv") is not None


def _linger() -> str:
    """Let the user's services run while nobody is logged in."""
    try:
        _run("loginctl", "enable-linger")
    except CommandError as error:
        return f'It ends when you log out ({error}). `loginctl enable-linger "$USER"` changes that.'
    return "It runs while you are logged out, too."


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
