"""Two nights with little text each: together they are enough."""

from datetime import timedelta
from pathlib import Path

import pytest

from pocketllm.daemon.settings import TrainingSettings
from pocketllm.storage.repositories.texts import NewText, is_held_out
from pocketllm.storage.tables import BASE, Job, Outcome, Requester
from tests.support.daemon.workers import NOW, Device, new_device
from tests.support.models.learning import equal
from tests.support.models.taught_model import taught_folder, unknown_notes
from tests.support.stored import start_job

TRAINING = TrainingSettings(method="exact", steps=40, batch=8, block_tokens=64, measure_every=40, rehearsal=0.0)


def started(device: Device, notes: list[str], hours: int) -> Job:
    """A job on these new notes and on what earlier jobs have left, as the daemon starts it."""
    now, settings = NOW + timedelta(hours=hours), TRAINING.model_dump(mode="json")
    device.add(notes, now=now)
    by = Requester.THRESHOLD
    return start_job(device.store, requested_by=by, total_steps=TRAINING.steps, settings=settings, now=now)


@pytest.mark.slow
def test_two_small_nights_add_up(tmp_path: Path) -> None:
    ordinary = [note for note in unknown_notes() if not is_held_out(NewText(text=note, source="test"))]
    with new_device(tmp_path / "data", source=taught_folder(tmp_path), dtype="float32") as device:
        first = device.run_here(started(device, ordinary[:3], 1))  # of three texts one is held out
        assert (first.outcome, device.serving) == (Outcome.TOO_LITTLE, None)
        assert device.store.texts.counts().new_words == 0  # it waits for newer ones

        second = started(device, ordinary[3:23], 2)
        assert (second.parent, second.compared_with) == (first.adapter, BASE)
        second = device.run_here(second)
        assert second.outcome is Outcome.LEARNED, device.said(second, "evaluated")
        assert second.adapter and device.serving == second.adapter
        assert device.store.adapters.get(second.adapter).parent == first.adapter
        assert not equal(device.adapter(first), device.adapter(second))

        # It was compared with the base model, not with the candidate that it starts from.
        verdict = device.report(second).numbers["verdict"]
        assert verdict["base"] is None and verdict["overall"]["texts"] > 4
        assert device.evaluation(second, 0)
