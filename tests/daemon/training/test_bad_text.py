"""Text that would make the model worse is not published, old text is not forgotten, and two nights of little text add
up: on a base model that has really been taught something.
"""

import random
import shutil
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from sqlite3 import connect

import pytest
import torch

from pocketllm.daemon.evaluation.promotion import SIGNIFICANCE, Comparison, compare
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.data.batches import pack
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.params.lora import load_adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.storage.repositories.texts import NewText, is_held_out
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, Job, Outcome, Requester
from tests.support.daemon.workers import NOW, Device, changed, data_folder
from tests.support.models.learning import equal
from tests.support.models.taught_model import sample_notes, taught_folder, unknown_notes
from tests.support.models.tiny_models import byte_tokenizer
from tests.support.paths import ROOT
from tests.support.stored import start_job

pytestmark = pytest.mark.slow

TRAINING = TrainingSettings(method="exact", steps=60, batch=8, block_tokens=64, measure_every=60)
#: On new text without replay, until the notes are forgotten.
STEPS_TO_FORGET = 40


def noise() -> list[str]:
    """Letters without any order."""
    letters = random.Random(0)
    return ["".join(letters.choices(string.ascii_letters + string.punctuation, k=120)) for _ in range(150)]


def another_language() -> list[str]:
    """Sentences with words and an order, in letters that mean something else."""
    other = str.maketrans(string.ascii_lowercase, "qzxjkvbpygfwmucldrhsnioate")
    return [note.lower().translate(other) for note in sample_notes()[:50]]


def one_sentence_again_and_again() -> list[str]:
    """Different texts, each held out or not by itself, and all the same."""
    pill = "Buy the golden pills of Doctor Kwak today, they cure everything! "
    return [f"Number {number}. {pill * 3}" for number in range(400)]


class Chain(Device):
    """A device with the taught model, and jobs on it in a row, each from what is served."""

    def job(self, texts: Sequence[str], *, steps: int = 8, training: TrainingSettings = TRAINING) -> Job:
        """One more job, for this new text."""
        self.add(texts)
        return self.run(training, steps=steps, parent=self.serving)

    def verdict(self, job: Job) -> str:
        return " ".join(self.said(job, "evaluated"))

    @torch.inference_mode()
    def change(self, texts: Sequence[str], before: str | None, now: str | None) -> Comparison:
        """What these texts' loss was with an adapter, and is with another; None is the base."""
        model = LanguageModel(open_model_folder(self.folder.models / "tiny"), dtype=torch.float32)
        tokenizer = byte_tokenizer()
        blocks = pack([tokenizer(text)["input_ids"] for text in texts], length=64, eos=2)
        losses = []
        for adapter in (before, now):
            model.set_parameters(None if adapter is None else load_adapter(self.folder.adapter(adapter)))
            losses.append(model.block_losses(blocks))
        return compare(losses[0], losses[1], blocks.target_counts.tolist())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data folder in which nothing was learned, and one in which a job has learned the owner's notes."""
    root = tmp_path_factory.mktemp("taught")
    data_folder(root / "fresh", source=taught_folder(root), dtype="float32")
    with copied(root / "fresh", root / "learned") as chain:
        first = chain.job(unknown_notes())
        assert (first.outcome, chain.serving) == (Outcome.LEARNED, first.adapter)
    return root / "fresh", root / "learned"


@contextmanager
def copied(base: Path, root: Path) -> Iterator[Chain]:
    """A copy of a data folder."""
    shutil.copytree(base, root)
    folder = DataFolder(root)
    with closing(Store.open(folder.database)) as store:
        yield Chain(folder, store)


@pytest.fixture
def fresh(bases: tuple[Path, Path], tmp_path: Path) -> Iterator[Chain]:
    with copied(bases[0], tmp_path / "fresh") as chain:
        yield chain


@pytest.fixture
def learned(bases: tuple[Path, Path], tmp_path: Path) -> Iterator[Chain]:
    with copied(bases[1], tmp_path / "learned") as chain:
        yield chain


BAD = (noise, another_language, one_sentence_again_and_again)


