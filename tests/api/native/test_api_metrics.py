"""The metrics, as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon.in_process_app import InProcessApp


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
