"""A data folder with the real daemon, for tests that kill it and let its device fail; a charger; clients that post."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from safetensors.numpy import load_file

import bench.common.world
from bench.common.world import free_port, until

_CLIENTS = 4


@dataclass(kw_only=True)
class World(bench.common.world.World):
    """A data folder and the daemon on it, which `with` stops at the end."""

    port: int = field(default_factory=free_port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def configure(self, **settings: str) -> None:
        """Settings from the daemon's next start on, by their names in the environment without the prefix."""
        self.environment |= {f"POCKETLLM_{name}": value for name, value in settings.items()}

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self.process is not None
        return self.process.pid

    def pid_of(self, child: str) -> int | None:
        """The worker's or the generator's, while it runs."""
        pid: int | None = self.call("GET", "/status")[child]["pid"]
        return pid

    def kill(self) -> None:
        """End the daemon as the kernel would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def posted(self, text: str, *, seconds: float = 60) -> str:
        """Post a text; what was answered. An acknowledged one must be there at the end."""
        try:
            self.call("POST", "/texts", {"text": text, "source": "faults"}, seconds=seconds)
        except httpx.HTTPStatusError as error:
            return f"{error.response.status_code} {error.response.json()['detail']}"
        except httpx.HTTPError as error:
            return type(error).__name__
        self.acknowledged.append(text)
        return "stored"

    def posted_for(self, seconds: float) -> str:
        """Post texts for so long; all that was answered, and what stood in the way of a job."""
        saw, ends = set(), time.monotonic() + seconds
        while time.monotonic() < ends:
            saw |= {self.posted(f"a text meanwhile {time.monotonic()}"), self.blockers()}
            time.sleep(0.2)
        return " | ".join(sorted(saw - {""}))

    def blockers(self) -> str:
        """What stands in the way of a job."""
        try:
            found = self.call("GET", "/status")["training"]["blockers"]
        except httpx.HTTPStatusError as error:
            return f"/status: {error.response.status_code} {error.response.json()['detail']}"
        except httpx.HTTPError as error:
            return type(error).__name__
        return "; ".join(blocker["message"] for blocker in found)

    def last_event(self) -> str:
        """The newest event of any job."""
        return ": ".join(self.query("SELECT kind, message FROM event ORDER BY id DESC LIMIT 1")[0])

    def ended(self, job: str) -> dict[str, Any]:
        """A job, once it has succeeded."""
        path, ends = f"/jobs/{job}", ("succeeded", "failed")
        # Asked more often, the daemon would take half of the worker's time.
        until(lambda: self.call("GET", path)["state"] in ends, "the job's end", between_seconds=1)
        found: dict[str, Any] = self.call("GET", path)
        assert found["state"] == "succeeded", found["error"]
        return found

    def adapter_sum(self, job: dict[str, Any]) -> str:
        """The checksum of what a job has made: of its tensors, since the file also names the job."""
        made, file = hashlib.sha256(), self.folder / "adapters" / job["adapter"] / "adapter_model.safetensors"
        for name, tensor in sorted(load_file(file).items()):
            made.update(name.encode() + tensor.tobytes())
        return made.hexdigest()


class Charger:
    """A supply and a battery, as the kernel shows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, attributes in {
            "AC": {"type": "Mains", "online": "1"},
            "BAT0": {"type": "Battery", "status": "Charging", "present": "1", "capacity": "80"},
        }.items():
            (folder / name).mkdir(parents=True)
            for attribute, content in attributes.items():
                (folder / name / attribute).write_text(content + "\n")

    def plug(self, plugged: bool) -> None:
        """Change what a sensor sees: the battery first, so that nothing in between is a third state."""
        (self.folder / "BAT0" / "status").write_text("Charging\n" if plugged else "Discharging\n")
        (self.folder / "AC" / "online").write_text("1\n" if plugged else "0\n")


@contextmanager
def posting(world: World, *, pause: float = 0.0) -> Iterator[set[str]]:
    """Clients that post meanwhile, each text until it is acknowledged; gives the acknowledged texts.

    pause: seconds between two texts of a client.
    """
    ending, acknowledged = threading.Event(), set[str]()

    def post(name: str) -> None:
        number = 0
        while not ending.is_set():
            text = f"{name} wrote text {number}"
            try:
                world.call("POST", "/texts", {"text": text, "source": name})
            except (httpx.HTTPError, OSError):
                time.sleep(0.05)
                continue
            acknowledged.add(text)
            number += 1
            ending.wait(pause)

    threads = [threading.Thread(target=post, args=(f"client {number}",)) for number in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        ending.set()
        for thread in threads:
            thread.join()
