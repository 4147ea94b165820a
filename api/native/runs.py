"""/runs: the runs of workers, by run and by day."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from pocketllm.api.dependencies import ServicesDep
from pocketllm.api.native.schemas.runs import DayOut, RunOut, RunsOut
from pocketllm.storage.tables import RunWindow

router = APIRouter(tags=["jobs"])


@router.get("/ledger", deprecated=True)
@router.get("/runs")
def runs(services: ServicesDep, days: Annotated[int, Query(ge=1, le=366, description="How far back.")] = 7) -> RunsOut:
    """When workers ran, and what they used."""
    rows = services.store.runs.since(services.now() - timedelta(days=days))
    by_day: dict[date, list[RunWindow]] = {}
    for row in rows:
        by_day.setdefault(row.began_at.astimezone().date(), []).append(row)
    return RunsOut(
        data=[RunOut.of(row) for row in rows], days=[_day(day, some) for day, some in sorted(by_day.items())]
    )


def _day(day: date, rows: Sequence[RunWindow]) -> DayOut:
    windows = [RunOut.of(row) for row in rows]
    lost = (
        window.battery_began_percent - window.battery_ended_percent
        for window in windows
        if window.battery_began_percent is not None and window.battery_ended_percent is not None
    )
    hottest = (w.hottest_battery_celsius for w in windows if w.hottest_battery_celsius is not None)
    return DayOut(
        day=day,
        runs=len(windows),
        seconds=round(sum(window.seconds for window in windows), 1),
        cpu_seconds=round(sum(window.cpu_seconds for window in windows), 1),
        battery_lost_percent=round(sum(max(0.0, one) for one in lost), 1),
        hottest_battery_celsius=max(hottest, default=None),
    )
