"""Power supplies, on folders that look like the kernel's."""

from pathlib import Path

import pytest

from pocketllm.daemon.conditions.linux_power import sensors
from pocketllm.daemon.conditions.readings import Reading
from tests.support.workers import NOW

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


def read(name: str, folder: Path) -> Reading:
    [sensor] = (sensor for sensor in sensors(folder) if sensor.name == name)
    return sensor.read(NOW)


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
    reading = read("power", folder)
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
    reading = read("battery", supplies(tmp_path / "power_supply", *present))
    assert (reading.name, reading.value, reading.unit, reading.at) == ("battery", value, "%", NOW)
    assert (reading.absent, reading.unknown) == (value is None, False)
    assert reading.reason == ("no battery" if value is None else None)


@pytest.mark.parametrize("capacity", ["", "much", "nan", "inf", "-1", "130", "100.1"])
@pytest.mark.parametrize("beside", [[], [battery(capacity="60")]], ids=["alone", "beside a sound one"])
def test_a_level_that_cannot_be_is_unknown(tmp_path: Path, capacity: str, beside: list[Supply]) -> None:
    folder = supplies(tmp_path / "power_supply", battery(capacity=capacity), *beside)
    reading = read("battery", folder)
    assert reading.unknown and reading.value is None
    assert reading.reason and reading.reason.startswith("ValueError: ")


def test_a_battery_without_a_level_is_unknown(tmp_path: Path) -> None:
    folder = supplies(tmp_path / "power_supply", without(DISCHARGING, "capacity"))
    reading = read("battery", folder)
    assert reading.unknown and reading.reason and reading.reason.startswith("FileNotFoundError: ")


def test_where_the_kernel_has_no_such_folder_it_is_a_desktop(tmp_path: Path) -> None:
    assert read("power", tmp_path / "none").value is True
    assert read("battery", tmp_path / "none").absent


@pytest.mark.parametrize("name", ["power", "battery"])
def test_a_folder_that_cannot_be_listed_is_unknown(tmp_path: Path, name: str) -> None:
    (tmp_path / "power_supply").write_text("not a folder")
    reading = read(name, tmp_path / "power_supply")
    assert reading.unknown and not reading.absent
    assert reading.reason and reading.reason.startswith("NotADirectoryError: ")


@pytest.mark.parametrize("attribute", ["type", "status", "scope", "present"])
def test_an_attribute_that_cannot_be_read_makes_power_unknown(tmp_path: Path, attribute: str) -> None:
    folder = supplies(tmp_path / "power_supply", without(DISCHARGING, attribute))
    (folder / "supply0" / attribute).mkdir()
    reading = read("power", folder)
    assert reading.unknown and reading.reason and reading.reason.startswith("IsADirectoryError: ")


@pytest.mark.parametrize("attribute", ["type", "scope", "present", "capacity"])
def test_an_attribute_that_cannot_be_read_makes_the_battery_unknown(tmp_path: Path, attribute: str) -> None:
    folder = supplies(tmp_path / "power_supply", without(DISCHARGING, attribute))
    (folder / "supply0" / attribute).mkdir()
    assert read("battery", folder).unknown


def test_bytes_that_are_no_text_are_unknown(tmp_path: Path) -> None:
    folder = supplies(tmp_path / "power_supply", DISCHARGING)
    (folder / "supply0" / "type").write_bytes(b"\xff\xfe\x80")
    assert read("power", folder).unknown
    assert read("battery", folder).unknown


def with_port(folder: Path, supply: int, *roles: str) -> None:
    """Give a supply type-C ports with these roles, the one that is taken in brackets."""
    for number, role in enumerate(roles):
        port = folder / f"supply{supply}" / "device" / "typec" / f"port{number}"
        port.mkdir(parents=True)
        (port / "power_role").write_text(role + "\n")


