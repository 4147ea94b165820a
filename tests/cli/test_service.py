"""`pocketllm service` and `pocketllm doctor`, with a systemctl that notes its calls, and with a phone's folders."""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

from pocketllm.errors import CommandError
from pocketllm.service import Systemd, own_command
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.daemon.commands import commands
from tests.support.daemon.workers import NOW
from tests.support.executables import executable
from tests.support.models.tiny_models import tiny_model_folder
from tests.support.systemd import complaints, with_systemd


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a PATH with a systemctl and a loginctl."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("PREFIX", "TERMUX_VERSION", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("POCKETLLM_CONFIG", str(folder / "config.toml"))
    for name in ("systemctl", "loginctl", "systemd-sysusers"):
        executable(
            tmp_path / "bin",
            name,
            f'echo "{name} $*" >> "{tmp_path}/calls"\ncase "$*" in *is-active*) echo active;; esac',
        )
    return folder


alone = commands(Path("/nowhere"))  # where there is no daemon


def calls(home: Path) -> list[str]:
    note = home.parent / "calls"
    return note.read_text().splitlines() if note.exists() else []


def test_a_unit_is_installed_and_started_twice_in_a_row_and_taken_away(home: Path) -> None:
    unit = home / ".config/systemd/user/pocketllm.service"
    for _ in range(2):
        alone.said("service", "install")
        [start] = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
        command = Path(start.removeprefix('ExecStart="').removesuffix('" serve'))
        assert command.is_absolute() and command.is_file() and command.name == "pocketllm"
    expected = [
        f"systemctl --user {verb}" for verb in ("show-environment", "daemon-reload", "enable pocketllm.service")
    ]
    expected += ["systemctl --user restart pocketllm.service", "loginctl enable-linger"]
    assert calls(home) == expected * 2
    document = alone.json("service", "status")
    assert (document["installed"], document["running"], document["files"]) == (True, True, [str(unit)])
    alone.said("service", "uninstall")
    assert not unit.exists()
    assert "systemctl --user disable --now pocketllm.service" in calls(home)
    assert "nothing to do" in alone("service", "uninstall").stdout


def test_without_a_users_bus_nothing_is_installed_and_it_says_what_to_do(home: Path) -> None:
    executable(home.parent / "bin", "systemctl", "echo >&2 'Failed to connect to bus'; exit 1")
    said = alone.refused("service", "install")
    assert not (home / ".config/systemd/user/pocketllm.service").exists()
    assert "Failed to connect to bus" in said and "Traceback" not in said
    assert "sudo pocketllm service install --system" in said
    assert alone("service", "status").exit_code == 1


def system_unit(home: Path, command: str) -> Systemd:
    """The system's unit, in a folder of the test's own."""
    return Systemd(home / "units", ("systemctl",), "pocketllm-system.service", Path(command))


def test_a_program_that_systemd_would_not_start_is_refused(home: Path, subtests: pytest.Subtests) -> None:
    user = partial(Systemd, home / "units", ("systemctl", "--user"), "pocketllm.service")
    hidden = ("/home/anna/bin/pocketllm", "/root/bin/pocketllm", "/tmp/x/pocketllm")
    odd = [home / folder / "pocketllm" for folder in ('say "so"', "back\\slash", "it's", "a\nb")]
    for unit in (*(system_unit(home, command) for command in hidden), *map(user, odd)):
        with (
            subtests.test(str(unit.command)),
            pytest.raises(CommandError, match=r"sandbox hides (?s:.*) /opt/pocketllm"),
        ):
            unit.install()
    assert calls(home) == [] and not (home / "units").exists()


def test_a_python_that_the_system_units_sandbox_hides_is_refused(home: Path) -> None:
    """As uv's own, which is in the home of who has installed it."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))  # neither hidden nor the system's
    (folder / "python").symlink_to("/root/.local/share/uv/python/bin/python3")
    try:
        with pytest.raises(CommandError, match=r"sandbox hides /root/\.local/share/uv"):
            system_unit(home, str(folder / "pocketllm")).install()
    finally:
        shutil.rmtree(folder)


def test_the_system_unit_has_a_user_before_it_starts(home: Path) -> None:
    system_unit(home, "/opt/pocketllm/bin/pocketllm").install()
    done = calls(home)
    made = done.index('systemd-sysusers --inline u pocketllm - "PocketLLM" /var/lib/pocketllm')
    assert made < done.index("systemctl restart pocketllm.service")
    assert "\nUser=pocketllm\n" in (home / "units/pocketllm.service").read_text()


@with_systemd
def test_systemd_finds_a_program_whose_path_needs_quotes(home: Path, subtests: pytest.Subtests) -> None:
    for folder in ("a b", "50%h", "$HOME", "süß"):
        with subtests.test(folder):
            command = Path(executable(home / folder, "pocketllm", ""))
            Systemd(home / "units", ("systemctl", "--user"), "pocketllm.service", command).install()
            assert complaints(home / "units/pocketllm.service", of_user=True) == ""


def test_where_nothing_starts_services_it_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))  # an empty folder
    assert "Neither Termux nor systemd" in alone.refused("service", "install")


@pytest.fixture
def phone(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same under Termux; the prefix."""
    prefix = home.parent / "com.termux" / "usr"
    (prefix / "bin").mkdir(parents=True)
    monkeypatch.setenv("PREFIX", str(prefix))
    monkeypatch.setenv("TERMUX_VERSION", "0.119")
    return prefix


