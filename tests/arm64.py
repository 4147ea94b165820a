"""Runs tests on emulated Arm cores: `make test-arm64`, or python -m tests.arm64 [--cpu cortex-a53 ...] [--root DIR]

Makes a Debian root for arm64 with the packages of pyproject.toml, from the package registries alone; its packages are
unpacked, not set up. Then qemu's user emulation runs the tests there. The kernel hands arm64 programs to qemu in a user
namespace of its own, so that child processes work and the machine is left as it was. The emulator ignores RLIMIT_DATA:
memory limits are not tested here. Needs Debian's qemu-user and mmdebstrap, and a kernel of 6.7 or newer.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.support.paths import ROOT

#: Raspberry Pi 3's and older phones' core, without half precision; and that of a Raspberry Pi 5 and newer phones.
CPUS = ("cortex-a53", "cortex-a76")
SUITE, PYTHON = "trixie", "3.13"
DEBIAN = ("python3", "libgomp1", "libstdc++6", "coreutils", "dash")
#: PyPI's torch for arm64 ends by an illegal instruction on an Armv8.0 core from 2.10 on, and brings CUDA from 2.11 on.
REQUIREMENTS = ("torch<2.10", "hypothesis", "pytest")
#: What the product does on a phone: it computes, calibrates, learns by each method, is killed and resumes with the same
#: bits, answers, and replays a step log to the bits that x86-64 comes to.
TESTS = (
    "tests/mezo/test_replayed_bits.py",
    "tests/engine/planning/test_calibration.py",
    "tests/daemon/training/test_worker.py::test_killed_at_any_step_and_resumed_ends_with_the_same_adapter_bit_for_bit",
    "tests/daemon/training/test_exact_job.py::test_killed_at_several_steps_it_ends_like_an_undisturbed_one_bit_for_bit",
    "tests/daemon/tools/test_replay.py::test_what_a_real_worker_made",
)
#: The ELF header of a program for arm64, the mask on it, and qemu, opened before the root changes (F).
_BINFMT = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{qemu}:F"
)
_ENTER = """
root=$1 source=$2 binfmt=$3
shift 3
mount -t proc proc /proc
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' "$binfmt" >/proc/sys/fs/binfmt_misc/register
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount --bind "$source" "$root/work"
exec chroot "$root" "$@"
"""


def make(root: Path) -> None:
    """The root, in about a minute."""
    scratch = root.with_name(f"{root.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    packages = f"--include={','.join(DEBIAN)}"
    _run("mmdebstrap", "--quiet", "--architectures=arm64", "--variant=extract", packages, SUITE, str(scratch))
    for name in ("bin", "lib", "sbin"):
        if not (scratch / name).exists():
            (scratch / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "work"):
        (scratch / name).mkdir(exist_ok=True)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (scratch / "requirements.txt").write_text("\n".join([*needed, *REQUIREMENTS]))
    options = ["--python-platform", "aarch64-manylinux_2_28", "--python-version", PYTHON, "--only-binary", ":all:"]
    uv = str(Path(sys.executable).parent / "uv")
    target = str(scratch / "opt/packages")
    _run(uv, "pip", "install", "--quiet", *options, "--target", target, "-r", str(scratch / "requirements.txt"))
    scratch.rename(root)


def inside(root: Path, cpu: str, command: Sequence[str]) -> int:
    """Run a command in the root on an emulated core. Returns its exit code."""
    binfmt = _BINFMT.format(qemu=shutil.which("qemu-aarch64"))
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "QEMU_CPU": cpu,
        "PYTHONPATH": "/opt/packages:/work",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--", "sh", "-euc", _ENTER, "sh"]
    whole = [*enter, str(root.absolute()), str(ROOT), binfmt, "/usr/bin/env", "-C", "/work", *command]
    path = os.environ["PATH"]
    return subprocess.run(whole, env=environment | {"PATH": f"{path}:/usr/sbin:/sbin"}, check=False).returncode


def main() -> int:
    """Make the root if it is missing, and run the tests on each core."""
    options = _options()
    missing = [name for name in ("mmdebstrap", "qemu-aarch64", "unshare") if shutil.which(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is missing: apt-get install mmdebstrap qemu-user")
    began = time.monotonic()
    if not options.root.exists():
        _say(f"making {options.root} ...")
        make(options.root)
        _say(f"made in {time.monotonic() - began:.0f} s")
    failed = []
    pytest = ["/usr/bin/python3", "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--durations", "5"]
    for cpu in options.cpu:
        began = time.monotonic()
        if inside(options.root, cpu, [*pytest, *(options.tests or TESTS)]):
            failed.append(cpu)
        _say(f"{cpu}: {time.monotonic() - began:.0f} s")
    if failed:
        _say(f"failed on {', '.join(failed)}")
    return bool(failed)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m tests.arm64", description="Runs tests on emulated Arm cores.")
    made.add_argument("tests", nargs="*", help="which tests; by default what the product does on a phone")
    made.add_argument("--cpu", nargs="+", choices=CPUS, default=CPUS)
    made.add_argument("--root", type=Path, default=ROOT / ".arm64", help="where the Debian root is, or is made")
    return made.parse_args()


if __name__ == "__main__":
    sys.exit(main())
