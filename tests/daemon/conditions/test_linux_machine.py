"""What the kernel says of the machine: memory, pressure, heat, disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from pocketllm.daemon.conditions.linux_machine import sensors
from pocketllm.daemon.conditions.readings import Reading
from tests.support.daemon.workers import NOW


def read(name: str, source: Path) -> Reading:
    """What a sensor says of another file or folder than this machine's."""
    [sensor] = (sensor for sensor in sensors(source) if sensor.name == name)
    return replace(sensor, source=source).read(NOW)


@pytest.mark.parametrize(
    ("name", "unit", "content", "value"),
    [
        ("memory", "bytes", "MemTotal: 8000 kB\nMemAvailable:    2048 kB\nSwapFree: 5 kB\n", 2048 * 1024),
        ("memory", "bytes", "MemAvailable: 0 kB\n", 0),
        ("memory", "bytes", "MemTotal: 8000 kB\nMemFree: 100 kB\n", None),
        ("memory", "bytes", "MemAvailable: much kB\n", None),
        ("memory", "bytes", "MemAvailable: 2048 MB\n", None),
        ("memory", "bytes", "\ufffd\0\n:::\n", None),
        ("memory pressure", "%", "some avg10=12.50 avg60=3.00 total=123\nfull avg10=1.00 avg60=0.00 total=9\n", 12.5),
        ("memory pressure", "%", "", None),
        ("memory pressure", "%", "some avg10=lots", None),
        ("memory pressure", "%", "full avg10=1.0", None),
        ("memory pressure", "%", "some avg10=120.0", None),
    ],
)
def test_a_file_of_the_kernels(tmp_path: Path, name: str, unit: str, content: str, value: float | None) -> None:
    (tmp_path / "file").write_text(content)
    reading = read(name, tmp_path / "file")
    assert (reading.name, reading.value, reading.unit, reading.at) == (name, value, unit, NOW)
    assert reading.unknown is bool(reading.reason) is (value is None)


def test_memory_that_is_told_nowhere_is_unknown(tmp_path: Path) -> None:
    assert read("memory", tmp_path / "none").unknown
    assert read("memory", tmp_path).unknown


def test_a_kernel_that_does_not_tell_of_pressure_has_none(tmp_path: Path) -> None:
    assert read("memory pressure", tmp_path / "memory").absent


def zones(folder: Path, *contents: str) -> Path:
    """A folder like /sys/class/thermal."""
    for number, content in enumerate(contents):
        (folder / f"thermal_zone{number}").mkdir(parents=True)
        (folder / f"thermal_zone{number}" / "temp").write_text(content)
    return folder


def test_of_all_zones_the_hottest_counts(tmp_path: Path) -> None:
    folder = zones(tmp_path / "thermal", "41000\n", "66500\n", "-273000\n", "soon\n", "999000\n")
    reading = read("heat", folder)
    assert (reading.name, reading.value, reading.unit) == ("heat", 66.5, "°C")


def test_a_zone_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = zones(tmp_path / "thermal", "41000\n")
    (folder / "thermal_zone1" / "temp").mkdir(parents=True)
    assert read("heat", folder).value == 41.0


def test_where_no_zone_can_be_read_there_is_none(tmp_path: Path) -> None:
    assert read("heat", tmp_path / "thermal").absent


def test_disk(tmp_path: Path) -> None:
    reading = read("disk", tmp_path)
    assert isinstance(reading.value, float) and reading.value > 0 and reading.unit == "bytes"
    assert read("disk", tmp_path / "none").unknown
