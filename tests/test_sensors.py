"""Sensors on folders that look like the kernel's, and on this machine's own."""

from pathlib import Path

import pytest

from pocketllm.daemon.sensors import BatterySensor, MemorySensor, PowerSensor, Reading, default_sensors
from tests.working import NOW

#: A power supply: the names of its attributes and what is in them.
Supply = dict[str, str]

AC_OFF: Supply = {"type": "Mains", "online": "0"}
DISCHARGING: Supply = {"type": "Battery", "status": "Discharging", "capacity": "71", "present": "1"}
#: A mouse.
MOUSE: Supply = {"type": "Battery", "status": "Discharging", "capacity": "5", "scope": "Device"}


def battery(**attributes: str) -> Supply:
    return {**DISCHARGING, **attributes}


def supplies(folder: Path, *present: Supply) -> Path:
    """A folder like /sys/class/power_supply."""
    folder.mkdir()
    for number, attributes in enumerate(present):
        (folder / f"supply{number}").mkdir()
        for name, content in attributes.items():
            (folder / f"supply{number}" / name).write_text(content + "\n")
    return folder


def without(supply: Supply, name: str) -> Supply:
    return {key: value for key, value in supply.items() if key != name}


POWER_ROWS: dict[str, tuple[list[Supply], bool]] = {
    "no supply at all, as on a desktop": ([], True),
    "charger in": ([{"type": "Mains", "online": "1"}, DISCHARGING], True),
    "charger in, of programmable voltage": ([{"type": "USB", "online": "2"}, DISCHARGING], True),
    "charger out": ([AC_OFF, DISCHARGING], False),
    "charger out, no battery": ([AC_OFF], True),
    "one charger of two in": ([AC_OFF, {"type": "USB", "online": "1"}, DISCHARGING], True),
    "wireless charger": ([{"type": "Wireless", "online": "1"}, DISCHARGING], True),
    "supply without an attribute online": ([{"type": "Mains"}, DISCHARGING], False),
    "supply whose online is no number": ([{"type": "Mains", "online": "perhaps"}, DISCHARGING], False),
    "supply whose online is negative": ([{"type": "Mains", "online": "-1"}, DISCHARGING], False),
    "battery alone, discharging": ([DISCHARGING], False),
    "battery alone, charging": ([battery(status="Charging")], True),
    "battery alone, full": ([battery(status="Full")], True),
    "battery alone, limited by its owner": ([battery(status="Not charging")], True),
    "battery alone, status Unknown": ([battery(status="Unknown")], True),
    "battery alone, a status that there is not": ([battery(status="Overheated")], False),
    "battery alone, no status": ([without(DISCHARGING, "status")], False),
    "battery that was taken out": ([AC_OFF, battery(present="0")], True),
    "battery that does not say whether it is in": ([AC_OFF, without(DISCHARGING, "present")], False),
    "battery of a mouse": ([AC_OFF, MOUSE], True),
    "battery of a mouse beside the machine's own": ([MOUSE, battery(scope="System")], False),
    "two batteries, one discharging": ([battery(status="Full"), DISCHARGING], False),
}


@pytest.mark.parametrize("row", POWER_ROWS)
def test_power(tmp_path: Path, row: str) -> None:
    present, value = POWER_ROWS[row]
    folder = supplies(tmp_path / "power_supply", *present)
    reading = PowerSensor(folder).read(NOW)
    assert reading == Reading(name="power", value=value, unit=None, source=str(folder), at=NOW)
    assert not reading.unknown


BATTERY_ROWS: dict[str, tuple[list[Supply], float | None]] = {
    "no battery": ([AC_OFF], None),
    "of a mouse": ([MOUSE], None),
    "taken out": ([battery(present="0")], None),
    "in": ([DISCHARGING], 71),
    "in, and says so of the system": ([battery(scope="System")], 71),
    "does not say whether it is in": ([without(DISCHARGING, "present")], 71),
    "empty": ([battery(capacity="0")], 0),
    "full": ([battery(capacity="100", status="Full")], 100),
    "limited by its owner": ([battery(capacity="80", status="Not charging")], 80),
    "two, of which the mean": ([battery(capacity="40"), battery(capacity="90")], 65),
    "two, of which one was taken out": ([battery(capacity="40"), battery(capacity="90", present="0")], 40),
    "beside a mouse's": ([MOUSE, DISCHARGING], 71),
}


@pytest.mark.parametrize("row", BATTERY_ROWS)
def test_battery(tmp_path: Path, row: str) -> None:
    present, value = BATTERY_ROWS[row]
    reading = BatterySensor(supplies(tmp_path / "power_supply", *present)).read(NOW)
    assert (reading.name, reading.value, reading.unit, reading.at) == ("battery", value, "%", NOW)
    assert (reading.absent, reading.unknown) == (value is None, False)
    assert reading.reason == ("no battery" if value is None else None)