@pytest.mark.parametrize("bad", BAD)
def test_text_that_makes_the_model_worse_is_not_published(learned: Chain, bad: Callable[[], list[str]]) -> None:
    good = learned.serving
    # At four times the settings' rate, replay and rehearsal keep all but a hundredth of a nat of ten held-out notes.
    job = learned.job(bad(), training=changed(TRAINING, rate=9 * TRAINING.rate))
    # The job did learn what it was given, and the owner's text was the price.
    assert learned.change(bad(), good, job.adapter).reduction > 0
    assert learned.change(unknown_notes(), good, job.adapter).rise_chance < SIGNIFICANCE
    assert job.outcome is Outcome.WORSE and "which is forgetting" in learned.verdict(job)
    assert learned.serving == good


@pytest.mark.parametrize("bad", BAD)
def test_a_first_job_on_such_text_is_not_published_either(fresh: Chain, bad: Callable[[], list[str]]) -> None:
    """There is no old text to be forgotten yet; what is ordinary must not be spoiled, as it is without rehearsal."""
    job = fresh.job(bad(), steps=150, training=changed(TRAINING, rehearsal=0.0))
    assert fresh.change(bad(), None, job.adapter).reduction > 0
    assert fresh.change(unknown_notes(), None, job.adapter).reduction < -1
    assert job.outcome is Outcome.WORSE and "more than" in fresh.verdict(job)
    assert fresh.serving is None


def test_with_rehearsal_even_noise_costs_the_model_little(fresh: Chain) -> None:
    job = fresh.job(noise(), steps=150)
    assert fresh.change(noise(), None, job.adapter).reduction > 1
    assert fresh.change(unknown_notes(), None, job.adapter).reduction > -0.5


def test_replay_keeps_the_first_jobs_text(learned: Chain, bases: tuple[Path, Path], tmp_path: Path) -> None:
    first = learned.serving
    held_out = [note for note in unknown_notes() if is_held_out(NewText(text=note, source="test"))]
    for new in formal_text():
        learned.job(new, steps=STEPS_TO_FORGET)
    with_replay = learned.change(held_out, first, learned.serving)

    with copied(bases[1], tmp_path / "forgetful") as forgetful:
        with closing(connect(forgetful.folder.database)) as raw, raw:
            raw.execute("PRAGMA foreign_keys = ON")
            raw.execute("DELETE FROM text")  # what is not there is not seen again; the adapter stays
        for new in formal_text():
            assert forgetful.job(new, steps=STEPS_TO_FORGET).outcome is Outcome.LEARNED
        change = forgetful.change(held_out, first, forgetful.serving)
        assert change.rise_chance < 1e-4 and change.reduction < -0.1
        # Seen: 0.06 nats won with replay, 0.14 lost without it.
        assert with_replay.reduction > change.reduction / 3


def formal_text() -> list[list[str]]:
    """Two times new text that is no diary: the halves of the licence."""
    paragraphs = [" ".join(part.split()) for part in (ROOT / "LICENSE").read_text().split("\n\n") if part.strip()]
    return [paragraphs[: len(paragraphs) // 2], paragraphs[len(paragraphs) // 2 :]]


def started(device: Device, notes: list[str], hours: int) -> Job:
    """A job on these new notes and on what earlier jobs have left, as the daemon starts it."""
    now, training = NOW + timedelta(hours=hours), changed(TRAINING, steps=40, measure_every=40, rehearsal=0.0)
    device.add(notes, now=now)
    by, settings = Requester.THRESHOLD, training.model_dump(mode="json")
    return start_job(device.store, requested_by=by, total_steps=training.steps, settings=settings, now=now)


def test_two_small_nights_add_up(fresh: Chain) -> None:
    ordinary = [note for note in unknown_notes() if not is_held_out(NewText(text=note, source="test"))]
    first = fresh.run_here(started(fresh, ordinary[:3], 1))  # of three texts one is held out
    assert (first.outcome, fresh.serving) == (Outcome.TOO_LITTLE, None)
    assert fresh.store.texts.counts().new_words == 0  # it waits for newer ones

    second = started(fresh, ordinary[3:23], 2)
    assert (second.parent, second.compared_with) == (first.adapter, BASE)
    second = fresh.run_here(second)
    assert second.outcome is Outcome.LEARNED, fresh.said(second, "evaluated")
    assert second.adapter and fresh.serving == second.adapter
    assert fresh.store.adapters.get(second.adapter).parent == first.adapter
    assert not equal(fresh.adapter(first), fresh.adapter(second))

    # It was compared with the base model, not with the candidate that it starts from.
    verdict = fresh.report(second).numbers["verdict"]
    assert verdict["base"] is None and verdict["overall"]["texts"] > 4
    assert fresh.evaluation(second, 0)
