"""Disks of their own for a test: a small one, and one that can be made to fail."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

#: A tmpfs, or an ext4 in a file.
Kind = Literal["small", "image"]
_DISK_MB = 48


@contextmanager
def disk(kind: Kind | None, place: Path) -> Iterator[Path]:
    """A folder on a disk of this kind; skips the test where this machine does not allow it."""
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
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of its own: {error}")
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Meanwhile the folder's disk has no byte left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    try:
        yield
    finally:
        filler.unlink()


def fail_for_good(place: Path) -> None:
    """Let the image beside a folder there report an error, after which it is read-only; skips where it cannot."""
    trigger = Path(f"/sys/fs/ext4/{_device_of(place).name}/trigger_fs_error")
    if not trigger.exists():
        pytest.skip("this kernel cannot make ext4 fail")
    trigger.write_text("1")


def repair(place: Path) -> None:
    """Mount that image again, as the device's start does. Whoever uses it must be gone."""
    subprocess.run(["e2fsck", "-fy", str(place.with_suffix(".img"))], check=False, capture_output=True)
    mount_image(place)


def mount_image(place: Path) -> None:
    """Mount the image beside a folder there."""
    run("mount", "-o", "loop,errors=remount-ro", str(place.with_suffix(".img")), str(place))


def run(*command: str) -> None:
    """Run a command. Raises CalledProcessError."""
    subprocess.run(command, check=True, capture_output=True)


def _device_of(disk: Path) -> Path:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return Path(next(device for device, place, *_ in mounts if place == str(disk)))
