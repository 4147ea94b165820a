"""The daemon's state in Prometheus' text format."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pocketllm.daemon.services import Services


def exposition(services: Services) -> bytes:
    """All metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now(services))
    return generate_latest(registry)


class _Now(Collector):
    """The current state."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Each metric, by the names in the documentation of /metrics."""
        services, scheduler = self._services, self._services.scheduler
        counts = services.store.texts.counts()
        yield _gauge("uptime_seconds", "Seconds since the daemon started.", services.uptime_seconds)
        yield _gauge("training_allowed", "1 while a job may run.", scheduler.verdict.allowed)
        yield _gauge("worker_running", "1 while a worker runs.", scheduler.worker_pid is not None)
        yield _gauge("generator_running", "1 while the generator is loaded.", services.generator.pid is not None)
        yield _gauge("texts", "Stored texts.", counts.texts)
        yield _gauge("new_words", "Words not yet trained on.", counts.new_words)
        jobs = GaugeMetricFamily("pocketllm_jobs", "Jobs by state.", labels=["state"])
        for state, number in services.store.jobs.counts().items():
            jobs.add_metric([state], number)
        yield jobs
        blockers = GaugeMetricFamily("pocketllm_blocker", "1 for each blocker.", labels=["name"])
        for name in sorted({blocker.name for blocker in scheduler.verdict.blockers}):
            blockers.add_metric([name], 1)
        yield blockers
        readings = GaugeMetricFamily(
            "pocketllm_reading", "A sensor's reading; absent while it is unknown.", labels=["name", "unit"]
        )
        for reading in scheduler.readings:
            if isinstance(reading.value, bool | int | float):
                readings.add_metric([reading.name, reading.unit or ""], float(reading.value))
        yield readings


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pocketllm_{name}", meaning, value=float(value))
