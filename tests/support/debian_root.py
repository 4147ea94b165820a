"""Debian roots, made from the package registries alone; most are for arm64.

The kernel hands arm64 programs to qemu's user emulation in a user namespace of its own: child processes work, and the
machine is left as it was. That takes a kernel of 6.7 or newer.
"""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.paths import ROOT

SUITE, PYTHON = "trixie", "3.13"
UV = str(Path(sys.executable).parent / "uv")
#: Programs that make a root and run its programs -> the packages with them.
PROGRAMS = {"mmdebstrap": "mmdebstrap", "qemu-aarch64": "qemu-user"}
#: What Python and torch need.
PACKAGES = ("python3", "libgomp1", "libstdc++6")
#: PyPI's torch for arm64 ends by an illegal instruction on an Armv8.0 core from 2.10 on, and brings CUDA from 2.11 on.
REQUIREMENTS = ("torch<2.10", "hypothesis", "pytest")
#: Where the Python packages are in a root.
SITE_PACKAGES = Path("opt/pocketllm") / f"lib/python{PYTHON}/site-packages"
#: pytest in a root.
PYTEST = "/opt/pocketllm/bin/python -m pytest -p no:cacheprovider -p no:xdist"
#: The ELF header of a program for arm64, the mask on it, and qemu, opened before the root changes (F).
_BINFMT = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{qemu}:F"
)
_REGISTER = """
binfmt=$1
shift
mount -t proc proc /proc
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' "$binfmt" >/proc/sys/fs/binfmt_misc/register
exec "$@"
"""


def check_programs(packages: Mapping[str, str]) -> None:
    """Exit, saying what to install, where a program is missing. packages: programs -> the Debian packages with them."""
    missing = {package for program, package in packages.items() if shutil.which(program) is None}
    if missing:
        sys.exit(f"Missing: apt-get install {' '.join(sorted(missing))}")


def make_if_missing(root: Path, make: Callable[[Path], None]) -> None:
    """Make a root, under another name until it is whole."""
    if root.exists():
        return
    began = time.monotonic()
    say(f"making {root} ...")
    scratch = root.with_name(f"{root.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    make(scratch)
    scratch.rename(root)
    say(f"made in {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    """Print a line, flushed: minutes of work follow."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def shown(command: Sequence[str], before: str = "", environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command and print its lines as they come, each behind `before`; its exit code, and all that it printed."""
    printed = ""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            printed += line
            say(f"{before}{line.rstrip()}")
    return process.returncode, printed


def timed(name: str, run: Callable[[], int]) -> int:
    """Run something, and say how long that took; its exit code."""
    began = time.monotonic()
    code = run()
    say(f"{name}: exit code {code}, {time.monotonic() - began:.0f} s")
    return code


def running_arm_programs(command: Sequence[str]) -> list[str]:
    """The command in namespaces of its own, in which programs for arm64 run."""
    ids = "0:0:65536"
    users = [f"--map-users={ids}", f"--map-groups={ids}"] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = ["unshare", "--user", *users, "--mount", "--pid", "--fork", "--", "sh", "-euc", _REGISTER, "sh"]
    return [*unshare, _BINFMT.format(qemu=shutil.which("qemu-aarch64")), *command]


def unpack(root: Path) -> None:
    """A root whose packages are unpacked, not set up: enough to run programs in. Takes half a minute."""
    subprocess.run(_mmdebstrap(root, "--variant=extract", (*PACKAGES, "coreutils", "dash")), check=True)
    for name in ("bin", "lib", "sbin"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys"):
        (root / name).mkdir(exist_ok=True)


def set_up(root: Path, packages: Sequence[str]) -> None:
    """A root that is ready to boot. Takes root's rights, and four minutes: an emulated core sets the packages up."""
    # Whether programs for arm64 run here is not asked, which takes another package: they do.
    command = _mmdebstrap(root, "--variant=minbase", (*PACKAGES, *packages), "--mode=root", "--skip=check/qemu")
    subprocess.run(running_arm_programs(command), check=True)


def install(root: Path) -> None:
    """Debian's Python in /opt/pocketllm, with what pyproject.toml and the tests need."""
    (root / "work").mkdir(exist_ok=True)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    _uv_install(root, "--only-binary", ":all:", *needed, *REQUIREMENTS)
    environment = root / "opt/pocketllm"
    (environment / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {PYTHON}\n")
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to("/usr/bin/python3")
    program = environment / "bin/pocketllm"
    program.write_text("#!/opt/pocketllm/bin/python\nfrom pocketllm.cli.main import main\n\nmain()\n")
    program.chmod(0o755)


def install_product(root: Path) -> None:
    """The product, from the tree that was copied to /work."""
    _uv_install(root, "--no-deps", "--reinstall-package", "pocketllm", str(root / "work"))


def _uv_install(root: Path, *options: str) -> None:
    uv = [UV, "pip", "install", "--no-sources", "--quiet", "--target", str(root / SITE_PACKAGES)]
    platform = ["--python-platform", "aarch64-manylinux_2_28", "--python-version", PYTHON]
    subprocess.run([*uv, *platform, *options], check=True)


def _mmdebstrap(root: Path, variant: str, packages: Sequence[str], *more: str) -> list[str]:
    root.parent.mkdir(parents=True, exist_ok=True)
    include = f"--include={','.join(packages)}"
    return ["mmdebstrap", "--quiet", "--architectures=arm64", variant, include, *more, SUITE, str(root)]
