"""The service for Termux under the real runit, with the real daemon, in a prefix that looks like Termux's."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.client import Client
from pocketllm.home import find_target
from tests.support.daemon.real_daemon import eventually
from tests.support.installed_phone import PROGRAMS, InstalledPhone, command_lines
from tests.support.models.tiny_models import tiny_model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason="runit is not installed: apt-get install runit"),
]


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[InstalledPhone]:
    made = InstalledPhone(tmp_path / "phone", tiny_model_folder(tmp_path / "models"))
    yield made
    made.switch_off()
    eventually(lambda: not made.supervisors() and made.daemon is None, "the end of the services")


@pytest.mark.smoke
def test_it_runs_from_the_boot_on_and_comes_back_when_it_is_killed(phone: InstalledPhone) -> None:
    phone.boot()
    pid = eventually(lambda: phone.daemon, "an answer after the boot")
    assert phone.sv("status").startswith("run: ")
    for _ in range(2):
        os.kill(pid, signal.SIGKILL)
        before, pid = pid, eventually(lambda: phone.daemon, "an answer after the kill")
        assert pid != before
    assert "ended with code -1; starting again" in eventually(lambda: phone.log, "a log")
    phone.sv("down")
    eventually(lambda: phone.daemon is None and phone.sv("status").startswith("down: "), "it stays down")


def test_a_login_after_the_boot_starts_no_second_supervisor(phone: InstalledPhone) -> None:
    boot = phone.boot()
    eventually(lambda: phone.daemon, "an answer after the boot")
    phone.log_in()
    assert phone.supervisors() == [boot.pid]


def test_a_boot_after_a_login_starts_no_second_supervisor(phone: InstalledPhone) -> None:
    phone.log_in()
    eventually(lambda: phone.daemon, "an answer after the login")
    running = phone.supervisors()
    assert phone.boot().wait(timeout=30) == 0
    assert phone.supervisors() == running and len(running) == 1
    assert "the services run already" in (phone.home / ".pocketllm-boot.log").read_text()


def test_androids_idle_hook_starts_the_job_that_waits(phone: InstalledPhone) -> None:
    """The screen has been off for less than ten minutes, as far as the daemon has seen: Android knows better."""
    phone.boot()
    eventually(lambda: phone.daemon, "an answer after the boot")
    with Client(find_target(None, phone.data)) as client:
        client.post(
            "texts", body=[{"text": f"Note {day}: wind west, glass rising.", "source": "a"} for day in range(40)]
        )

        def reasons() -> list[str]:
            return [reason for job in client.get("jobs")["data"] for reason in job["reasons"]]

        [reason] = eventually(reasons, "a job, and why it waits")
        assert "idle for 0 of" in reason
        phone.idle()
        eventually(lambda: client.get("jobs")["data"][0]["state"] == "succeeded", "the end of the job")
    eventually(lambda: phone.calls.read_text().count("unlock") == 2, "the lock is given back")
    at_start, *later = phone.calls.read_text().split()
    assert at_start == "termux-wake-unlock", "what a killed daemon may have left"
    assert later == ["termux-wake-lock", "termux-wake-unlock"], "one for look and job"


def test_an_idle_hook_that_runs_as_soon_as_it_is_registered_ends_nothing(phone: InstalledPhone) -> None:
    """Android runs a job at once when the phone is idle and charging as it is scheduled."""
    phone.idle_file.touch()
    phone.boot()
    pid = eventually(lambda: phone.daemon, "an answer after the boot")
    eventually((phone.data / "idle.stamp").exists, "the hook")
    *_, asked = phone.asked.read_text().splitlines()
    assert all(f"--ez {one} true" in asked for one in ("idle", "charging", "persisted")) and "network any" in asked
    eventually(lambda: phone.calls.read_text().count("unlock") == 2, "the end of the look that it asked for")
    assert phone.daemon == pid and "ended with code" not in phone.log


def test_the_idle_hook_may_run_while_the_daemon_starts_and_ends(phone: InstalledPhone) -> None:
    phone.boot()
    eventually(lambda: phone.sv("status").startswith("run: "), "the service")
    eventually(lambda: phone.sv("1") or phone.daemon, "an answer, with a signal at each look")
    phone.sv("down")
    eventually(lambda: phone.sv("1") or phone.sv("status").startswith("down: "), "the end")
    assert "ended with code" not in phone.log


def test_a_restart_does_not_wait_for_the_back_off(phone: InstalledPhone) -> None:
    damaged = phone.data / "pocketllm.db"
    damaged.write_bytes(b"no database")
    phone.environment["POCKETLLM_BACKOFF_SECONDS"] = "613"
    phone.boot()
    eventually(lambda: "ended with code 1; starting again" in phone.log, "the first failure")
    eventually(lambda: waiting("613"), "the back-off")
    assert phone.sv("restart").startswith("ok: run: ")
    eventually(lambda: phone.log.count("starting again") == 2, "the second failure")
    damaged.unlink()
    eventually(lambda: waiting("613"), "the back-off")
    assert phone.sv("restart").startswith("ok: run: ")
    eventually(lambda: phone.daemon, "an answer")
    assert not waiting("613")
    phone.sv("down")


def waiting(seconds: str) -> list[str]:
    """The processes that wait for so long."""
    return [line for line in command_lines().values() if line == f"sleep\0{seconds}\0"]


def test_bad_settings_end_the_service_until_they_are_mended(phone: InstalledPhone) -> None:
    config = phone.home / "config.toml"
    good = config.read_text()
    config.write_text(good.replace("port = 0", "port = 99999"))
    phone.boot()
    eventually(lambda: "does not start again by itself" in phone.log, "an explanation")
    eventually(lambda: phone.sv("status").startswith("down: "), "the service's end")
    assert phone.log.count("Setting port has the value 99999") == 1
    config.write_text(good)
    phone.sv("up")
    eventually(lambda: phone.daemon, "an answer")
