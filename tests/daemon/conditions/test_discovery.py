"""Which sensors a machine is found to have: a phone, a laptop, a desktop, a server."""

from dataclasses import replace
from pathlib import Path

import pytest

from pocketllm.daemon.conditions.discovery import Places, discover_sensors
from pocketllm.daemon.conditions.readings import Reading
from tests.support.daemon.gate_world import answered
from tests.support.executables import answering, executable

ALL = [
    *("power", "plug", "battery", "temperature", "health"),
    *("screen", "idle", "memory", "memory pressure", "heat", "disk"),
]


def read(places: Places, folder: Path) -> dict[str, Reading]:
    """What is seen once everything that is asked has answered."""
    return answered(discover_sensors(folder, folder / "stamp", places).sensors)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of commands, the only one on the PATH but for the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def places(path: Path, tmp_path: Path, *, android: bool, proot: bool = False) -> Places:
    environment = {"PATH": "/usr/bin:/bin" if proot else f"{path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    if proot:  # what proot-distro's launcher passes on
        environment |= {"ANDROID_ROOT": "/system", "ANDROID_DATA": "/data", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    elif android:
        environment |= {"TERMUX_VERSION": "0.119", "PREFIX": "/data/data/com.termux/files/usr"}
    return Places(
        environment=environment,
        supplies=tmp_path / "power_supply",
        seats=tmp_path / "seats",
        graphics=tmp_path / "drm",
        getprop=str(path / "getprop"),
        dumpsys=str(path / "dumpsys"),
        termux_commands=path,
    )


@pytest.mark.parametrize("proot", [False, True], ids=["termux", "proot"])
def test_a_phone(path: Path, tmp_path: Path, *, proot: bool) -> None:
    """In a proot, too, it is Termux's commands that say how the phone is."""
    said = '{"percentage": 55, "plugged": "PLUGGED_USB", "status": "CHARGING", "temperature": 30.1, "health": "GOOD"}'
    answering(path, "termux-battery-status", said)
    answering(path, "getprop", "1\n")
    found = read(places(path, tmp_path, android=True, proot=proot), tmp_path)
    assert list(found) == ALL
    assert {name: (found[name].value, found[name].unit) for name in ALL[:7]} == {
        "power": (True, None),
        "plug": ("usb", None),
        "battery": (55, "%"),
        "temperature": (30.1, "°C"),
        "health": ("good", None),
        "screen": (False, None),
        "idle": (pytest.approx(0, abs=30), "s"),
    }


def test_a_phone_without_termux_api_knows_nothing_of_its_battery(path: Path, tmp_path: Path) -> None:
    """Where a Linux machine without supplies would be a desktop, and on power."""
    answering(path, "getprop", "2\n")
    found = read(places(path, tmp_path, android=True), tmp_path)
    for name in ("power", "battery"):
        assert found[name].unknown and "pkg install termux-api" in str(found[name].reason)
    assert found["screen"].value is True and found["idle"].value == 0


def test_a_phone_whose_vendor_took_the_property_out_is_asked_by_dumpsys(path: Path, tmp_path: Path) -> None:
    answering(path, "getprop", "\n")
    answering(path, "dumpsys", "  mWakefulness=Awake\n")
    found = read(places(path, tmp_path, android=True), tmp_path)
    assert (found["screen"].value, found["idle"].value) == (True, 0)


def test_a_phone_that_tells_nothing(path: Path, tmp_path: Path) -> None:
    executable(path, "termux-battery-status", "exit 1")
    found = read(places(path, tmp_path, android=True), tmp_path)
    assert all(found[name].unknown for name in ("power", "battery", "screen", "idle"))


def test_a_laptop(path: Path, tmp_path: Path) -> None:
    (tmp_path / "seats").mkdir()
    executable(path, "busctl", "printf 'b false\\nt 0\\n'")
    battery = tmp_path / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    for name, content in {"type": "Battery", "status": "Discharging", "present": "1", "capacity": "71"}.items():
        (battery / name).write_text(content)
    found = read(places(path, tmp_path, android=False), tmp_path)
    assert list(found) == ALL
    assert (found["power"].value, found["battery"].value, found["plug"].value) == (False, 71, "none")
    assert found["screen"].absent and found["idle"].value == 0


def test_a_server_has_nobody_to_be_disturbed(path: Path, tmp_path: Path) -> None:
    found = read(places(path, tmp_path, android=False), tmp_path)
    assert found["power"].value is True
    assert all(found[name].absent for name in ("battery", "temperature", "health", "screen", "idle"))


def test_a_desktop_without_logind_does_not_say_whether_it_is_used(path: Path, tmp_path: Path) -> None:
    status = tmp_path / "drm" / "card0-HDMI-A-1" / "status"
    status.parent.mkdir(parents=True)
    status.write_text("connected\n")
    found = read(places(path, tmp_path, android=False), tmp_path)
    assert found["idle"].unknown and "gate.require_idle" in str(found["idle"].reason)


def test_a_proot_is_known_by_androids_own_command_too(path: Path, tmp_path: Path) -> None:
    here = replace(places(path, tmp_path, android=False), termux_commands=tmp_path / "none")
    assert not here.is_android
    answering(path, "getprop", "1\n")
    assert (here.is_android, here.is_proot, here.is_termux) == (True, True, False)
    found = read(here, tmp_path)
    assert found["power"].unknown and found["battery"].unknown and found["screen"].value is False


def test_this_machines_sensors_answer_whatever_it_is(tmp_path: Path) -> None:
    for reading in read(Places(), tmp_path).values():
        assert reading.source and (reading.value is not None or reading.reason)
