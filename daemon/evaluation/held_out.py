"""Losses on held-out text during a job, which promotion.py compares."""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import takewhile
from math import isfinite

import torch

from pocketllm.daemon.evaluation.promotion import Comparison, compare, proving
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.process_memory import peak_bytes
from pocketllm.engine.data.batches import Batch, Batches, pack, power_of_two
from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.formats.tokenizer import Tokenizer, eos_id, start_ids
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.storage.repositories.step_log import BASE_STEP, PART_STEP
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, Evaluation, Job

#: Ordinary text for a first job: at most this many blocks of this many tokens.
ORDINARY_BLOCKS, ORDINARY_TOKENS = 8, 64
#: How often a part of an evaluation is stored, at most.
PART_SECONDS = 8.0


def ordinary_text(tokenizer: Tokenizer, *, is_mlm: bool) -> Batch | None:
    """Ordinary text, on which a first job must not get much worse; None for a model that generates no text."""
    if is_mlm:
        return None
    text = files("pocketllm").joinpath("ordinary_text.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    blocks = pack([ids], length=ORDINARY_TOKENS, eos=eos_id(tokenizer), start=start_ids(tokenizer))
    return blocks[slice(0, ORDINARY_BLOCKS)]


def block_keys(buckets: Batches) -> list[str]:
    """A key for each block, from its content, so that losses of different blocks are never compared."""
    seen = Counter[str]()
    keys = []
    for bucket in buckets:
        for inputs, targets in zip(bucket.inputs, bucket.targets, strict=True):
            digest = hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()[:16]
            keys.append(f"{digest}-{seen[digest]}")
            seen[digest] += 1
    return keys


@dataclass(frozen=True, kw_only=True)
class HeldOutEvaluation:
    """One job's held-out text, and the model to evaluate on it."""

    folder: DataFolder
    store: Store
    model: LanguageModel
    held_out: Batches
    texts: Sequence[str]  #: of each block; see HeldOut in training/data_split.py
    old_blocks: Sequence[int]  #: see `evaluate` in promotion.py, as for the next
    repeats: Sequence[bool]
    ordinary: Batch | None  #: see `ordinary_text`; None where there is old text
    dtype: torch.dtype
    micro_batch: int  #: the most blocks that pass through the layers together
    part_seconds: float = PART_SECONDS

    @property
    def weights(self) -> list[int]:
        """The number of targets of each held-out block."""
        return [count for bucket in self.held_out for count in bucket.target_counts.tolist()]

    def covers(self, evaluation: Evaluation) -> bool:
        """Whether it was on the current held-out blocks."""
        return list(evaluation.block_losses) == block_keys(self.held_out)

    def paired(self, evaluation: Evaluation) -> list[float]:
        """The losses in the order of the held-out blocks. Raises ValueError if it was on other blocks."""
        if not self.covers(evaluation):
            raise ValueError(f"The evaluation at step {evaluation.step} is on other held-out blocks.")
        return list(evaluation.block_losses.values())

    def evaluate(self, job: Job, step: int, trainable: Adapter | FullWeights) -> None:
        """Store each block's loss after a step; at step 0 that of the serving adapter, and of the base model."""
        rival = self._rival(job) if step == 0 else None
        losses = self._losses(job, f"step {step}", self.model) if rival is None else rival
        if step == 0 and isinstance(trainable, Adapter) and job.compared_with not in (None, BASE):
            self.model.set_parameters(None)
            self._record(job, BASE_STEP, self._losses(job, BASE, self.model))
        self.model.set_parameters(trainable)
        self._record(job, step, losses)

    def compare_ordinary(self, trainable: Adapter | FullWeights) -> Comparison | None:
        """Compare the losses on ordinary text with the base model's; None without ordinary text."""
        blocks = self.ordinary
        if blocks is None:
            return None
        self.model.set_parameters(None)
        before = self.model.block_losses(blocks, self.micro_batch)
        self.model.set_parameters(trainable)
        now = self.model.block_losses(blocks, self.micro_batch)
        return compare(before, now, blocks.target_counts.tolist())

    def _record(self, job: Job, step: int, losses: Sequence[float]) -> None:
        if not all(map(isfinite, losses)):
            raise TrainingDiverged("A held-out loss is no number. Start from another adapter or the base model.")
        by_key = dict(zip(block_keys(self.held_out), losses, strict=True))
        now = datetime.now(UTC)
        self.store.step_log.evaluate(job.id, step=step, block_losses=by_key, loss=self._mean(losses), now=now)
        self.store.jobs.set_peak_memory(job.id, peak_bytes())

    def _mean(self, losses: Sequence[float]) -> float:
        """The loss that promotion.py compares on new text, so that a job has one number wherever it is shown."""
        counted = proving(self.texts[: len(losses) - sum(self.old_blocks)], self.repeats)
        found, weights = [losses[place] for place in counted], self.weights
        texts = [self.texts[place] for place in counted]
        return compare(found, found, [weights[place] for place in counted], texts).now

    def _losses(self, job: Job, of: str, model: LanguageModel) -> list[float]:
        """Each block's loss. What a killed worker has evaluated is not evaluated again. of: what is evaluated."""
        keys, log = [f"{of} {key}" for key in block_keys(self.held_out)], self.store.step_log
        part, stored = log.evaluation(job.id, PART_STEP), time.monotonic()
        losses = [part.block_losses[key] for key in takewhile(part.block_losses.__contains__, keys)] if part else []
        done = 0
        for batch in (some for bucket in self.held_out for some in bucket.split(power_of_two(self.micro_batch))):
            done += len(batch)
            if done > len(losses):
                losses[done - len(batch) :] = model.block_losses(batch, self.micro_batch)
                if time.monotonic() - stored >= self.part_seconds:
                    by_key, stored = dict(zip(keys, losses, strict=False)), time.monotonic()
                    log.evaluate(job.id, step=PART_STEP, block_losses=by_key, loss=0.0, now=datetime.now(UTC))
        return losses

    def _rival(self, job: Job) -> list[float] | None:
        """The losses of what the job must beat, if it does not start from it."""
        if not job.judges and job.compared_with in (None, job.parent or BASE):
            return None
        rival = None if job.compared_with == BASE else self.store.adapters.get(job.compared_with or "")
        if rival is not None and rival.mode == "full":
            full = LanguageModel(open_model_folder(self.folder.adapter(rival.id)), dtype=self.dtype)
            return self._losses(job, "rival", full)
        # A full-parameter job's own model may have other weights than the base model's.
        base = self.folder.models / job.model
        model = LanguageModel(open_model_folder(base), dtype=self.dtype) if job.mode == "full" else self.model
        model.set_parameters(None if rival is None else load_adapter(self.folder.adapter(rival.id)))
        return self._losses(job, "rival", model)
