"""Two nights with little text each: together they are enough."""

from datetime import timedelta
from pathlib import Path

import pytest

from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.params.lora import load_adapter
from pocketllm.storage.repositories.texts import NewText, is_held_out
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, Job, Outcome, Requester
from tests.support.daemon.workers import NOW, data_folder, new_job, run_here
from tests.support.models.taught_model import taught_folder, unknown_notes

TRAINING = TrainingSettings(method="exact", steps=40, batch=8, block_tokens=64, measure_every=40, rehearsal=0.0)


def started(store: Store, notes: list[str], hours: int) -> Job:
    """A job on these new notes and on what earlier jobs have left, as the daemon starts it."""
    now = NOW + timedelta(hours=hours)
    store.texts.add([NewText(text=note, source="test") for note in notes], now=now)
    settings = TRAINING.model_dump(mode="json")
    by = Requester.THRESHOLD
    job = store.jobs.add(new_job(requested_by=by, total_steps=TRAINING.steps, settings=settings, created_at=now))
    return store.jobs.start(job.id, now=now)


@pytest.mark.slow
def test_two_small_nights_add_up(tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data", source=taught_folder(tmp_path), dtype="float32")
    store = Store.open(folder.database)
    ordinary = [note for note in unknown_notes() if not is_held_out(NewText(text=note, source="test"))]

    first = run_here(folder, store, started(store, ordinary[:3], 1))  # of three texts one is held out
    assert (first.outcome, store.adapters.serving("tiny")) == (Outcome.TOO_LITTLE, None)
    assert store.texts.counts().new_words == 0  # it waits for newer ones
    assert first.adapter

    second = started(store, ordinary[3:23], 2)
    assert (second.parent, second.compared_with) == (first.adapter, BASE)
    start = load_adapter(folder.adapter(first.adapter))
    second = run_here(folder, store, second)
    assert second.outcome is Outcome.LEARNED, [event.message for event in store.jobs.events(second.id)]
    serving = store.adapters.serving("tiny")
    assert serving is not None and (serving.id, serving.parent) == (second.adapter, first.adapter)

    # It was compared with the base model, not with the candidate that it starts from.
    report = store.reports.find(second.id)
    assert report is not None and report.numbers["verdict"]["base"] is None
    before = store.step_log.evaluation(second.id, 0)
    assert before is not None and report.numbers["verdict"]["overall"]["texts"] > 4
    again = load_adapter(folder.adapter(second.adapter or ""))
    assert any(not (again.b[path] == start.b[path]).all() for path in start.b)
    store.close()