def test_under_termux_it_is_runit_and_a_boot_entry(home: Path, phone: Path) -> None:
    alone.said("service", "install")
    run = phone / "var/service/pocketllm/run"
    boot = home / ".termux/boot/00-pocketllm"
    link = phone / "bin/pocketllm"
    assert "@VENV@" not in run.read_text() and run.stat().st_mode & 0o111 and boot.is_file()
    assert link.samefile(own_command())
    alone.said("service", "install")
    assert link.is_symlink(), "twice is harmless"
    document = json.loads(alone("service", "status", "--json").stdout)
    assert document["installed"] and document["manager"].startswith("runit")
    alone.said("service", "uninstall")
    assert not run.exists() and not boot.exists() and not link.is_symlink()


def test_under_termux_a_link_to_an_environment_that_is_gone_is_made_anew(home: Path, phone: Path) -> None:
    link = phone / "bin/pocketllm"
    link.symlink_to(home / "gone/bin/pocketllm")
    alone.said("service", "install")
    assert link.samefile(own_command())


def test_under_termux_another_program_of_the_name_stays(home: Path, phone: Path) -> None:
    executable(phone / "bin", "pocketllm", "echo another")
    told = f"is another program and was not replaced; PocketLLM's command is {own_command()}"
    assert told in alone.said("service", "install")
    alone.said("service", "uninstall")
    assert (phone / "bin/pocketllm").is_file()


def test_inside_of_a_proot_it_says_where_to_install_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ROOT", "/system")
    assert "in Termux, run `sh termux/install.sh`" in alone.refused("service", "install")
    assert not (home / ".config").exists() and calls(home) == []
    _, found = findings("--data-dir", str(home / "data"))
    assert "proot-distro login" in found["service"]["advice"] and "adb shell" in found["Android's limits"]["advice"]
    assert found["power"]["state"] == "bad" and "train_when_unknown" not in json.dumps(found)


def findings(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    result = alone("doctor", "--json", *arguments)
    document = json.loads(result.stdout)
    assert document["ok"] is (result.exit_code == 0)
    return result.exit_code, {finding["name"]: finding for finding in document["findings"]}


@pytest.mark.smoke
def test_the_doctor_of_a_phone_names_what_is_missing(home: Path, phone: Path) -> None:
    code, found = findings("--data-dir", str(home / "data"))
    assert code == 1
    for name in ("power", "battery", "screen", "model", "service", "boot"):
        assert found[name]["state"] == "bad" and found[name]["advice"], name
    assert "Termux:API" in found["power"]["message"]
    assert found["Android's limits"]["state"] == "unknown"
    assert findings("--data-dir", "/sdcard/pocketllm")[1]["data folder"]["state"] == "bad"
    (home / ".termux/boot/old").mkdir(parents=True)
    assert findings("--data-dir", str(home / "data"))[1]["boot folder"]["state"] == "bad"


def test_the_doctor_is_read_by_people_too(home: Path) -> None:
    result = alone("doctor", "--data-dir", str(home / "data"))
    assert result.exit_code == 1
    assert "pocketllm models add" in result.stdout and "Problems that prevent jobs" in result.stdout


def test_the_doctor_tells_of_the_device_and_nothing_of_the_owner(home: Path) -> None:
    data = home / "data"
    tiny_model_folder(data / "models", "smollm2-135m-instruct")
    store = Store.open(data / "pocketllm.db")
    store.texts.add([NewText(text="The combination of the safe is 7-31-12.", source="diary")], now=NOW)
    store.close()
    text = commands(data)("doctor", "--json").stdout
    assert "combination" not in text and str(home) not in text
    report = json.loads(text)
    assert report["ok"] is all(finding["state"] != "bad" for finding in report["findings"])
    assert "data folder" in {finding["name"] for finding in report["findings"]} and "~/data" in text
    assert report["versions"]["torch"] and report["device"]["machine"]
    assert report["calibration"] is None  # the tiny model was never measured
    assert report["readings"] and all(reading["age_seconds"] >= 0 for reading in report["readings"])
