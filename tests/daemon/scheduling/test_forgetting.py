"""What the scheduler makes of deletions and edits: erasing, learning again, and jobs that go on."""

from pathlib import Path

from pocketllm.daemon.leftovers import noted_backup
from pocketllm.storage.repositories.folders import FileRead, Read
from pocketllm.storage.repositories.texts import NewText, text_id
from pocketllm.storage.tables import JobState
from tests.support.daemon.scheduler_world import SchedulerWorld


def delete(world: SchedulerWorld, text: str) -> str:
    now = world.clock.now
    return world.scheduler.forget(lambda: world.store.deletions.texts([text], now=now), now).id


def add(world: SchedulerWorld, words: str) -> str:
    return world.store.texts.add([NewText(text=words, source="test")], now=world.clock.now).ids[0]


def edit(world: SchedulerWorld, *paragraphs: str) -> None:
    """A scan finds the file with these paragraphs."""
    texts = [NewText(text=one, source="notes") for one in paragraphs]
    file = FileRead("/notes/a.md", 2, {text_id(text) for text in texts})
    read: list[Read] = [*((file, text) for text in texts), (file, None)]
    assert world.store.folders.put(read, world.clock.now, lambda: True)
    world.store.folders.drop_replaced(world.clock.now)


def stored(world: SchedulerWorld) -> set[str]:
    return {text.text for text in world.store.texts.page(after=None, limit=99)}


def test_deletions_are_erased_together_ten_minutes_later_and_not_beside_a_worker(world: SchedulerWorld) -> None:
    texts = [add(world, f"{name} " * 30) for name in "abc"]
    deletions = [delete(world, texts[0])]
    world.tick(300)
    deletions.append(delete(world, texts[1]))
    world.plug_in(290)
    assert world.runner.job_id
    world.tick(20)
    assert len(world.store.deletions.pending()) == 2  # a worker runs
    world.unplug()
    world.tick()
    assert [world.store.deletions.get(one).erased for one in deletions] == [True, True]


def test_what_is_left_is_learned_again_once_also_after_a_kill(world: SchedulerWorld) -> None:
    text = add(world, "one " * 30)
    world.tick()
    world.add(30)
    world.finish(world.only_job().id)
    world.power.value = False
    deletion = delete(world, text)
    job = world.store.deletions.get(deletion).job
    jobs = len(world.store.jobs.open())
    assert job
    world.store.deletions.update([deletion], job=None)  # as a kill right after the job was added leaves it
    world.tick()
    assert world.store.deletions.get(deletion).job == job
    assert len(world.store.jobs.open()) == jobs


def test_a_deletion_takes_away_what_a_killed_backup_left(world: SchedulerWorld, tmp_path: Path) -> None:
    with noted_backup(world.folder, tmp_path / "backup.tar"):
        left = tmp_path / ".pocketllm-backup.tar-abc"
        left.write_text("secret")
    delete(world, add(world, "one"))
    assert not left.exists()


def test_an_edit_does_not_start_a_job_again(world: SchedulerWorld) -> None:
    first, second, third = (f"{name} is a paragraph of a note. " * 4 for name in ("One", "Two", "Three"))
    edit(world, first, second)
    world.tick()
    job = world.only_job().id
    world.step(job)
    before = [text.text for text in world.store.texts.of_job(job)]
    edit(world, first, third)
    edit(world, third, "A fourth")
    assert [text.text for text in world.store.texts.of_job(job)] == before
    world.unplug()
    world.plug_in(600)
    assert world.runner.job_id == job and world.store.step_log.last_step(job) == 1
    assert "began anew" not in {event.kind for event in world.store.jobs.events(job)}
    world.finish(job)
    assert world.job(job).state is JobState.SUCCEEDED
    assert stored(world) == {third, "A fourth"}


def test_an_edit_of_what_an_earlier_job_has_learned_starts_no_later_job_again(world: SchedulerWorld) -> None:
    notes = [f"Note {number} is about the weather. " * 20 for number in range(80)]  # more than are replayed
    edit(world, *notes)
    world.tick()
    world.succeed(world.only_job().id)
    edit(world, *notes, "One more paragraph of a note. " * 4)
    world.tick()
    [job] = world.store.jobs.open()
    world.step(job.id)
    used = {text.text for text in world.store.texts.of_job(job.id)}
    changed = next(note for note in notes if note not in used)
    edit(world, *(note for note in notes if note != changed))
    world.tick()
    assert world.runner.job_id == job.id and world.store.step_log.last_step(job.id) == 1
    assert "began anew" not in {event.kind for event in world.store.jobs.events(job.id)}


def test_what_the_owner_deletes_starts_a_job_again_also_after_an_edit(world: SchedulerWorld) -> None:
    first, second = (f"{name} is a paragraph of a note. " * 4 for name in ("One", "Two"))
    edit(world, first, second)
    world.tick()
    job = world.only_job().id
    edit(world, second)
    [old] = (text.id for text in world.store.texts.of_job(job) if text.text == first)
    delete(world, old)
    assert "began anew" in {event.kind for event in world.store.jobs.events(job)}
    assert stored(world) == {second}


def test_an_edit_that_is_taken_back_keeps_the_text(world: SchedulerWorld) -> None:
    first, second = (f"{name} is a paragraph of a note. " * 4 for name in ("One", "Two"))
    edit(world, first)
    world.tick()
    edit(world, second)
    edit(world, first)
    world.scheduler.cancel(world.only_job().id, world.clock.now)
    assert stored(world) == {first}
