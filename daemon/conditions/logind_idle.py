"""For how long nobody has used a Linux desktop or phone: logind's idle hint, or the last use of a terminal.

Desktops that do not report to logind (sway without swayidle, bare window managers) leave the hint at "not idle": then a
job waits, which is the safe side.
"""

from contextlib import suppress
from datetime import datetime
from math import inf
from pathlib import Path

from pocketllm.daemon.conditions.poller import Background, Pace
from pocketllm.daemon.conditions.readings import NOT_YET, Missing, Reading
from pocketllm.daemon.errors import ChildFailed

#: busctl prints a type and a value for each property.
COMMAND = "busctl"
ARGUMENTS = (
    *("get-property", "org.freedesktop.login1", "/org/freedesktop/login1"),
    *("org.freedesktop.login1.Manager", "IdleHint", "IdleSinceHint"),
)
DEVICES = Path("/dev")


def idle_since(output: str) -> float:
    """Since when nobody has used it, by busctl's output: seconds since 1970; infinity while it is in use.

    Raises ChildFailed.
    """
    try:
        (kind, idle), (other, since) = (line.split() for line in output.strip().splitlines())
        if (kind, other) != ("b", "t") or idle not in ("true", "false"):
            raise ValueError
        return int(since) / 1e6 if idle == "true" else inf
    except ValueError as error:
        raise ChildFailed(f"logind's answer cannot be parsed: {output[:80]!r}") from error


class LogindIdleness:
    """Seconds since anybody used the machine."""

    def __init__(self, pace: Pace, command: str, devices: Path = DEVICES) -> None:
        """command: busctl, which is polled."""
        self._answers = Background.of_command((command, *ARGUMENTS), idle_since, pace)
        self._devices = devices

    def read(self, now: datetime) -> Reading:
        """The shorter of logind's and the terminals' idle times, if both are known."""
        asked = self._answers.latest(now)
        if asked is None:
            return Missing("idle", "s", "logind", NOT_YET).read(now)
        terminals = _since_terminals(self._devices, now)
        hint = None if asked.answer is None else max(0.0, now.timestamp() - asked.answer)
        if terminals is not None and (hint is None or terminals < hint):
            return Reading(name="idle", value=terminals, unit="s", source=f"terminals in {self._devices}", at=now)
        return Reading(name="idle", value=hint, unit="s", source="logind", at=asked.at, reason=asked.problem)


def _since_terminals(devices: Path, now: datetime) -> float | None:
    """Seconds since the last input at a terminal with a login, which belongs to its user; None without one."""
    uses = []
    for terminal in (*devices.glob("pts/[0-9]*"), *devices.glob("tty[0-9]*")):
        with suppress(OSError):  # closed meanwhile
            about = terminal.stat()
            if about.st_uid != 0 or terminal.parent.name == "pts":
                uses.append(about.st_atime)
    return max(0.0, now.timestamp() - max(uses)) if uses else None
