"""For how long nobody has used a Linux desktop or phone: logind's idle hint, or the last use of a terminal.

Desktops that do not report to logind (sway without swayidle, bare window managers) leave the hint at "not idle": then a
job waits, which is the safe side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from pocketllm.daemon.conditions.poller import Answers, Background, Pace, ProbeFailed, run
from pocketllm.daemon.conditions.readings import Reading, not_yet

#: busctl prints a type and a value for each property.
COMMAND = "busctl"
ARGUMENTS = (
    *("get-property", "org.freedesktop.login1", "/org/freedesktop/login1"),
    *("org.freedesktop.login1.Manager", "IdleHint", "IdleSinceHint"),
)
DEVICES = Path("/dev")
_TIMEOUT_SECONDS = 5.0
_IDLE_SECONDS, _TRAINING_SECONDS = 15.0, 3.0


@dataclass(frozen=True)
class Hint:
    """logind's idle hint."""

    idle: bool
    since: float  #: seconds since 1970; 0 if it was never set


def parse(output: str) -> Hint:
    """Parse busctl's output. Raises ProbeFailed."""
    try:
        (kind, idle), (other, since) = (line.split() for line in output.strip().splitlines())
        if (kind, other) != ("b", "t") or idle not in ("true", "false"):
            raise ValueError
        return Hint(idle=idle == "true", since=int(since) / 1e6)
    except ValueError as error:
        raise ProbeFailed(f"logind's answer cannot be parsed: {output[:80]!r}") from error


class LogindIdleness:
    """Seconds since anybody used the machine."""

    def __init__(self, answers: Answers[Hint], devices: Path = DEVICES) -> None:
        self._answers, self._devices = answers, devices

    @classmethod
    def by_command(cls, pace: Pace, command: str = COMMAND, devices: Path = DEVICES) -> Self:
        """By polling busctl."""
        answers = Background(
            lambda: parse(run((command, *ARGUMENTS), timeout_seconds=_TIMEOUT_SECONDS)),
            pace,
            idle_seconds=_IDLE_SECONDS,
            training_seconds=_TRAINING_SECONDS,
        )
        return cls(answers, devices)

    def read(self, now: datetime) -> Reading:
        """The shorter of logind's and the terminals' idle times, if both are known."""
        asked = self._answers.latest(now)
        if asked is None:
            return not_yet("idle", "s", "logind", now)
        terminals = _since_terminals(self._devices, now)
        if asked.answer is None:
            if terminals is None:
                return Reading(name="idle", value=None, unit="s", source="logind", at=asked.at, reason=asked.problem)
            return Reading(name="idle", value=terminals, unit="s", source=f"terminals in {self._devices}", at=now)
        hint = max(0.0, now.timestamp() - asked.answer.since) if asked.answer.idle else 0.0
        if terminals is not None and terminals < hint:
            return Reading(name="idle", value=terminals, unit="s", source=f"terminals in {self._devices}", at=now)
        return Reading(name="idle", value=hint, unit="s", source="logind", at=asked.at)


def _since_terminals(devices: Path, now: datetime) -> float | None:
    """Seconds since a terminal in use was read from; None without one."""
    last = max(_last_uses(devices), default=None)
    return None if last is None else max(0.0, now.timestamp() - last)


def _last_uses(devices: Path) -> Iterator[float]:
    """The time of the last input at each terminal with a login, which belongs to its user."""
    for pattern in ("pts/[0-9]*", "tty[0-9]*"):
        for terminal in devices.glob(pattern):
            try:
                about = terminal.stat()
            except OSError:  # closed meanwhile
                continue
            if about.st_uid != 0 or pattern.startswith("pts"):
                yield about.st_atime
