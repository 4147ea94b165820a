"""The stress tests in full: `make stress`, or python -m tests.stress [NAME ...].

Those that measure no time share the machine's cores; then each of the others has the machine for itself.
"""

import subprocess
import sys
from collections.abc import Sequence

from tests.support.paths import ROOT

_TOGETHER, _ALONE = ("soak", "phone"), ("crash", "faults", "siege", "forget", "pause")
#: Benches that run whole with them.
_BENCHES = ("nights",)
_PYTEST = (sys.executable, "-m", "pytest", "--full", "--require-programs", "--durations=0")


def main(names: Sequence[str]) -> int:
    """Run the named ones, or all."""
    if unknown := set(names) - {*_TOGETHER, *_ALONE, *_BENCHES}:
        sys.exit(f"No such stress test: {', '.join(unknown)}. There are {', '.join((*_TOGETHER, *_ALONE, *_BENCHES))}.")
    failed = False
    for group, options in ((_TOGETHER, ("--numprocesses=2", "--dist=loadfile")), (_ALONE, ("--capture=no",))):
        if files := [f"tests/stress/test_{name}.py" for name in group if not names or name in names]:
            failed |= subprocess.run([*_PYTEST, *options, *files], cwd=ROOT, check=False).returncode != 0
    for name in _BENCHES:
        if not names or name in names:
            failed |= subprocess.run([sys.executable, "-m", f"bench.{name}"], cwd=ROOT, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
