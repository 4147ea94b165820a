"""Disks of their own for a fault: a small one, and one that can be made to fail."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

#: A tmpfs, or an ext4 in a file.
Kind = Literal["small", "image"]
_DISK_MB = 48


class CannotInject(Exception):
    """This machine does not allow the fault."""


@contextmanager
def disk(kind: Kind | None, place: Path) -> Iterator[Path]:
    """A folder on a disk of this kind. Raises CannotInject."""
    place.mkdir()
    if kind is None:
        yield place
        return
    try:
        if kind == "small":
            run("mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(place))
        else:
            with place.with_suffix(".img").open("wb") as image:
                image.truncate(4 * _DISK_MB << 20)
            run("mkfs.ext4", "-q", str(place.with_suffix(".img")))
            mount_image(place)
            if not Path(f"/sys/fs/ext4/{device_of(place).name}/trigger_fs_error").exists():
                raise CannotInject("this kernel cannot make ext4 fail")
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotInject(f"no disk of its own: {error}") from error
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


def mount_image(place: Path) -> None:
    """Mount the image beside a folder there."""
    run("mount", "-o", "loop,errors=remount-ro", str(place.with_suffix(".img")), str(place))


def run(*command: str) -> None:
    """Run a command. Raises CalledProcessError."""
    subprocess.run(command, check=True, capture_output=True)


def device_of(disk: Path) -> Path:
    """The device that is mounted there."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return Path(next(device for device, place, *_ in mounts if place == str(disk)))
