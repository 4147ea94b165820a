"""The times at which the scheduler wants a tick, besides the interval's."""

from datetime import UTC, datetime, timedelta, timezone

from pocketllm.daemon.conditions.gate import hours_edges
from pocketllm.daemon.scheduling.attempts import RETRY_SECONDS
from pocketllm.daemon.settings import GateSettings
from tests.support.daemon.in_process_app import NOON
from tests.support.daemon.scheduler_world import SchedulerWorld


def test_a_retry(world: SchedulerWorld, running: str) -> None:
    world.runner.ends(1)
    retry_at = world.tick() + timedelta(seconds=RETRY_SECONDS)
    assert min(world.scheduler.due) == retry_at == world.job(running).not_before
    world.tick(RETRY_SECONDS)
    assert world.runner.started == [running, running], "and at that time it is made"
    assert retry_at not in world.scheduler.due


def test_a_snoozes_end(world: SchedulerWorld) -> None:
    until = world.clock.now + timedelta(minutes=7)
    world.store.preferences.snooze(until, world.clock.now)
    world.tick()
    assert min(world.scheduler.due) == until
    world.tick(7 * 60)
    assert until not in world.scheduler.due


def test_none_is_over_so_that_no_tick_follows_another_at_once(world: SchedulerWorld, running: str) -> None:
    world.store.preferences.snooze(world.clock.now - timedelta(minutes=1), world.clock.now)
    world.runner.ends(1)
    for seconds in (1, RETRY_SECONDS, 3600, 86_400):
        now = world.tick(seconds)
        assert all(at > now for at in world.scheduler.due)


def test_allowed_hours_and_midnight_by_the_owners_clock() -> None:
    local = replace_zone(NOON, hours=2)
    settings = GateSettings(hours=("22:00-07:00",))
    found = {at.astimezone(UTC).strftime("%d %H:%M") for at in hours_edges(settings, local) if at > NOON}
    assert found == {"01 20:00", "01 22:00", "02 05:00", "02 20:00"}
    assert len([at for at in hours_edges(GateSettings(), local) if at > NOON]) == 1, "midnight alone"


def replace_zone(at: datetime, *, hours: int) -> datetime:
    return at.astimezone(timezone(timedelta(hours=hours)))
