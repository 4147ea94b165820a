"""The scripts for Termux, run by dash in folders that stand for a phone's, with commands that note their calls."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon.real_daemon import eventually
from tests.support.executables import executable
from tests.support.paths import ROOT

TERMUX = ROOT / "termux"
SCRIPTS = sorted(path for path in TERMUX.rglob("*") if path.is_file() and path.suffix != ".txt")
SHEBANG = "#!/data/data/com.termux/files/usr/bin/sh"


def test_each_is_for_termux_own_shell() -> None:
    assert len(SCRIPTS) >= 7
    for script in SCRIPTS:
        assert script.read_text().splitlines()[0] == SHEBANG, script
        assert script.stat().st_mode & 0o111, f"{script} cannot be run"


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed: apt-get install shellcheck"
)
def test_shellcheck_finds_nothing() -> None:
    files = [*SCRIPTS, *(ROOT / "examples").glob("*.sh")]
    ended = subprocess.run(
        ["shellcheck", "--shell=dash", *map(str, files)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout


#: What `pocketllm service install` does on a phone.
_INSTALL = """
import sys
from pathlib import Path
from pocketllm.service import Runit
Runit(*map(Path, sys.argv[1:])).install()
"""


def dash(script: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts."""
    command = ["dash", str(TERMUX / script), *arguments]
    return subprocess.run(command, env=environment, input="", capture_output=True, text=True, timeout=60, check=False)