@pytest.mark.parametrize(
    ("roles", "on_power"),
    [
        (["source [sink]"], True),
        (["[source] sink"], False),
        (["[source] sink", "source [sink]"], True),
        (["[source]", "[source] sink"], False),
        ([], True),
    ],
)
def test_what_is_fed_by_the_machine_is_no_charger(tmp_path: Path, roles: list[str], on_power: bool) -> None:
    folder = supplies(tmp_path / "power_supply", {"type": "USB", "online": "1"}, DISCHARGING)
    with_port(folder, 0, *roles)
    assert read("power", folder).value is on_power


PLUG_ROWS: dict[str, tuple[list[Supply], str]] = {
    "a charger of the mains": ([{"type": "Mains", "online": "1"}, DISCHARGING], "ac"),
    "a computer's socket": ([{"type": "USB", "online": "1"}, DISCHARGING], "usb"),
    "a pad": ([{"type": "Wireless", "online": "1"}, DISCHARGING], "wireless"),
    "two, of which the stronger": ([{"type": "USB", "online": "1"}, {"type": "Mains", "online": "1"}], "ac"),
    "something new": ([{"type": "Cable", "online": "1"}, DISCHARGING], "another"),
    "nothing": ([AC_OFF, DISCHARGING], "none"),
    "a desktop": ([], "ac"),
}


@pytest.mark.parametrize("row", PLUG_ROWS)
def test_plug(tmp_path: Path, row: str) -> None:
    present, value = PLUG_ROWS[row]
    assert read("plug", supplies(tmp_path / "power_supply", *present)).value == value


@pytest.mark.parametrize(
    ("temp", "celsius"),
    [("311", 31.1), ("-50", -5.0), ("0", 0.0), ("2147483647", None), ("-400", None), ("warm", None), ("nan", None)],
)
def test_the_batterys_temperature(tmp_path: Path, temp: str, celsius: float | None) -> None:
    reading = read("temperature", supplies(tmp_path / "power_supply", battery(temp=temp)))
    assert (reading.value, reading.unit, reading.unknown) == (celsius, "°C", celsius is None)


def test_of_several_batteries_the_hottest_counts(tmp_path: Path) -> None:
    folder = supplies(tmp_path / "power_supply", battery(temp="300"), battery(temp="412"), DISCHARGING)
    assert read("temperature", folder).value == 41.2


def test_a_battery_that_does_not_tell_its_temperature_has_none(tmp_path: Path) -> None:
    assert read("temperature", supplies(tmp_path / "power_supply", DISCHARGING)).absent


@pytest.mark.parametrize(
    ("health", "value"),
    [("Good", "good"), ("Over voltage", "over_voltage"), ("Overheat", "overheat"), ("Unknown", None), ("", None)],
)
def test_the_batterys_health(tmp_path: Path, health: str, value: str | None) -> None:
    reading = read("health", supplies(tmp_path / "power_supply", battery(health=health)))
    assert (reading.value, reading.absent) == (value, value is None)


@pytest.mark.parametrize(
    ("attributes", "watts"),
    [
        ({"status": "Charging", "power_now": "18500000"}, 18.5),
        ({"status": "Discharging", "power_now": "-6000000"}, -6.0),  # some drivers write a sign, most do not
        ({"status": "Charging", "current_now": "2000000", "voltage_now": "3800000"}, 7.6),
        ({"status": "Discharging", "current_now": "500000", "voltage_now": "4000000"}, -2.0),
        ({"status": "Full", "power_now": "0"}, 0.0),
        ({"status": "Not charging", "power_now": "20000"}, 0.0),
    ],
)
def test_what_flows_into_the_battery(tmp_path: Path, attributes: dict[str, str], watts: float) -> None:
    folder = supplies(tmp_path / "power_supply", battery(**attributes))
    reading = read("battery power", folder)
    assert reading.value == pytest.approx(watts)
    assert reading.unit == "W"


def test_a_battery_that_tells_neither_current_nor_power(tmp_path: Path) -> None:
    assert read("battery power", supplies(tmp_path / "power_supply", DISCHARGING)).absent
    said = battery(power_now="nothing")
    assert read("battery power", supplies(tmp_path / "another", said)).unknown
