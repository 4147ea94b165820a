"""The worker: one job, from where its journal ends to its adapter. `python -m pocketllm.daemon.worker`.

Crash-only: there is no shutdown path. Each step is a committed row before it counts; to pause it, kill it; to
resume, start it again. It ends by itself when the daemon at the other end of its standard input is gone.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.process_memory import cap_anonymous_memory, out_of_memory, peak_bytes, prefer_as_victim
from pocketllm.daemon.publishing import judge
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.mezo.adapters import Adapter, load_adapter
from pocketllm.mezo.batches import Blocks, pack
from pocketllm.mezo.decoding import separator
from pocketllm.mezo.directions import PASSES, adapter_along_activations
from pocketllm.mezo.errors import BadRequest, MezoError
from pocketllm.mezo.loop import Plan, Row, train
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import open_native
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter as AdapterRow
from pocketllm.storage.tables import Job, Outcome, Step, Text
from pocketllm.storage.texts import HELD_OUT_ONE_IN

#: How long to wait for a predecessor that is being killed.
LOCK_SECONDS = 10.0
OUT_OF_MEMORY = (
    "The job needs more memory than training.memory_bytes allows. "
    "Lower training.batch or training.block_tokens, or raise the limit."
)
#: Blocks of the job's text that the adapter's frozen directions are taken from.
DIRECTION_BLOCKS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job to its end. Exit codes: 0 the job ended (or failed for a reason it wrote down), 75 try again."""
    parser = argparse.ArgumentParser(description="Runs one job of a PocketLLM daemon, which starts it.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--job", required=True)
    options = parser.parse_args(arguments)

    _die_with_parent()
    with suppress(OSError):  # already at the bottom, or not allowed to say so
        os.nice(19)
    prefer_as_victim()
    folder = DataFolder(options.data_dir)
    with locked(folder.worker_lock, wait_seconds=LOCK_SECONDS) as held:
        if not held:
            sys.stderr.write("another worker holds this data folder\n")
            return os.EX_TEMPFAIL
        store = Store.open_for_worker(folder.database)
        try:
            Run(folder, store, store.jobs.get(options.job)).to_the_end()
        except MezoError as error:
            # Trying again would end the same way: the job fails, with the sentence that says what to do.
            store.jobs.fail(options.job, error=str(error), now=_now())
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            store.jobs.fail(options.job, error=OUT_OF_MEMORY, now=_now())
        finally:
            store.jobs.set_peak_memory(options.job, peak_bytes())
    return os.EX_OK


class Run:
    """One job's run: its parts, made from what is stored."""

    def __init__(self, folder: DataFolder, store: Store, job: Job) -> None:
        self.folder, self.store, self.job = folder, store, job
        self.settings = TrainingSettings.model_validate(job.settings)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = LanguageModel(open_native(folder.models / job.model))
        cap_anonymous_memory(self.settings.memory_bytes)
        # The tokenizer takes as much memory as a step does; it is not kept.
        self.blocks, self.held_out = divide(
            store.texts.of_job(job.id), partial(self._pack, self.model.native.tokenizer())
        )

    @torch.inference_mode()
    def to_the_end(self) -> None:
        """Start, or go on, and finish."""
        adapter = self._start()
        plan = Plan(
            seed=self.job.seed,
            steps=self.job.total_steps,
            batch=self.settings.batch,
            epsilon=self.settings.epsilon,
            step_size=self.settings.step_size,
            measure_every=self.settings.measure_every,
        )

        def keep(row: Row) -> None:
            self.store.journal.append(Step(job_id=self.job.id, **asdict(row)))

        def measure(step: int) -> None:
            if self.store.journal.evaluation(self.job.id, step) is None:
                self.model.use(adapter)
                losses = self.model.block_losses(self.held_out)
                self.store.journal.evaluate(
                    self.job.id, step=step, block_losses=losses, weights=self._weights(), now=_now()
                )
                self.store.jobs.set_peak_memory(self.job.id, peak_bytes())

        done = self.store.journal.steps(self.job.id)
        train(self.model, adapter, self.blocks, plan, done=done, keep=keep, measure=measure, clock=time.monotonic)
        self._finish(adapter)

    def _start(self) -> Adapter:
        """The adapter that the job starts from: the same at each start, so it is written down at the first."""
        folder = self.folder.start(self.job.id)
        if folder.exists():
            return load_adapter(folder)
        parent = self.job.parent
        adapter = load_adapter(self.folder.adapter(parent)) if parent else self._fresh()
        adapter.save(folder)
        return adapter

    def _fresh(self) -> Adapter:
        def passed(number: int) -> None:
            message = f"looked at the text, pass {number} of {PASSES}"
            self.store.jobs.add_event(self.job.id, kind="preparing", message=message, now=_now())

        return adapter_along_activations(
            self.model,
            self.blocks[slice(0, DIRECTION_BLOCKS)],
            targets=self.settings.targets,
            rank=self.settings.rank,
            seed=self.job.seed,
            on_pass=passed,
        )

    def _finish(self, adapter: Adapter) -> None:
        before = self.store.journal.evaluation(self.job.id, 0)
        now = self.store.journal.evaluation(self.job.id, self.job.total_steps)
        assert before is not None and now is not None, "train() measures at both ends"
        judgement = judge(before.block_losses, now.block_losses, self._weights())
        identity = self.job.id.replace("job-", "adapter-")
        adapter.metadata = {"job": self.job.id, "base_weights_sha256": self.model.native.manifest.weights_sha256}
        adapter.save(self.folder.adapter(identity))
        row = AdapterRow(
            id=identity,
            job_id=self.job.id,
            model=self.job.model,
            parent=self.job.parent,
            outcome=judgement.outcome,
            held_out_loss_before=before.loss,
            held_out_loss_now=now.loss,
            created_at=_now(),
        )
        self.store.jobs.add_event(self.job.id, kind="judged", message=judgement.sentence, now=_now())
        self.store.jobs.succeed(self.job.id, adapter=row, publish=judgement.outcome is Outcome.LEARNED, now=_now())
        shutil.rmtree(self.folder.start(self.job.id), ignore_errors=True)

    def _weights(self) -> list[int]:
        counts: list[int] = self.held_out.target_counts.tolist()
        return counts

    def _pack(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> Blocks:
        tokens = [tokenizer(text.text, add_special_tokens=False)["input_ids"] for text in texts]
        return pack(tokens, length=self.settings.block_tokens, separator=separator(tokenizer))


def divide(texts: Sequence[Text], pack_texts: Callable[[Sequence[Text]], Blocks]) -> tuple[Blocks, Blocks]:
    """The blocks to learn from, and those to measure with: of one text in ten, by the texts' ids.

    Where the ids picked none or all, the last tenth of the blocks stands in. Raises BadRequest when there is
    too little text for both.
    """
    training = [text for text in texts if not text.held_out]
    held_out = [text for text in texts if text.held_out]
    if training and held_out:
        return pack_texts(training), pack_texts(held_out)
    blocks = pack_texts(texts)
    if len(blocks) < 2:
        raise BadRequest(
            f"{blocks.tokens} tokens are too few to learn from and to measure with; "
            f"more than {blocks.inputs.shape[1]} are needed. Add some text."
        )
    kept = max(1, len(blocks) // HELD_OUT_ONE_IN)
    return blocks[slice(None, -kept)], blocks[slice(-kept, None)]


def _die_with_parent() -> None:
    """End this process when the daemon closes its end of our standard input, as its death does."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(os.EX_TEMPFAIL)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main())