class Phone:
    """A home, a prefix, and commands on the PATH."""

    def __init__(self, root: Path) -> None:
        self.root, self.home, self.prefix, self.bin = root, root / "home", root / "usr", root / "bin"
        self.home.mkdir(parents=True)
        self.bin.mkdir()
        (self.prefix / "bin").mkdir(parents=True)
        self.note = self.root / "calls"
        for name in ("dpkg", "pkg", "sv", "getprop", "service-daemon", "termux-wake-lock", "termux-wake-unlock"):
            self.command(name)
        self.command("termux-api", folder=self.prefix / "libexec")
        # A virtual environment is made, with a python and a pocketllm that note their calls, too.
        self.python("3.14")
        self.command("made", f'[ "$1" != service ] || exec {sys.executable} -c "{_INSTALL}" "$HOME" "$PREFIX" "$0"')

    def python(self, version: str) -> None:
        """The phone's Python, which makes such an environment."""
        self.command(
            "python",
            f'case "$2" in *version_info*) echo {version} ;; esac; [ "$1" = -c ] && exit; '
            f'for folder; do :; done; [ "$3" != --clear ] || rm -rf "$folder"; '
            f'mkdir -p "$folder/bin" "$folder/lib/python{version}"; '
            f'cp {self.bin}/made "$folder/bin/python"; cp {self.bin}/made "$folder/bin/pocketllm"',
        )

    def command(self, name: str, script: str = "", folder: Path | None = None) -> None:
        """A command that notes how it is called, and then does this."""
        executable(folder or self.bin, name, f'echo "$(basename "$0") $*" >> "{self.note}"\n{script}')

    def run(self, script: str, *arguments: str, code: int = 0) -> str:
        """Run one of the scripts, which must end with this exit code; what it said."""
        ended = dash(script, *arguments, environment=self.environment())
        assert ended.returncode == code, ended.stderr
        return ended.stdout

    def environment(self) -> dict[str, str]:
        """What a shell has there."""
        return {"HOME": str(self.home), "PREFIX": str(self.prefix), "PATH": f"{self.bin}:/usr/bin:/bin"}

    def calls(self) -> list[str]:
        """What was called, and how."""
        return self.note.read_text().splitlines() if self.note.exists() else []

    def files(self) -> dict[str, str]:
        """All files of home and prefix, but for the commands."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            for top in (self.home, self.prefix)
            for path in sorted(top.rglob("*"))
            if path.is_file() and path.name not in ("termux-api", "python")
        }


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return Phone(tmp_path / "phone")


SERVICE = "usr/var/service/pocketllm"
NO_QUESTION = "-y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
INSTALLED = {
    f"{SERVICE}/run",
    f"{SERVICE}/finish",
    f"{SERVICE}/log/run",
    "home/.termux/boot/00-pocketllm",
    "home/.local/bin/pocketllm-idle-hook",
}


def test_it_installs_twice_in_a_row_and_uninstalls_cleanly(phone: Phone) -> None:
    phone.run("install.sh")
    files = phone.files()
    assert files.keys() >= INSTALLED
    assert f'"{phone.home}/.local/share/pocketllm-venv/bin/pocketllm" serve' in files[f"{SERVICE}/run"]
    assert "@VENV@" not in "".join(files.values())
    calls = phone.calls()
    assert calls[:2] == ["dpkg --force-confdef --force-confold --configure -a", f"pkg upgrade {NO_QUESTION}"]
    assert any(call.startswith("pkg install python ") and "python-torch" in call for call in calls)
    assert f"pkg install llama-cpp {NO_QUESTION}" in calls
    assert all(call.endswith(NO_QUESTION) for call in calls if call.startswith("pkg "))
    compiled = [call.rpartition(" ")[2] for call in calls if "--constraint" in call and "--upgrade" not in call]
    assert compiled == ["pydantic", "safetensors", "regex", "pyyaml", "ijson"]
    [whole] = [call for call in calls if "--upgrade" in call]
    assert whole.startswith("python -m pip install --constraint ") and whole.endswith(f" {ROOT}")
    assert calls.index("termux-wake-lock ") < calls.index(whole) < calls.index("termux-wake-unlock ")
    assert calls.index("service-daemon start") < calls.index("termux-wake-unlock ") == len(calls) - 1
    link = phone.prefix / "bin/pocketllm"
    assert link.readlink() == phone.home / ".local/share/pocketllm-venv/bin/pocketllm"
    assert "pocketllm models add" in calls

    phone.run("install.sh")
    assert phone.files() == files

    for _ in range(2):  # nothing to do is no error
        phone.run("uninstall.sh")
        assert phone.files() == {} and not link.is_symlink()


def test_an_environment_of_another_python_is_made_anew(phone: Phone) -> None:
    phone.run("install.sh")
    environment = phone.home / ".local/share/pocketllm-venv"
    (environment / "left").touch()
    phone.run("install.sh")
    assert (environment / "left").exists()
    phone.python("3.15")
    phone.run("install.sh")
    assert not (environment / "left").exists() and (environment / "lib/python3.15").is_dir()


def test_an_installer_that_fails_says_so(phone: Phone) -> None:
    phone.command("python", "exit 1")
    assert "Termux's torch cannot be loaded" in phone.run("install.sh", code=1)
    assert not any("pip install" in call for call in phone.calls()), "hours of compiling"
    phone.command("pkg", "exit 100")
    phone.run("install.sh", code=100)
    assert not (phone.prefix / "var/service/pocketllm").exists()


def test_the_owners_words_stay_unless_told_otherwise(phone: Phone) -> None:
    phone.run("install.sh")
    database = phone.home / ".local/share/pocketllm/pocketllm.db"
    database.parent.mkdir(parents=True)
    database.write_text("words")
    phone.run("uninstall.sh")
    assert database.exists()
    phone.run("uninstall.sh", "--data")
    assert not database.exists()


def test_a_service_that_runs_is_restarted(phone: Phone) -> None:
    supervise = phone.prefix / "var/service/pocketllm/supervise"
    supervise.mkdir(parents=True)
    (supervise / "ok").touch()
    phone.run("install.sh")
    assert f"sv -w 60 restart {phone.prefix}/var/service/pocketllm" in phone.calls()
    phone.run("uninstall.sh")
    assert f"sv exit {phone.prefix}/var/service/pocketllm" in phone.calls()


def test_what_only_makes_it_faster_may_be_missing_and_the_services_may_run_already(phone: Phone) -> None:
    phone.command("pkg", 'case "$2" in llama-cpp | python-tokenizers | maturin) exit 100 ;; esac')
    phone.command("service-daemon", "exit 1")
    said = phone.run("install.sh")
    assert "llama-cpp is not available; answers will take longer" in said and "== Done." in said


def test_it_is_refused_outside_of_termux(tmp_path: Path) -> None:
    for script in ("install.sh", "uninstall.sh"):
        ended = dash(script, environment={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
        assert ended.returncode != 0 and "This is for Termux" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_after_failures_the_service_waits_longer_and_longer(phone: Phone) -> None:
    (phone.prefix / "var/run").mkdir(parents=True)

    state = phone.prefix / "var/run/pocketllm.failures"
    told = phone.prefix / "var/run/pocketllm.wait"

    def waits(code: int, by_signal: int = 0) -> str:
        told.unlink(missing_ok=True)
        phone.run("service/finish", str(code), str(by_signal))
        return told.read_text().strip() if told.exists() else ""

    assert [waits(1) for _ in range(9)] == ["15", "30", "60", "120", "240", "480", "900", "900", "900"]
    assert waits(0) == ""
    assert waits(-1, signal.SIGKILL) == "15"
    assert waits(-1, signal.SIGTERM) == "" and not state.exists(), "ended by sv while it started"
    assert waits(-1, signal.SIGUSR1) == "", "Android's idle hook, before the shell ignored it"
    state.write_text("many")
    assert waits(1) == "15"


@pytest.mark.parametrize("noted", ["runsvdir", "another", "dead"])
def test_at_boot_one_runsvdir_is_enough(phone: Phone, noted: str) -> None:
    """The number that was noted before a reboot may be another program's, or nobody's."""
    phone.command("runsvdir")
    running = subprocess.Popen([executable(phone.root, "another" if noted == "dead" else noted, "sleep 600 & wait")])
    (phone.prefix / "var/run").mkdir(parents=True)
    (phone.prefix / "var/run/service-daemon.pid").write_text(str(running.pid))
    try:
        if noted == "dead":
            running.kill()
            running.wait()
        phone.run("boot.sh")
    finally:
        running.kill()
        running.wait()
    assert phone.calls() == ([] if noted == "runsvdir" else [f"runsvdir {phone.prefix}/var/service"])


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_installer_and_gives_the_wake_lock_back(phone: Phone, number: signal.Signals) -> None:
    phone.command("getprop", f'echo began >"{phone.root}/began"; exec sleep 600')  # what it does for long
    # A shell cannot trap what was ignored as it began, as where the tests run under nohup.
    command = ["env", "--default-signal", "dash", str(TERMUX / "install.sh")]
    with subprocess.Popen(command, env=phone.environment(), stdout=subprocess.DEVNULL, start_new_session=True) as run:
        eventually((phone.root / "began").exists, "its work")
        os.killpg(run.pid, number)
        assert run.wait(30) != 0
    assert phone.calls()[-1] == "termux-wake-unlock "
