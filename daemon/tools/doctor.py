"""Checks what works on this machine, what is unknown, and what to do about it."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pocketllm.daemon.adapter_files import set_aside_problem
from pocketllm.daemon.child import run
from pocketllm.daemon.conditions.discovery import PROOT_ADVICE, Places, SensorSet
from pocketllm.daemon.conditions.gate import GateContext, decide
from pocketllm.daemon.conditions.readings import Reading, shown, unanswered
from pocketllm.daemon.errors import ChildFailed
from pocketllm.daemon.generation.backend import LlamaCpp, find_llamacpp
from pocketllm.daemon.paths import DataFolder, config_file, ignored_config
from pocketllm.daemon.settings import Settings
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder

#: good: works. unknown: cannot be checked, and may not matter. bad: blocks jobs, or loses something.
State = Literal["good", "unknown", "bad"]
#: How long to wait for slow sensors.
LONGEST_SECONDS = 12.0
LONGEST_TRIAL_SECONDS = 120.0
#: For the requests that are answered at once, the database, and the pipes of its processes.
ENOUGH_FILES = 512
_POLL_SECONDS = 0.05
_TRIAL = """
import torch, transformers
numbers = torch.ones(64, 64)
for dtype in (torch.float32, torch.bfloat16):
    numbers.to(dtype) @ numbers.to(dtype)
"""
_INSTALL = "run termux/install.sh, or `pocketllm service install`"
_CANNOT_BE_SEEN = "an app cannot see whether Android kills child processes (12 and later) or suspends Termux"
_ANDROID_ADVICE = (
    "exclude Termux, Termux:API and Termux:Boot from battery optimisation; and switch on 'Disable child process "
    "restrictions' in the developer options, or run once from a computer: `adb shell settings put global "
    "settings_enable_monitor_phantom_procs false`"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: State
    message: str
    advice: str | None = None  #: what to do about it


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The results of all checks, and what the sensors said."""

    findings: list[Finding]
    readings: list[Reading]


def examine(settings: Settings, sensor_set: SensorSet, places: Places, now: Callable[[], datetime]) -> Examination:
    """Run all checks. Takes as long as the slowest sensor, or as torch's import."""
    for sensor in sensor_set.sensors:  # they find out meanwhile
        sensor.read(now())
    libraries = of_libraries()
    readings = settled(sensor_set, now)
    findings = [
        *_of_folder(DataFolder(settings.data_dir), settings),
        libraries,
        *_of_readings(readings, settings, now()),
        *_of_system(places),
    ]
    return Examination(findings=findings, readings=readings)


