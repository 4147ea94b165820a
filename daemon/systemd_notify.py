"""systemd's notify protocol: the daemon is ready, alive, stopping (man sd_notify)."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


def notify(*lines: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send lines such as READY=1 to the service manager, if there is one. Never raises, even if it is gone."""
    if not (address := environment.get("NOTIFY_SOCKET")):
        return
    address = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto("\n".join(lines).encode(), address)
