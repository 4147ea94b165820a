"""/events of a real daemon: as they happen, by long poll, and after a connection that broke."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.real_daemon import Daemon, running

JOB = {"TRAINING__METHOD": "mezo", "TRAINING__BATCH": "1", "TRAINING__BLOCK_TOKENS": "16", "TRAINING__RANK": "2"}
STREAM = {"accept": "text/event-stream"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("events")
    shutil.copytree(models, folder / "models")
    with running(folder, MODEL="tiny", TRAINING__NEW_WORDS="100000", TICK_SECONDS="0.1", **JOB) as made:
        yield made


def learned(daemon: Daemon, about: str) -> str:
    notes = [{"text": f"{about}, glass rising. Mug of tea number {i}.", "source": "test"} for i in range(20)]
    assert daemon.client.post("/texts", json=notes).status_code == 201
    return daemon.start_job(steps=3, seed=1)


def stream_until(daemon: Daemon, kind: str, *, last: int | None = None, path: str = "/events") -> list[dict[str, Any]]:
    """The events up to one of this kind, as {"id", "event", "data"}."""
    headers = STREAM | ({} if last is None else {"last-event-id": str(last)})
    found: list[dict[str, Any]] = []
    with daemon.client.stream("GET", path, headers=headers, timeout=90) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        one: dict[str, Any] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if line:
                one[name] = json.loads(value) if name == "data" else value
            elif one:
                found, one = [*found, one], {}
                if found[-1].get("event") == "job" and found[-1]["data"]["kind"] == kind:
                    return found
    raise AssertionError("the stream ended")


@pytest.mark.smoke
def test_a_job_is_followed_and_taken_up_again(daemon: Daemon) -> None:
    before = daemon.client.get("/events").json()["last"]
    job = learned(daemon, "Wind west")
    found = stream_until(daemon, "succeeded", last=before)
    told = [one for one in found if one["event"] == "job"]
    assert [int(one["id"]) for one in told] == [one["data"]["id"] for one in told]
    kinds = [one["data"]["kind"] for one in told]
    assert kinds[:2] == ["queued", "started"] and kinds[-1] == "succeeded"
    assert {one["data"]["job"] for one in told} == {job}
    assert all(one["data"]["id"] == job and "id" not in one for one in found if one["event"] == "progress")
    again = stream_until(daemon, "succeeded", last=int(told[-2]["id"]))
    assert [one["id"] for one in again if one["event"] == "job"] == [told[-1]["id"]]
    page = daemon.client.get(f"/events?after={before}").json()
    assert [event["kind"] for event in page["data"]] == kinds and page["last"] == int(told[-1]["id"])


def test_a_long_poll_ends_with_the_news(daemon: Daemon) -> None:
    last = daemon.client.get("/events").json()["last"]
    quiet = daemon.client.get(f"/events?after={last}&wait=0.1").json()
    assert quiet == {"data": [], "last": last}
    job = learned(daemon, "Wind east")
    kinds: list[str] = []
    while "succeeded" not in kinds:
        began = time.monotonic()
        page = daemon.client.get(f"/events?after={last}&wait=60", timeout=90).json()
        assert page["data"] and time.monotonic() - began < 60
        kinds += [event["kind"] for event in page["data"]]
        last = page["last"]
    assert stream_until(daemon, "succeeded", last=0, path=f"/events?job={job}")[0]["data"]["job"] == job


def test_a_daemon_that_ends_does_not_wait_for_who_listens(tmp_path: Path, models: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    with running(tmp_path, MODEL="tiny") as daemon, daemon.client.stream("GET", "/events", headers=STREAM) as listening:
        began = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - began < 4, "the limit for open requests is 5 s"
        assert list(listening.iter_lines()) == []
