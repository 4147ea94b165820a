"""Checks what works on this machine, what is unknown, and what to do about it."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Literal

from pocketllm.daemon.adapter_files import set_aside_problem
from pocketllm.daemon.child_environment import last_words
from pocketllm.daemon.conditions.discovery import PROOT_ADVICE, Places, SensorSet
from pocketllm.daemon.conditions.gate import GateContext, decide
from pocketllm.daemon.conditions.readings import Reading, shown, unanswered
from pocketllm.daemon.generation.backend import LlamaCpp, find_llamacpp
from pocketllm.daemon.paths import DataFolder, config_file, ignored_config
from pocketllm.daemon.settings import Settings
from pocketllm.engine.errors import ModelFileError, ModelNotFound
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


@dataclass(frozen=True, kw_only=True)
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
    with torch_tried() as tried:
        readings = settled(sensor_set, now)
        findings = [
            *_of_folder(DataFolder(settings.data_dir), settings),
            _of_torch(tried),
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
    if any(part in ("sdcard", "storage") for part in folder.root.parts[:2]):
        yield Finding(
            name="data folder",
            state="bad",
            message=f"{folder.root} is on shared storage, which has no locks and no file owners",
            advice="choose a folder under $HOME with POCKETLLM_DATA_DIR",
        )
    elif folder.root.is_dir() and not os.access(folder.root, os.W_OK):
        yield Finding(
            name="data folder",
            state="bad",
            message=f"{folder.root} is not writable",
            advice="take ownership of it (chown)",
        )
    else:
        yield Finding(name="data folder", state="good", message=str(folder.root))
    file, ignored = config_file(), ignored_config(folder.root)
    yield Finding(
        name="settings",
        state="unknown" if ignored else "good",
        message=ignored or (str(file) if file.exists() else f"defaults; there is no {file}"),
    )
    try:
        model_folder = open_model_folder(folder.models / settings.model)
        yield Finding(name="model", state="good", message=settings.model)
        yield _of_backend(model_folder, settings)
    except (ModelNotFound, ModelFileError) as error:
        yield Finding(name="model", state="bad", message=str(error), advice="run `pocketllm models add`")

    if problem := set_aside_problem(folder):
        yield Finding(name="set aside", state="unknown", message=problem)


@contextmanager
def torch_tried(program: str = _TRIAL) -> Iterator[subprocess.Popen[str]]:
    """A child that imports the libraries and multiplies. Some processors lack what their build wants, which ends it."""
    child = subprocess.Popen([sys.executable, "-c", program], stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def _of_torch(tried: subprocess.Popen[str]) -> Finding:
    try:
        _, said = tried.communicate(timeout=LONGEST_TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        message = f"torch could not be imported within {LONGEST_TRIAL_SECONDS:g} s"
        return Finding(name="libraries", state="bad", message=message, advice="check the load of this machine")
    if tried.returncode == 0:
        return Finding(name="libraries", state="good", message="torch and transformers work")
    if tried.returncode == -signal.SIGILL:
        return Finding(
            name="libraries",
            state="bad",
            message="torch dies of an illegal instruction: its build needs a newer processor than this one",
            advice='on an Armv8.0 processor, such as Raspberry Pi 4, install "torch<2.10"',
        )
    return Finding(
        name="libraries",
        state="bad",
        message=f"torch and transformers cannot be imported: {last_words(said.encode())}",
        advice="install them into the environment that `pocketllm` runs in",
    )


def _of_backend(model_folder: ModelFolder, settings: Settings) -> Finding:
    """llama.cpp is optional: without it, generation is only slower."""
    found = find_llamacpp(model_folder, settings.backend)
    if isinstance(found, LlamaCpp):
        return Finding(name="answers", state="good", message=f"llama.cpp ({found.program}) with {found.base.name}")
    if settings.backend == "transformers":
        return Finding(name="answers", state="good", message=f"transformers: {found.reason}")
    return Finding(
        name="answers",
        state="unknown" if settings.backend == "auto" else "bad",
        message=f"transformers, not llama.cpp: {found.reason}",
        advice=None if settings.backend == "auto" else "or set backend to auto",
    )


def _of_readings(readings: Sequence[Reading], settings: Settings, now: datetime) -> Iterator[Finding]:
    verdict = decide(readings, settings.gate, GateContext(now=now, local=now.astimezone()))
    blocked = {blocker.name for blocker in verdict.blockers}
    for reading in readings:
        if reading.absent:
            yield Finding(name=reading.name, state="good", message=f"this machine has none ({reading.reason})")
        elif reading.value is None:
            matters = reading.name in blocked
            yield Finding(
                name=reading.name,
                state="bad" if matters else "unknown",
                message=f"{reading.source}: {reading.reason}",
                advice="until it is known, no job starts by itself; docs/scheduling.md lists the sources of readings"
                if matters
                else None,
            )
        else:
            yield Finding(name=reading.name, state="good", message=f"{shown(reading)} ({reading.source})")


def _of_system(places: Places) -> Iterator[Finding]:
    """What starts the daemon here."""
    if places.is_termux:
        yield from _of_termux(places)
    elif places.is_proot:
        yield Finding(
            name="service",
            state="unknown",
            message="this is a Linux distribution inside of Termux, where nothing starts the daemon",
            advice=PROOT_ADVICE,
        )
    elif places.command("systemctl") is None:
        yield Finding(
            name="service",
            state="unknown",
            message="there is no systemd to start the daemon",
            advice="start `pocketllm serve` with the service manager of this system",
        )
    elif not _limits_memory(places.cgroups):
        yield Finding(
            name="memory limit",
            state="unknown",
            message="the kernel has no memory cgroups, so MemoryMax in the unit has no effect; a job has its own limit",
            advice="on a Raspberry Pi, add cgroup_enable=memory to /boot/firmware/cmdline.txt and restart",
        )
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= most_files < ENOUGH_FILES:
        yield Finding(
            name="open files",
            state="unknown",
            message=f"a process may open {most_files} files; many apps at once may need more",
            advice=f"raise the limit to {ENOUGH_FILES}: `ulimit -n`, or LimitNOFILE= in a unit",
        )
    if places.is_android:
        yield Finding(
            name="Android's limits",
            state="unknown",
            message="an app cannot see whether Android kills child processes (12 and later) or suspends Termux",
            advice="exclude Termux, Termux:API and Termux:Boot from battery optimisation; and switch on 'Disable child "
            "process restrictions' in the developer options, or run once from a computer: `adb shell settings put "
            "global settings_enable_monitor_phantom_procs false`",
        )


def _limits_memory(cgroups: Path) -> bool:
    """Whether the kernel has memory cgroups: listed in version 2, a folder in version 1."""
    try:
        return "memory" in (cgroups / "cgroup.controllers").read_text().split()
    except OSError:
        return (cgroups / "memory").is_dir()


def _of_termux(places: Places) -> Iterator[Finding]:
    home, prefix = (Path(places.environment.get(name, "/nowhere")) for name in ("HOME", "PREFIX"))
    yield _there(
        prefix / "var/service/pocketllm/run",
        name="service",
        good="the runit service is installed",
        bad="there is no runit service: nothing starts the daemon",
        advice="run termux/install.sh, or `pocketllm service install`",
    )
    boot = home / ".termux/boot"
    yield _there(
        boot / "00-pocketllm",
        name="boot",
        good="Termux:Boot starts the daemon after the first unlock",
        bad="nothing starts the daemon after a reboot",
        advice="run termux/install.sh, or `pocketllm service install`, and open the app Termux:Boot once",
    )
    folders = [entry.name for entry in boot.iterdir() if entry.is_dir()] if boot.is_dir() else []
    if folders:
        yield Finding(
            name="boot folder",
            state="bad",
            message=f"{boot} contains the folder {folders[0]}, at which Termux:Boot stops",
            advice="move it elsewhere",
        )
    if "SVDIR" not in places.environment:
        yield Finding(
            name="SVDIR",
            state="unknown",
            message="SVDIR is not set, so sv-enable and sv-disable act on the wrong folder",
            advice="run `pkg install termux-services` and open a new session",
        )


def _there(file: Path, *, name: str, good: str, bad: str, advice: str) -> Finding:
    if file.is_file():
        return Finding(name=name, state="good", message=good)
    return Finding(name=name, state="bad", message=bad, advice=advice)
