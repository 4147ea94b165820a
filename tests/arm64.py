"""Runs tests on emulated Arm cores: `make nightly PARTS=arm64`, or python -m tests.arm64

Makes a Debian root for arm64 with the packages of pyproject.toml, from the package registries alone. Then qemu's user
emulation runs the tests there, on each core at the same time. It ignores RLIMIT_DATA: `tests.arm64_system` tests
memory limits. Needs Debian's qemu-user and mmdebstrap, and a kernel of 6.7 or newer.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

from tests.support.debian_root import (
    PROGRAMS,
    PYTEST,
    check_programs,
    install,
    make_if_missing,
    running_arm_programs,
    say,
    shown,
    timed,
    unpack,
)
from tests.support.paths import ROOT

#: Raspberry Pi 3's and older phones' core, without half precision; and that of a Raspberry Pi 5 and newer phones.
CPUS = ("cortex-a53", "cortex-a76")
DEBIAN = ROOT / ".arm64/unpacked"
#: What the product does on a phone: it computes, calibrates, learns by each method, is killed and resumes with the same
#: bits, answers, and replays a step log to the bits that x86-64 comes to.
TESTS = (
    "tests/mezo/test_replayed_bits.py",
    "tests/engine/planning/test_calibration.py",
    "tests/daemon/training/test_worker.py::test_a_paused_job_learns_the_same_bits_whatever_another_job_has_learned_meanwhile",
    "tests/daemon/training/test_exact_job.py::test_killed_at_several_steps_it_ends_like_an_undisturbed_one_bit_for_bit",
    "tests/daemon/training/test_replayed_job.py::test_a_job_and_one_that_goes_on_from_it",
    "tests/engine/generate/test_streaming_text.py",
    "tests/daemon/generation/test_generator_process.py::test_an_adapter_that_is_gone_is_refused_and_the_process_survives",
)
_ENTER = """
root=$1 source=$2
shift 2
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount --bind "$source" "$root/work"
exec chroot "$root" "$@"
"""


def make(root: Path) -> None:
    """The root, in about a minute."""
    unpack(root)
    install(root)


def inside(cpu: str, command: Sequence[str], *, on: int) -> int:
    """Run a command in the root on an emulated core; its exit code. on: the processor that emulates it.

    Each line that it prints begins with the core's name. On one processor, torch has one thread: emulated threads wait
    for each other for longer than they compute.
    """
    environment = {
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "QEMU_CPU": cpu,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    enter = ["taskset", "--cpu-list", str(on), "sh", "-euc", _ENTER, "sh", str(DEBIAN), str(ROOT)]
    there = ["/usr/bin/env", "-C", "/work", "PATH=/usr/bin:/bin", *command]
    code, _ = shown(running_arm_programs([*enter, *there]), f"{cpu}: ", environment)
    return code


def main() -> int:
    """Make the root if it is missing, and run the tests on each core."""
    check_programs(PROGRAMS)
    make_if_missing(DEBIAN, make)
    say(f"testing on {', '.join(CPUS)}, which takes about 27 minutes on two processors ...")
    command = [*f"{PYTEST} -v --durations 5".split(), *TESTS]

    def test(cpu: str, on: int) -> int:
        return timed(cpu, lambda: inside(cpu, command, on=on))

    processors = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(len(processors)) as pool:
        return any(pool.map(test, CPUS, cycle(processors)))


if __name__ == "__main__":
    sys.exit(main())
