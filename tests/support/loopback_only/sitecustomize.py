"""Python runs this at its start where the folder is on its path: all processes of a test run stay on this machine.

A connection to another machine, or a socket that listens to others, is refused and noted in a file.
"""

import os
import sys
from ipaddress import ip_address

#: The environment variable that names the file.
NOTES = "LOOPBACK_ONLY_NOTES"


def is_local(host: object) -> bool:
    """Whether an address, or a name that is to be looked up, is this machine's own."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def audit(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse what leaves this machine."""
    if event in ("socket.connect", "socket.bind", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
        allowed = is_local(host) and (event != "socket.bind" or host != "")
    elif event == "socket.getaddrinfo":
        host = arguments[0]
        allowed = is_local(host)
    else:
        return
    if not allowed:
        if notes := os.environ.get(NOTES):
            with open(notes, "a") as file:  # noqa: PTH123 - pathlib is imported by few processes
                file.write(f"{event} {host!r} by {' '.join(sys.argv)[:300]}\n")
        raise PermissionError(f"{event}: {host!r} is not this machine")


sys.addaudithook(audit)
