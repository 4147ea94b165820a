"""What happens when the device fails: each fault is injected for real, and the daemon must come through by itself.

A daemon with a job that runs gets texts, before a fault and while it lasts. Then its cause goes away, as when the owner
frees space, and nothing else is done: acknowledged texts are there, a job succeeds and text is generated. Some faults
need the owner: after a file system has failed the device is started again, a damaged database is restored from a backup
and a missing one is put back, as the daemon says. Disks need root, without which they are not measured.
"""

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.common.harness import Limit
from bench.common.world import until
from tests.support.stress import device_faults
from tests.support.stress.disks import Kind, disk, filled
from tests.support.stress.report import Report
from tests.support.stress.world import World

FAULTS = {fault.__name__: fault for fault in device_faults.FAULTS}
DISKS: dict[str, Kind] = {
    "disk_full": "small",
    "full_disk_at_start": "small",
    "full_disk_after_kill": "image",
    "read_only_disk": "image",
}
#: What the small form injects. Of the others tests have quicker forms, or they are much like one of these.
SMALL = {
    *("full_disk_at_start", "full_disk_after_kill", "read_only_disk"),
    *("adapter_damaged", "database_damaged", "database_missing"),
}
LIMITS = {
    **{f"lost_{name}": Limit(at_most=0, where_measurable=True, always=True) for name in FAULTS},
    **{f"recovered_{name}": Limit(at_least=1, where_measurable=True, always=True) for name in FAULTS},
}
RECOVERY_SECONDS, TEXTS = 240.0, 20


@pytest.fixture(scope="module", autouse=True)
def _all_faults_are_reported(report: Report) -> Iterator[None]:
    report.values.update(dict.fromkeys(LIMITS))
    yield
    if report.raw:
        report.end()


def unrecovered(world: World) -> str:
    """Why no job succeeds, or no text is generated, without help; "" where both do."""
    ends, problem = time.monotonic() + RECOVERY_SECONDS, ""
    while time.monotonic() < ends:
        try:
            if not (waiting := world.open_jobs()):
                world.ask_for_job()
                until(lambda: not world.open_jobs(), "the job's end")
                job = world.call("GET", "/jobs?limit=1")["data"][0]
                # The likeliest tokens: a sampled text may end before its first.
                text = world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4, "temperature": 0})
                done = job["state"] == "succeeded" and text["completion_tokens"] > 0
                return "" if done else f"job {job['state']}, {text['completion_tokens']} tokens generated"
            problem = f"{waiting[0]['id']} is {waiting[0]['state']}: {'; '.join(waiting[0]['reasons'])}"
        except (httpx.HTTPError, OSError) as error:
            problem = repr(error)
        time.sleep(0.5)
    return problem


@pytest.mark.parametrize("name", FAULTS)
def test_the_daemon_recovers(name: str, report: Report, tiny_shape: Path, tmp_path: Path) -> None:
    if not report.full and name not in SMALL:
        pytest.skip("only with --full")
    report.values |= {f"lost_{name}": math.inf, f"recovered_{name}": 0}  # until it has recovered
    with disk(DISKS.get(name), tmp_path / "disk") as place, World(folder=place / "data", model=tiny_shape) as world:
        world.start()
        world.upload()
        for number in range(TEXTS):
            world.posted(f"text {number} before the fault")
        world.ask_for_job()
        until(lambda: world.pid_of("worker"), "a worker")
        saw = FAULTS[name](world)
        world.epochs = 1  # of the job that shows the recovery
        problem = unrecovered(world)
        there = {row[0] for row in world.query("SELECT text FROM text WHERE source = 'faults'")}
    lost = set(world.acknowledged) - there
    report.values |= {f"lost_{name}": float(len(lost)), f"recovered_{name}": float(not problem)}
    # Where files are is this machine's own.
    report.raw[name] = {"saw": re.sub(r"/\S*/", "", saw), "problem": problem}
    assert (problem, lost) == ("", set())


@pytest.mark.parametrize("kind", ["small", "image"])
def test_texts_are_read_where_no_room_was_reserved(kind: Kind, tiny_shape: Path, tmp_path: Path) -> None:
    with disk(kind, tmp_path / "disk") as place, World(folder=place / "data", model=tiny_shape) as world:
        world.start()
        assert world.posted("Wind west.") == "stored"
        world.kill()
        (world.folder / "reserve").unlink()
        with filled(world.folder):
            world.start()
            [text] = world.call("GET", "/texts")["data"]
            assert text["text"] == "Wind west."
            with pytest.raises(httpx.HTTPStatusError) as refused:
                world.call("DELETE", f"/texts/{text['id']}")
            answer = refused.value.response
            assert answer.status_code == 507 and "Free some space" in answer.json()["detail"]
        assert world.call("DELETE", f"/texts/{text['id']}")["deletion"]["texts"] == 1
