"""Power supplies, on folders that look like the kernel's."""

from pathlib import Path

from pocketllm.daemon.conditions.linux_power import sensors
from pocketllm.daemon.conditions.readings import Reading, Value
from tests.support.daemon.workers import NOW

#: A power supply: the names of its attributes and what is in them.
Supply = dict[str, str]
#: By name: the supplies of a machine, and what a sensor reads there.
Rows = dict[str, tuple[list[Supply], Value]]

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


def check(name: str, root: Path, rows: Rows) -> None:
    """Compare what a sensor reads in each row's folder. No value means that the machine has no such thing."""
    found = {row: read(name, supplies(root / row, *present)) for row, (present, _) in rows.items()}
    assert {row: reading.value for row, reading in found.items()} == {row: value for row, (_, value) in rows.items()}
    assert [row for row, reading in found.items() if reading.absent is not (reading.value is None)] == []


def without(supply: Supply, name: str) -> Supply:
    return {key: value for key, value in supply.items() if key != name}


def test_power(tmp_path: Path) -> None:
    rows: Rows = {
        "no supply at all, as on a desktop": ([], True),
        "charger in": ([{"type": "Mains", "online": "1"}, DISCHARGING], True),
        "charger in, of programmable voltage": ([{"type": "USB", "online": "2"}, DISCHARGING], True),
        "charger out": ([AC_OFF, DISCHARGING], False),
        "charger out, no battery": ([AC_OFF], True),
        "one charger of two in": ([AC_OFF, {"type": "USB", "online": "1"}, DISCHARGING], True),
        "wireless charger": ([{"type": "Wireless", "online": "1"}, DISCHARGING], True),
        "supply without an attribute online": ([{"type": "Mains"}, DISCHARGING], False),
        "supply whose online is no number": ([{"type": "Mains", "online": "perhaps"}, DISCHARGING], False),
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
    check("power", tmp_path, rows)


def test_battery(tmp_path: Path) -> None:
    rows: Rows = {
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
    large, small = battery(capacity="80", energy_full="90000000"), battery(capacity="20", energy_full="30000000")
    rows["a large and a small one"] = [large, small], 65
    rows["one that does not tell its size"] = [large, battery(capacity="20", charge_full="1000")], 50
    rows["two that say nought"] = [{**large, "energy_full": "0"}, {**small, "energy_full": "0"}], 50
    check("battery", tmp_path, rows)


def test_a_reading_says_what_it_is_of(tmp_path: Path) -> None:
    folder = supplies(tmp_path / "power_supply", AC_OFF)
    assert read("power", folder) == Reading(name="power", value=True, unit=None, source=str(folder), at=NOW)
    assert read("battery", folder) == Reading(
        name="battery", value=None, unit="%", source=str(folder), at=NOW, reason="no battery", absent=True
    )


def test_a_level_that_cannot_be_or_is_not_there_is_unknown(tmp_path: Path) -> None:
    broken = {capacity: battery(capacity=capacity) for capacity in ("", "much", "nan", "-1", "100.1")}
    for row, supply in (broken | {"none": without(DISCHARGING, "capacity")}).items():
        for beside in ([], [battery(capacity="60")]):
            reading = read("battery", supplies(tmp_path / f"{row} {len(beside)}", supply, *beside))
            assert reading.unknown and reading.value is None, (row, beside)
            assert str(reading.reason).startswith("FileNotFoundError: " if row == "none" else "ValueError: ")


def test_where_the_kernel_has_no_such_folder_it_is_a_desktop(tmp_path: Path) -> None:
    assert read("power", tmp_path / "none").value is True
    assert read("battery", tmp_path / "none").absent


def test_a_folder_that_cannot_be_listed_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "power_supply").write_text("not a folder")
    for name in ("power", "battery"):
        reading = read(name, tmp_path / "power_supply")
        assert reading.unknown and not reading.absent
        assert reading.reason and reading.reason.startswith("NotADirectoryError: ")


def test_an_attribute_that_cannot_be_read_makes_what_follows_from_it_unknown(tmp_path: Path) -> None:
    of_power, of_the_battery = ("type", "status", "scope", "present"), ("type", "scope", "present", "capacity")
    for attribute in {*of_power, *of_the_battery}:
        folder = supplies(tmp_path / attribute, without(DISCHARGING, attribute))
        (folder / "supply0" / attribute).mkdir()
        power, level = read("power", folder), read("battery", folder)
        assert (power.unknown, level.unknown) == (attribute in of_power, attribute in of_the_battery), attribute
        assert all(str(one.reason).startswith("IsADirectoryError: ") for one in (power, level) if one.unknown)


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


def test_what_is_fed_by_the_machine_is_no_charger(tmp_path: Path) -> None:
    rows: dict[tuple[str, ...], bool] = {
        ("source [sink]",): True,
        ("[source] sink",): False,
        ("[source] sink", "source [sink]"): True,
        ("[source]", "[source] sink"): False,
        (): True,
    }
    for number, (roles, on_power) in enumerate(rows.items()):
        folder = supplies(tmp_path / str(number), {"type": "USB", "online": "1"}, DISCHARGING)
        with_port(folder, 0, *roles)
        assert read("power", folder).value is on_power, roles


def test_plug(tmp_path: Path) -> None:
    rows: Rows = {
        "a charger of the mains": ([{"type": "Mains", "online": "1"}, DISCHARGING], "ac"),
        "a computer's socket": ([{"type": "USB", "online": "1"}, DISCHARGING], "usb"),
        "a pad": ([{"type": "Wireless", "online": "1"}, DISCHARGING], "wireless"),
        "two, of which the stronger": ([{"type": "USB", "online": "1"}, {"type": "Mains", "online": "1"}], "ac"),
        "something new": ([{"type": "Cable", "online": "1"}, DISCHARGING], "another"),
        "nothing": ([AC_OFF, DISCHARGING], "none"),
        "a desktop": ([], "ac"),
    }
    check("plug", tmp_path, rows)


def test_the_batterys_temperature(tmp_path: Path) -> None:
    known = {"311": 31.1, "-50": -5.0, "0": 0.0}
    rows: Rows = {temp: ([battery(temp=temp)], celsius) for temp, celsius in known.items()}
    rows["several, of which the hottest"] = [battery(temp="300"), battery(temp="412"), DISCHARGING], 41.2
    rows["a battery that does not tell"] = [DISCHARGING], None
    check("temperature", tmp_path, rows)
    for temp in ("2147483647", "-400", "warm", "nan"):
        assert read("temperature", supplies(tmp_path / temp, battery(temp=temp))).unknown, temp


def test_the_batterys_health(tmp_path: Path) -> None:
    said = {"Good": "good", "Over voltage": "over_voltage", "Overheat": "overheat", "Unknown": None, "Cool": "cool"}
    rows: Rows = {word: ([battery(health=word)], health) for word, health in said.items()}
    rows["nothing said"] = [battery(health="")], None
    rows["a warm one and a dead one"] = [battery(health="Warm"), battery(health="Dead")], "dead"
    check("health", tmp_path, rows)
