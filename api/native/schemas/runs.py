"""The documents of /runs. Seconds, percent, degrees Celsius; unknown readings are null."""

from datetime import date, datetime
from typing import Self

from pydantic import BaseModel, Field

from pocketllm.storage.tables import RunWindow


class RunOut(BaseModel):
    """One run of a worker."""

    job: str
    began_at: datetime
    ended_at: datetime | None = Field(description="null while it lasts.")
    seconds: float
    began_because: str
    ended_because: str | None
    cpu_seconds: float
    battery_began_percent: float | None
    battery_ended_percent: float | None
    battery_watt_hours: float | None = Field(
        description="What went into the battery, less what it gave; null where it tells no current and voltage."
    )
    hottest_battery_celsius: float | None
    hottest_zone_celsius: float | None

    @classmethod
    def of(cls, row: RunWindow) -> Self:
        """From its row."""
        seconds = ((row.ended_at or row.seen_at) - row.began_at).total_seconds()
        return cls(**row.model_dump(exclude={"job_id", "id"}), job=row.job_id, seconds=round(seconds, 1))


class DayOut(BaseModel):
    """What ran on one day, by the owner's clock. A run counts on the day that it began on."""

    day: date
    runs: int
    seconds: float
    cpu_seconds: float
    battery_lost_percent: float = Field(description="What the battery lost during runs; a gain is none.")
    battery_watt_hours: float | None = Field(description="As in a run, of all runs.")
    hottest_battery_celsius: float | None
    nats_per_hour: float | None = Field(
        description="By how much the held-out loss of jobs that ended on this day sank per hour that they ran; null "
        "where none ended."
    )


class RunsOut(BaseModel):
    """Runs and days, oldest first."""

    data: list[RunOut]
    days: list[DayOut]
