"""Everything that `make ci` leaves out and a night has time for: `make nightly`, or python -m tests.nightly [PART ...].

A part that fails does not stop the others.
"""

import argparse
import subprocess
import sys
from time import monotonic

from tests.support.debian_root import PROGRAMS, check_programs, say
from tests.support.paths import ROOT

_PYTEST = ("pytest", "--numprocesses=auto", "--dist=loadfile", "--durations=10", "--require-programs")
#: What is run of each part, after `python -m`.
PARTS = {
    "tests": (*_PYTEST, "-m", "slow or smoke"),
    "openapi": (*_PYTEST, "tests/api/test_schemathesis.py", "--examples=100"),
    "lowest": ("tests.versions", "lowest"),
    "newest": ("tests.versions", "newest"),
    "arm64": ("tests.arm64",),
    "arm64-system": ("tests.arm64_system",),
    "examples": (*_PYTEST, "-m", "hypothesis"),
    "stress": (*_PYTEST, "tests/stress"),
    "soak": ("tests.stress", "soak"),
}
#: The programs that they use, each with its Debian package; root's rights are needed, too.
_PROGRAMS = {
    **PROGRAMS,
    "chromium": "chromium",
    "dash": "dash",
    "emacs": "emacs-nox",
    "faketime": "faketime",
    "mkfs.ext4": "e2fsprogs",
    "qemu-system-aarch64": "qemu-system-arm",
    "runsvdir": "runit",
    "shellcheck": "shellcheck",
    "systemd-analyze": "systemd",
}


def run(part: str) -> bool:
    """Run a part, say how long it took, and return whether it passed."""
    say(f"\n== {part}")
    began = monotonic()
    passed = subprocess.run([sys.executable, "-m", *PARTS[part]], cwd=ROOT, check=False).returncode == 0
    say(f"== {part}: {'passed' if passed else 'FAILED'} after {(monotonic() - began) / 60:.1f} min")
    return passed


def main() -> int:
    """Run the parts that were asked for, or all."""
    made = argparse.ArgumentParser(prog="python -m tests.nightly", description=__doc__.partition("\n")[0])
    made.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; all without any")
    parts = made.parse_args().parts
    if unknown := set(parts) - set(PARTS):
        made.error(f"no such part: {', '.join(sorted(unknown))}. There are {', '.join(PARTS)}.")
    if not parts:
        check_programs(_PROGRAMS)
    failed = [part for part in parts or PARTS if not run(part)]
    if failed:
        say(f"\nFailed: {', '.join(failed)}.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
