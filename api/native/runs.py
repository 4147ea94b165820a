"""/runs: the runs of workers, by run and by day."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from pocketllm.api.dependencies import ServicesDep
from pocketllm.api.native.schemas.runs import DayOut, RunOut, RunsOut
from pocketllm.storage.store import Store
from pocketllm.storage.tables import RunWindow

router = APIRouter(tags=["jobs"])


@router.get("/runs")
def runs(services: ServicesDep, days: Annotated[int, Query(ge=1, le=366, description="Days back.")] = 7) -> RunsOut:
    """List when workers ran and what they used, by run and by day."""
    rows = services.store.runs.since(services.now() - timedelta(days=days))
    by_day: dict[date, list[RunWindow]] = {}
    for row in rows:
        by_day.setdefault(row.began_at.astimezone().date(), []).append(row)
    return RunsOut(
        data=[RunOut.of(row) for row in rows],
        days=[_day(services.store, day, some) for day, some in sorted(by_day.items())],
    )


def _day(store: Store, day: date, rows: Sequence[RunWindow]) -> DayOut:
    windows = [RunOut.of(row) for row in rows]
    lost = (
        window.battery_began_percent - window.battery_ended_percent
        for window in windows
        if window.battery_began_percent is not None and window.battery_ended_percent is not None
    )
    energy = [w.battery_watt_hours for w in windows if w.battery_watt_hours is not None]
    hottest = (w.hottest_battery_celsius for w in windows if w.hottest_battery_celsius is not None)
    return DayOut(
        day=day,
        runs=len(windows),
        seconds=round(sum(window.seconds for window in windows), 1),
        cpu_seconds=round(sum(window.cpu_seconds for window in windows), 1),
        battery_lost_percent=round(sum(max(0.0, one) for one in lost), 1),
        battery_watt_hours=round(sum(energy), 2) if energy else None,
        hottest_battery_celsius=max(hottest, default=None),
        nats_per_hour=_nats_per_hour(store, day, {row.job_id for row in rows}),
    )


def _nats_per_hour(store: Store, day: date, job_ids: Iterable[str]) -> float | None:
    """What the jobs that ended on this day won in each hour that they ran, on that day or before."""
    nats = hours = 0.0
    for job in map(store.jobs.get, job_ids):
        if job.finished_at is None or job.finished_at.astimezone().date() != day:
            continue
        progress = store.step_log.progress(job.id)
        if progress.held_out_loss_before is not None and progress.held_out_loss_now is not None:
            nats += progress.held_out_loss_before - progress.held_out_loss_now
            hours += sum(RunOut.of(row).seconds for row in store.runs.of_job(job.id)) / 3600
    return round(nats / hours, 3) if hours else None