def settled(sensor_set: SensorSet, now: Callable[[], datetime]) -> list[Reading]:
    """The readings once all sensors have answered, or after LONGEST_SECONDS."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while True:
        readings = [sensor.read(now()) for sensor in sensor_set.sensors]
        if time.monotonic() > deadline or not unanswered(readings):
            return readings
        time.sleep(_POLL_SECONDS)


def _of_folder(folder: DataFolder, settings: Settings) -> Iterator[Finding]:
    root = folder.root
    if any(part in ("sdcard", "storage") for part in root.parts[:2]):
        message = f"{root} is on shared storage, which has no locks and no file owners"
        yield Finding("data folder", "bad", message, "choose a folder under $HOME with POCKETLLM_DATA_DIR")
    elif root.is_dir() and not os.access(root, os.W_OK):
        yield Finding("data folder", "bad", f"{root} is not writable", "take ownership of it (chown)")
    else:
        yield Finding("data folder", "good", str(root))
    file, ignored = config_file(), ignored_config(root)
    read = str(file) if file.exists() else f"defaults; there is no {file}"
    yield Finding("settings", "unknown" if ignored else "good", ignored or read)
    try:
        model_folder = open_model_folder(folder.models / settings.model)
        yield Finding("model", "good", settings.model)
        yield _of_backend(model_folder, settings)
    except ModelFileError as error:
        yield Finding("model", "bad", str(error), "run `pocketllm models add`")
    if problem := set_aside_problem(folder):
        yield Finding("set aside", "unknown", problem)


def of_libraries(program: str = _TRIAL) -> Finding:
    """Whether a child can import them and multiply. Some processors lack what their build wants, which ends it."""
    try:
        run([sys.executable, "-c", program], timeout_seconds=LONGEST_TRIAL_SECONDS)
    except ChildFailed as error:
        if not str(error).endswith(f"signal {signal.SIGILL.value}"):
            advice = "install them into the environment that `pocketllm` runs in"
            return Finding("libraries", "bad", f"torch and transformers cannot be imported: {error}", advice)
        message = "torch dies of an illegal instruction: its build needs a newer processor than this one"
        advice = 'on an Armv8.0 processor, such as Raspberry Pi 4, install "torch<2.10"'
        return Finding("libraries", "bad", message, advice)
    return Finding("libraries", "good", "torch and transformers work")


def _of_backend(model_folder: ModelFolder, settings: Settings) -> Finding:
    """llama.cpp is optional: without it, generation is only slower."""
    found = find_llamacpp(model_folder, settings.backend)
    if isinstance(found, LlamaCpp):
        return Finding("answers", "good", f"llama.cpp ({found.program}) with {found.base.name}")
    if settings.backend == "transformers":
        return Finding("answers", "good", f"transformers: {found.reason}")
    message = f"transformers, not llama.cpp: {found.reason}"
    if settings.backend == "auto":
        return Finding("answers", "unknown", message)
    return Finding("answers", "bad", message, "or set backend to auto")


def _of_readings(readings: Sequence[Reading], settings: Settings, now: datetime) -> Iterator[Finding]:
    verdict = decide(readings, settings.gate, GateContext(now=now, local=now.astimezone()))
    blocked = {blocker.name for blocker in verdict.blockers}
    for reading in readings:
        if reading.absent:
            yield Finding(reading.name, "good", f"this machine has none ({reading.reason})")
        elif reading.value is not None:
            yield Finding(reading.name, "good", f"{shown(reading)} ({reading.source})")
        elif reading.name in blocked:
            advice = "until it is known, no job starts by itself; docs/scheduling.md lists the sources of readings"
            yield Finding(reading.name, "bad", f"{reading.source}: {reading.reason}", advice)
        else:
            yield Finding(reading.name, "unknown", f"{reading.source}: {reading.reason}")


def _of_system(places: Places) -> Iterator[Finding]:
    """What starts the daemon here."""
    if places.is_termux:
        yield from _of_termux(places)
    elif places.is_proot:
        message = "this is a Linux distribution inside of Termux, where nothing starts the daemon"
        yield Finding("service", "unknown", message, PROOT_ADVICE)
    elif places.command("systemctl") is None:
        advice = "start `pocketllm serve` with the service manager of this system"
        yield Finding("service", "unknown", "there is no systemd to start the daemon", advice)
    elif not _limits_memory(places.cgroups):
        message = "the kernel has no memory cgroups, so MemoryMax in the unit has no effect; a job has its own limit"
        advice = "on a Raspberry Pi, add cgroup_enable=memory to /boot/firmware/cmdline.txt and restart"
        yield Finding("memory limit", "unknown", message, advice)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= most_files < ENOUGH_FILES:
        message = f"a process may open {most_files} files; many apps at once may need more"
        advice = f"raise the limit to {ENOUGH_FILES}: `ulimit -n`, or LimitNOFILE= in a unit"
        yield Finding("open files", "unknown", message, advice)
    if places.is_android:
        yield Finding("Android's limits", "unknown", _CANNOT_BE_SEEN, _ANDROID_ADVICE)


def _limits_memory(cgroups: Path) -> bool:
    """Whether the kernel has memory cgroups: listed in version 2, a folder in version 1."""
    try:
        return "memory" in (cgroups / "cgroup.controllers").read_text().split()
    except OSError:
        return (cgroups / "memory").is_dir()


def _of_termux(places: Places) -> Iterator[Finding]:
    home, prefix = (Path(places.environment.get(name, "/nowhere")) for name in ("HOME", "PREFIX"))
    service, boot = prefix / "var/service/pocketllm/run", home / ".termux/boot"
    if service.is_file():
        yield Finding("service", "good", "the runit service is installed")
    else:
        yield Finding("service", "bad", "there is no runit service: nothing starts the daemon", _INSTALL)
    if (boot / "00-pocketllm").is_file():
        yield Finding("boot", "good", "Termux:Boot starts the daemon after the first unlock")
    else:
        advice = f"{_INSTALL}, and open the app Termux:Boot once"
        yield Finding("boot", "bad", "nothing starts the daemon after a reboot", advice)
    folders = [entry.name for entry in boot.iterdir() if entry.is_dir()] if boot.is_dir() else []
    if folders:
        message = f"{boot} contains the folder {folders[0]}, at which Termux:Boot stops"
        yield Finding("boot folder", "bad", message, "move it elsewhere")
    if "SVDIR" not in places.environment:
        message = "SVDIR is not set, so sv-enable and sv-disable act on the wrong folder"
        yield Finding("SVDIR", "unknown", message, "run `pkg install termux-services` and open a new session")
