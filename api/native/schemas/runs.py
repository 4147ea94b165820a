"""The documents of /runs. Seconds, percent, degrees Celsius; unknown readings are null."""

from datetime import date, datetime
from typing import Self

from pydantic import BaseModel, Field

from pocketllm.storage.tables import RunWindow


class RunOut(BaseModel):
    """One run of a worker."""

    job: str
    began_at: datetime
    ended_at: datetime | None = Field(description="Null while it lasts.")
    seconds: float
    began_because: str
    ended_because: str | None
    cpu_seconds: float
    battery_began_percent: float | None
    battery_ended_percent: float | None
    battery_watt_hours: float | None = Field(
        description="Energy into the battery minus energy out of it; null if it reports no current and voltage."
    )
    hottest_battery_celsius: float | None
    hottest_zone_celsius: float | None

    @classmethod
    def of(cls, row: RunWindow) -> Self:
        """From its row."""
        seconds = ((row.ended_at or row.seen_at) - row.began_at).total_seconds()
        return cls(**row.model_dump(exclude={"job_id", "id"}), job=row.job_id, seconds=round(seconds, 1))


class DayOut(BaseModel):
    """The runs of one day, in local time. A run counts on the day it began."""

    day: date
    runs: int
    seconds: float
    cpu_seconds: float
    battery_lost_percent: float = Field(description="Charge lost during runs; gains count as 0.")
    battery_watt_hours: float | None = Field(description="Net energy of all runs, as in a run.")
    hottest_battery_celsius: float | None
    nats_per_hour: float | None = Field(
        description="Fall in held-out loss per hour of running, for the jobs that ended on this day; null if none "
        "ended."
    )


class RunsOut(BaseModel):
    """Runs and days, oldest first."""

    data: list[RunOut]
    days: list[DayOut]