@pytest.mark.parametrize("capacity", ["", "much", "nan", "inf", "-1", "130", "100.1"])
@pytest.mark.parametrize("beside", [[], [battery(capacity="60")]], ids=["alone", "beside a sound one"])
def test_a_level_that_cannot_be_is_unknown(tmp_path: Path, capacity: str, beside: list[Supply]) -> None:
    folder = supplies(tmp_path / "power_supply", battery(capacity=capacity), *beside)
    reading = BatterySensor(folder).read(NOW)
    assert reading.unknown and reading.value is None
    assert reading.reason and reading.reason.startswith("ValueError: ")


def test_a_battery_without_a_level_is_unknown(tmp_path: Path) -> None:
    folder = supplies(tmp_path / "power_supply", without(DISCHARGING, "capacity"))
    reading = BatterySensor(folder).read(NOW)
    assert reading.unknown and reading.reason and reading.reason.startswith("FileNotFoundError: ")


def test_where_the_kernel_has_no_such_folder_it_is_a_desktop(tmp_path: Path) -> None:
    assert PowerSensor(tmp_path / "none").read(NOW).value is True
    assert BatterySensor(tmp_path / "none").read(NOW).absent


@pytest.mark.parametrize("sensor", [PowerSensor, BatterySensor])
def test_a_folder_that_cannot_be_listed_is_unknown(
    tmp_path: Path, sensor: type[PowerSensor] | type[BatterySensor]
) -> None:
    (tmp_path / "power_supply").write_text("not a folder")
    reading = sensor(tmp_path / "power_supply").read(NOW)
    assert reading.unknown and not reading.absent
    assert reading.reason and reading.reason.startswith("NotADirectoryError: ")


@pytest.mark.parametrize("attribute", ["type", "status", "scope", "present"])
def test_an_attribute_that_cannot_be_read_makes_power_unknown(tmp_path: Path, attribute: str) -> None:
    folder = supplies(tmp_path / "power_supply", without(DISCHARGING, attribute))
    (folder / "supply0" / attribute).mkdir()
    reading = PowerSensor(folder).read(NOW)
    assert reading.unknown and reading.reason and reading.reason.startswith("IsADirectoryError: ")


@pytest.mark.parametrize("attribute", ["type", "scope", "present", "capacity"])
def test_an_attribute_that_cannot_be_read_makes_the_battery_unknown(tmp_path: Path, attribute: str) -> None:
    folder = supplies(tmp_path / "power_supply", without(DISCHARGING, attribute))
    (folder / "supply0" / attribute).mkdir()
    assert BatterySensor(folder).read(NOW).unknown


def test_bytes_that_are_no_text_are_unknown(tmp_path: Path) -> None:
    folder = supplies(tmp_path / "power_supply", DISCHARGING)
    (folder / "supply0" / "type").write_bytes(b"\xff\xfe\x80")
    assert PowerSensor(folder).read(NOW).unknown
    assert BatterySensor(folder).read(NOW).unknown


@pytest.mark.parametrize(
    ("meminfo", "value"),
    [
        pytest.param("MemTotal: 8000 kB\nMemAvailable:    2048 kB\nSwapFree: 5 kB\n", 2048 * 1024, id="usual"),
        pytest.param("MemAvailable: 0 kB\n", 0, id="none left"),
        pytest.param("MemTotal: 8000 kB\nMemFree: 100 kB\n", None, id="not given"),
        pytest.param("", None, id="empty"),
        pytest.param("MemAvailable: much kB\n", None, id="no number"),
        pytest.param("MemAvailable: nan kB\n", None, id="NaN"),
        pytest.param("MemAvailable: kB\n", None, id="unit alone"),
        pytest.param("MemAvailable: 2048 MB\n", None, id="another unit"),
        pytest.param("\ufffd\0\n:::\n", None, id="garbage"),
    ],
)
def test_memory(tmp_path: Path, meminfo: str, value: float | None) -> None:
    (tmp_path / "meminfo").write_text(meminfo)
    reading = MemorySensor(tmp_path / "meminfo").read(NOW)
    assert (reading.name, reading.value, reading.unit, reading.at) == ("memory", value, "bytes", NOW)
    assert reading.unknown is (value is None)
    assert bool(reading.reason) is (value is None)


def test_memory_that_is_told_nowhere_is_unknown(tmp_path: Path) -> None:
    assert MemorySensor(tmp_path / "none").read(NOW).unknown
    assert MemorySensor(tmp_path).read(NOW).unknown


def test_this_machines_sensors_answer_whatever_it_is() -> None:
    readings = [sensor.read(NOW) for sensor in default_sensors()]
    assert [reading.name for reading in readings] == ["power", "battery", "memory"]
    for reading in readings:
        assert reading.at == NOW
        assert reading.source
        assert reading.value is not None or reading.reason
