"""What is asked for again and again: plain text for curl, and metrics."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.in_process_app import InProcessApp, in_process_app
from tests.support.tiny_models import tiny_model_folder


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InProcessApp]:
    with in_process_app(tmp_path / "data") as made:
        tiny_model_folder(made.services.folder.models)
        yield made


def test_jobs_for_people_with_curl(api: InProcessApp) -> None:
    asked = {"accept": "text/plain"}
    assert "No jobs yet" in api.get("/jobs", headers=asked).text
    api.add("word " * 50)
    job = api.post("/jobs", json={"now": False}).json()["id"]
    api.power.value = False
    api.tick()
    response = api.get("/jobs", headers=asked)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    heading, line = response.text.splitlines()
    assert heading.split() == ["JOB", "STATE", "STEP", "HELD-OUT", "LOSS", "LEFT", "WAITS", "FOR"]
    assert line.startswith(job) and line.index("queued") == heading.index("STATE")
    assert line[heading.index("WAITS FOR") :] == "not on external power"


@pytest.mark.parametrize(
    ("accept", "plain"),
    [
        ("text/plain", True),
        ("TEXT/PLAIN; charset=utf-8, */*", True),
        ("application/json", False),
        ("application/json, text/plain", False),
        ("*/*", False),
        ("text/html, text/plain", True),
        ("", False),
        (",;,", False),
    ],
)
def test_who_gets_plain_text(api: InProcessApp, accept: str, plain: bool) -> None:
    assert api.get("/jobs", headers={"accept": accept}).headers["content-type"].startswith("text/plain") is plain


def test_metrics_are_prometheus_own(api: InProcessApp) -> None:
    api.add("word " * 50)
    api.post("/jobs", json={"now": False})
    api.power.value, api.battery.value = False, None
    api.tick()
    response = api.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found["pocketllm_jobs", "queued"] == 1 and found["pocketllm_jobs", "running"] == 0
    assert (found["pocketllm_texts",], found["pocketllm_new_words",]) == (1, 50)
    assert found["pocketllm_training_allowed",] == 0
    assert found["pocketllm_blocker", "power"] == 1
    assert found["pocketllm_reading", "power", ""] == 0
    assert found["pocketllm_reading", "memory", "bytes"] == 4e9
    assert ("pocketllm_reading", "battery", "%") not in found, "unknown is not zero"
    assert "word word" not in response.text
