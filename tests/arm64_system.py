"""Runs both systemd units on an emulated arm64 machine: `make nightly PARTS=arm64-system`, or python -m this module.

Makes a Debian root for arm64 with systemd and a kernel, from the package registries alone, boots it in qemu, and runs
tests/units_under_systemd.py there as root: the sandbox on, the memory limits in force, a real job in bfloat16. Needs
Debian's qemu-system-arm, qemu-user and mmdebstrap, a kernel of 6.7 or newer, and root's rights.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.debian_root import (
    PROGRAMS,
    PYTEST,
    check_programs,
    install,
    install_product,
    make_if_missing,
    say,
    set_up,
    shown,
    timed,
)
from tests.support.models.tiny_models import tiny_model_folder
from tests.support.paths import ROOT

PACKAGES = ("dbus", "dbus-user-session", "initramfs-tools", "libpam-systemd", "linux-image-cloud-arm64", "systemd-sysv")
CPU = "cortex-a76"  # one of qemu's
DEBIAN = ROOT / ".arm64/system"
TESTS = ("tests/units_under_systemd.py", "tests/daemon/test_process_memory.py")
DISK_BYTES = 6 * 10**9
MEMORY_MB = 4096
_ENDED = re.compile(r"^tests ended: (\d+)", re.MULTILINE)
_UNIT = "units-under-systemd.service"
#: Runs the tests once the machine has booted, and switches it off.
_SERVICE = f"""
[Service]
Type=oneshot
WorkingDirectory=/work
Environment=HOME=/root PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
ExecStart=sh -c '{PYTEST} -rA -s --color no {" ".join(TESTS)}; echo tests ended: $?'
ExecStopPost=systemctl --no-block poweroff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyAMA0
"""
_KERNEL_LINE = "root=/dev/vda rw console=ttyAMA0 quiet systemd.show_status=no systemd.mask=serial-getty@ttyAMA0.service"
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "results", "demo-data")


def make(root: Path) -> None:
    """The root, in about five minutes."""
    set_up(root, PACKAGES)
    install(root)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / _UNIT).symlink_to(f"../{_UNIT}")


def boot(root: Path) -> int:
    """Boot the root with this tree in it, and print what the tests say there. Returns their exit code."""
    disk = root.with_name("disk.img")
    for made_here in (root / "work", root / "var/tmp/models"):
        shutil.rmtree(made_here, ignore_errors=True)
    (root / "etc/systemd/system" / _UNIT).write_text(_SERVICE)
    shutil.copytree(ROOT, root / "work", symlinks=True, ignore=_NOT_COPIED)
    install_product(root)
    # Made here, since an emulated core takes minutes; and what that one would measure says nothing of a real one.
    model = tiny_model_folder(root / "var/tmp/models", layers=4, hidden=256)
    manifest = json.loads((model / "pocketllm.json").read_text())
    (model / "pocketllm.json").write_text(json.dumps(manifest | {"compute_dtype": "bfloat16"}))
    subprocess.run(["chmod", "--recursive", "a+rX", str(model.parent)], check=True)
    disk.unlink(missing_ok=True)
    disk.touch()
    os.truncate(disk, DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(root), str(disk)], check=True)
    machine = ["-machine", "virt", "-cpu", CPU, "-smp", "2", "-m", str(MEMORY_MB), "-no-reboot"]
    # Without a network, whose boot program is in another package.
    screen = ["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]
    drive = ["-drive", f"file={disk},if=virtio,format=raw,cache=unsafe"]
    kernel = ["-kernel", str(root / "vmlinuz"), "-initrd", str(root / "initrd.img"), "-append", _KERNEL_LINE]
    command = ["qemu-system-aarch64", "-accel", "tcg,thread=multi", *machine, *screen, *drive, *kernel]
    _, printed = shown(command)
    ended = _ENDED.search(printed)
    return int(ended[1]) if ended else 1


def main() -> int:
    """Make the root if it is missing, boot it, and run the tests in it."""
    check_programs({**PROGRAMS, "qemu-system-aarch64": "qemu-system-arm"})
    if os.geteuid() != 0:
        sys.exit("It takes root's rights to make the machine's disk.")
    make_if_missing(DEBIAN, make)
    say("booting ...")
    return timed(CPU, lambda: boot(DEBIAN))


if __name__ == "__main__":
    sys.exit(main())
