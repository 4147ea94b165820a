"""/metrics in Prometheus' format. Contains no text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from pocketllm.api.dependencies import ServicesDep
from pocketllm.daemon.services import Services

if TYPE_CHECKING:  # the library takes 2 MB, and is imported when somebody asks
    from prometheus_client.core import Metric

router = APIRouter(tags=["status"])

#: Prometheus' own; Response would add a charset.
_KIND = "text/plain; version=0.0.4"


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(services: ServicesDep) -> PlainTextResponse:
    """Return jobs by state, texts, blockers, readings and processes in Prometheus format."""
    from prometheus_client.exposition import generate_latest

    return PlainTextResponse(generate_latest(_Now(services)), media_type=_KIND)


@dataclass(frozen=True)
class _Now:
    """The current state, as Prometheus' library collects it."""

    services: Services

    def collect(self) -> "Iterator[Metric]":
        """Each metric, by the names in the documentation of /metrics."""
        from prometheus_client.core import GaugeMetricFamily as Gauge

        services, scheduler = self.services, self.services.scheduler
        worker, generator, counts = scheduler.worker_pid, services.generator.pid, services.store.texts.counts()
        for name, meaning, value in (
            ("uptime_seconds", "Seconds since the daemon started.", services.uptime_seconds),
            ("training_allowed", "1 while a job may run.", scheduler.verdict.allowed),
            ("worker_running", "1 while a worker runs.", worker is not None),
            ("generator_running", "1 while the generator is loaded.", generator is not None),
            ("texts", "Stored texts.", counts.texts),
            ("new_words", "Words not yet trained on.", counts.new_words),
        ):
            yield Gauge(f"pocketllm_{name}", meaning, value=float(value))
        jobs = Gauge("pocketllm_jobs", "Jobs by state.", labels=["state"])
        for state, number in services.store.jobs.counts().items():
            jobs.add_metric([state], number)
        yield jobs
        blockers = Gauge("pocketllm_blocker", "1 for each blocker.", labels=["name"])
        for name in sorted({blocker.name for blocker in scheduler.verdict.blockers}):
            blockers.add_metric([name], 1)
        yield blockers
        readings = Gauge(
            "pocketllm_reading", "A sensor's reading; absent while it is unknown.", labels=["name", "unit"]
        )
        for reading in scheduler.readings:
            if isinstance(reading.value, bool | int | float):
                readings.add_metric([reading.name, reading.unit or ""], float(reading.value))
        yield readings
