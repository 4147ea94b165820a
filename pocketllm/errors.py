"""The errors of commands. Each message says what to do next.

CommandError          exit 1
├── UsageError        exit 2
├── Interrupted       exit 130
├── NoDaemon
├── DaemonLost
├── DaemonSlow
├── NotADaemon
└── DaemonRefused     carries the daemon's own problem document
"""

import os
from typing import Any

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_CONFIG = os.EX_CONFIG  # 78, by which systemd's units and Termux's `finish` know it
EXIT_INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C

Document = dict[str, Any]


class CommandError(Exception):
    """The command failed."""

    exit_code = EXIT_ERROR
    label = "Error: "
    code = "command_failed"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)

    def problem(self) -> Document:
        """Return the error in the shape that the daemon uses (RFC 9457 and an `error` object)."""
        error = {"message": str(self), "type": "command_error", "code": self.code, "param": None}
        return {"type": "about:blank", "title": self.__doc__, "detail": str(self), "error": error}


class UsageError(CommandError):
    """The command's arguments are invalid."""

    exit_code = EXIT_USAGE
    code = "usage"


class Interrupted(CommandError):
    """Stopped by Ctrl-C."""

    exit_code = EXIT_INTERRUPTED
    label = ""
    code = "interrupted"


class NoDaemon(CommandError):
    """No daemon answers."""

    code = "no_daemon"

    def __init__(self, url: str) -> None:
        super().__init__(
            f"No daemon answers at {url}. Start one with `pocketllm serve` in another terminal, "
            "or give its address with --url or its folder with --data-dir."
        )


class DaemonLost(CommandError):
    """The connection to the daemon was lost in the middle of an answer."""

    code = "daemon_lost"


class DaemonSlow(CommandError):
    """The daemon did not answer in time."""

    code = "daemon_slow"


class NotADaemon(CommandError):
    """A program other than PocketLLM answers there."""

    code = "not_a_daemon"


class DaemonRefused(CommandError):
    """The daemon refused the request."""

    code = "refused"

    def __init__(self, document: Document, *, hint: str = "") -> None:
        detail = str(document.get("detail") or document.get("title") or self.__doc__)
        super().__init__(f"{detail} {hint}".strip())
        self.document = {**document, "detail": str(self)}
        self.status = document.get("status")

    def problem(self) -> Document:
        """Return the daemon's own problem document."""
        return self.document
