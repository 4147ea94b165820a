"""A worker in simulated time: the real trainer on a method that only takes its time, and the real judge at the end.

A start is worked out at once to its end, with the time of all that it leaves on disk; a kill keeps what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.nights.device import Device, Known, Lesson
from bench.promotion import BETWEEN_TEXTS, PER_TOKEN, HeldOut, blocks_of, effects
from pocketllm.daemon.evaluation.held_out import ORDINARY_BLOCKS
from pocketllm.daemon.paths import DataFolder, adapter_id_of
from pocketllm.daemon.scheduling.night import (
    FIRST_STEPS,
    TOKENS_A_WORD,
    Ahead,
    fitting,
    goes_on,
    most_steps,
    remaining,
    worth,
)
from pocketllm.daemon.scheduling.worker_process import Exit, WorkerProcess
from pocketllm.daemon.training import rehearsal
from pocketllm.daemon.training.checkpoints import Checkpoint
from pocketllm.daemon.training.data_split import _by_job, for_first_verdict
from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.daemon.training.trainer import Run, train
from pocketllm.daemon.training.validation_split import CHECK_SHARE, MAX_BLOCKS, MIN_INTERVAL, ONE_IN
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.formats.lora_folder import CONFIG_NAME, WEIGHTS_NAME
from pocketllm.engine.method import StepRecord
from pocketllm.engine.planning.memory_model import JobPlan
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, Adapter, Job, Outcome, Step, Text

#: The base model's loss, in nats per token.
_BASE_LOSS = 4.5
_ORDINARY_BLOCKS = 2 * ORDINARY_BLOCKS  # with and without the adapter
_NO_BATCH: Any = None


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a worker has on disk of a job."""

    plan: JobPlan
    total_steps: int | None = None
    records: int = 0
    checkpoints: Mapping[int, int] = field(default_factory=dict)  #: by their steps: passes made of the next one
    stopping: EarlyStopping | None = None
    measured: tuple[int, ...] = ()  #: the steps with an evaluation
    part: int = 0  #: blocks of the next evaluation


class Moment(NamedTuple):
    """A time of an attempt, from which on this is on disk."""

    at: float  #: seconds since the start
    saved: Saved
    samples: int  #: parts that are drawn
    safe_at: float  #: the last time before which nothing need be done again


class Attempt:
    """One start of a worker on a job: the trainer's method and its store, on a clock of its own."""

    def __init__(
        self, device: Device, job: Job, texts: Sequence[Text], known: Known, saved: Saved | None, samples: int
    ) -> None:
        """known: by the adapter that it starts from. saved: None at the first start. samples: parts that are drawn."""
        self._device, self._job, self.samples = device, job, samples
        self.saved, self.at, self._safe_at, self.step_now, self.passes = saved, 0.0, 0.0, 0, 0
        self.log: list[Moment] = []
        training = [(text.id, text.words) for text in texts if not text.held_out]
        #: In the order of its batches.
        order = np.random.default_rng(job.seed).permutation(len(training))
        held_out = [text for text in for_first_verdict(job, device.plan(Ahead()).plan.method, texts) if text.held_out]
        new = [text for text in held_out if text.learned_in is None] or list(texts[:1])
        self.parts = [new, *_by_job([text for text in held_out if text.learned_in is not None])]
        plan = device.plan(Ahead()).plan
        self._block = plan.block_tokens
        self.lesson = Lesson(known, [training[place] for place in order], device.words_a_step)
        self._blocks = max(2, ceil(sum(words for _, words in training) * TOKENS_A_WORD / self._block))
        one_in = max(2, min(ONE_IN, self._blocks), ceil(self._blocks / MAX_BLOCKS))
        self._validation = self._blocks // one_in
        self._held_out_blocks = max(1, sum(ceil(TOKENS_A_WORD * text.words / self._block) for text in held_out))

    def work(self, seconds: float) -> EarlyStopping:
        """Work to the end. seconds: what is probably left of the night."""
        device, job = self._device, self._job
        self.at, self._ends_at, self._measuring = device.load_seconds, seconds, 0.0
        if self.saved is None:
            ahead = Ahead(words=job.words or 0, seconds=max(1.0, seconds - self.at), first=job.compared_with == BASE)
            self._keep(plan=device.plan(ahead).plan)
        assert self.saved is not None
        if job.judges:
            self.worth = 0
            self._measure(0)
            self._measure(1)
            return EarlyStopping(best_step=1)
        while self.samples < ceil(
            min(device.rehearsed * self.saved.plan.steps, rehearsal.MAX_SAMPLES) / rehearsal.AT_ONCE
        ):
            self.at += rehearsal.AT_ONCE * rehearsal.TOKENS * device.token_seconds
            self.samples += 1
            self._keep()
        blocks = ceil((self._blocks - self._validation) / (self.saved.plan.batch - device.rehearsed))
        self.worth = max(1, worth(blocks, self.saved.plan.method) - job.chain_steps)
        stopping = train(
            self,
            self,  # type: ignore[arg-type]
            Run(
                steps=self.worth,
                batch=lambda step: _NO_BATCH,
                remaining=self._remaining,
                validation_loss=self._validation_loss,
                validated_on="",
                # As `validation_interval`.
                check_every=max(
                    MIN_INTERVAL, ceil(self._validation / (CHECK_SHARE * device.passes * self.saved.plan.batch))
                ),
                measure=self._measure,
                measure_every=device.training.measure_every,
                clock=lambda: self.at,
            ),
        )
        self.at += 0 if len(self.parts) > 1 else self._passes(_ORDINARY_BLOCKS)
        return stopping

    def _passes(self, blocks: int) -> float:
        """The time of forward passes."""
        return blocks * self._block * self._device.token_seconds

    # As in TrainingRun.

    def _remaining(self, step: int) -> float:
        assert self.saved is not None
        if step > FIRST_STEPS and self.saved.total_steps is None:
            left = self._ends_at - self.at - 2 * self._measuring
            most = min(self.worth, most_steps(self.saved.plan.method, first=self._job.compared_with == BASE))
            self._keep(total_steps=min(most, fitting(left, self._device.step_seconds, made=FIRST_STEPS)))
        return remaining(step, self.saved.total_steps)

    def _measure(self, step: int) -> None:
        assert self.saved is not None
        if step not in self.saved.measured:
            compared = 2 if step == 0 and self._job.compared_with not in (None, BASE) else 1
            blocks, at_once = compared * self._held_out_blocks, self.saved.plan.micro_batch
            self._measuring = max(self._measuring, self._passes(blocks))
            for done in range(self.saved.part, blocks, at_once):
                self.at += self._passes(min(at_once, blocks - done))
                self._keep(part=done + at_once)
            self._keep(measured=(*self.saved.measured, step), part=0)

    def _validation_loss(self) -> float:
        self.at += self._passes(self._validation)
        return _BASE_LOSS - self.lesson.won(self.step_now)

    # The method.

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord | None:
        """See Method."""
        assert self.saved is not None
        count = ceil(self.saved.plan.batch / self.saved.plan.pass_blocks)
        self.at += self._device.step_seconds / count
        self.passes = (self.passes + 1) % count
        if self.passes:
            return None
        self.step_now = number
        return StepRecord(step=number, seed=0, scalars=(1.0,), loss=1.0, learning_rate=1.0, tokens=1)

    def state(self) -> dict[str, torch.Tensor]:
        """See Method."""
        return {"adapter": torch.empty(self._device.state_bytes, dtype=torch.uint8, device="meta")}

    def restore(self, state: Mapping[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
        """See Method. `load` has said which step that is."""
        if not state:
            self.step_now = self.passes = 0

    # The store of the run, see StoredRun.

    def _keep(self, **changes: Any) -> None:
        self.saved = replace(self.saved, **changes) if self.saved else Saved(**changes)
        if not changes or changes.keys() & {"checkpoints", "measured", "part"}:
            self._safe_at = self.at
        self.log.append(Moment(self.at, self.saved, self.samples, self._safe_at))

    def records(self) -> Sequence[int]:
        """See StoredRun."""
        assert self.saved is not None
        return range(self.saved.records)

    def append(self, record: StepRecord, *, seconds: float) -> None:
        """See StoredRun."""
        self._keep(records=record.step)

    def early_stopping(self) -> EarlyStopping | None:
        """See StoredRun."""
        assert self.saved is not None
        return replace(self.saved.stopping) if self.saved.stopping else None

    def keep(self, stopping: EarlyStopping) -> None:
        """See StoredRun."""
        self._keep(stopping=replace(stopping))

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        """See StoredRun."""
        ended = {"total_steps": stopping.best_step} if stopping.ended else {}
        self._keep(records=stopping.best_step, stopping=replace(stopping), **ended)

    def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
        """See StoredRun."""
        assert self.saved is not None
        best = stopping.best_step
        kept = {step: made for step, made in self.saved.checkpoints.items() if best in (step, checkpoint.step)}
        self._keep(checkpoints=kept | {checkpoint.step: self.passes})

    def load(self, stopping: EarlyStopping) -> Checkpoint | None:
        """See StoredRun."""
        assert self.saved is not None
        there = [step for step in self.saved.checkpoints if step <= self.saved.records]
        self.step_now = max([stopping.best_step, *there])
        self.passes = self.saved.checkpoints.get(self.step_now, 0)
        return Checkpoint(step=self.step_now, state=self.state()) if self.step_now else None


@dataclass
class SimulatedWorker(WorkerProcess):
    """A worker runs from `start` until its work's end, or until it is killed."""

    device: Device
    store: Store
    folder: DataFolder
    now: Callable[[], datetime]
    seed: int
    job_id: str | None = None
    known: dict[str | None, Known] = field(default_factory=lambda: {None: Known()})  #: by the adapter
    lost_seconds: float = 0.0
    samples: int = 0
    served: int = 0  #: adapters so far
    _saved: dict[str, Saved] = field(default_factory=dict)

    @property
    def pid(self) -> int | None:
        """See WorkerProcess."""
        return 4711 if self.job_id else None

    @property
    def cpu_seconds(self) -> float | None:
        """See WorkerProcess."""
        return None

    @property
    def ends_at(self) -> datetime | None:
        """When the work will be done."""
        return self._began + timedelta(seconds=self._attempt.at) if self.job_id else None

    def start(self, job_id: str, start: int, *, seconds: float, immediate: bool = False) -> None:
        """See WorkerProcess."""
        job, texts = self.store.jobs.get(job_id), self.store.texts.of_job(job_id)
        saved = self._saved.get(job_id) if job.plan else None
        if saved and job.total_steps is not None:  # it may have been cut
            saved = replace(saved, total_steps=job.total_steps)
        self.job_id, self._began = job_id, self.now()
        self._attempt = Attempt(self.device, job, texts, self.known[job.parent], saved, self.samples)
        self._stopping = self._attempt.work(seconds)

    def reap(self) -> Exit | None:
        """See WorkerProcess."""
        if self.job_id is None or self.now() < self._began + timedelta(seconds=self._attempt.at):
            return None
        job_id = self._left(self._attempt.at)
        self._finish(self.store.jobs.get(job_id))
        return Exit(job_id=job_id, code=0, last_words="")

    def kill(self) -> Exit | None:
        """See WorkerProcess."""
        if self.job_id is None:
            return None
        ran = (self.now() - self._began).total_seconds()
        job_id = self._left(ran)
        self.lost_seconds += ran - max(
            (moment.safe_at for moment in self._attempt.log if moment.at <= ran), default=0.0
        )
        return Exit(job_id=job_id, code=-9, last_words="")

    def _left(self, ran: float) -> str:
        """Store what is on disk after this number of seconds; the job's id. No worker runs from now on."""
        assert self.job_id is not None
        job_id, self.job_id = self.job_id, None
        if there := [moment for moment in self._attempt.log if moment.at <= ran]:
            saved = self._saved[job_id] = there[-1].saved
            self.samples = there[-1].samples
            values = {"plan": asdict(saved.plan), "method": saved.plan.method, "total_steps": saved.total_steps}
            self.store.jobs.update(job_id, **values)
            last = self.store.step_log.last_step(job_id)
            if saved.records < last:
                back: Any = {"early_stopping": {}, "ended": False, "message": None, "now": self.now()}
                self.store.step_log.go_back(job_id, step=saved.records, **back)
            if saved.records > last:
                row = Step(
                    job_id=job_id,
                    step=saved.records,
                    seed=0,
                    scalars=[1.0],
                    loss=1,
                    learning_rate=1,
                    tokens=1,
                    seconds=self.device.step_seconds,
                )
                self.store.step_log.append(row)
        return job_id

    def _finish(self, job: Job) -> None:
        """As TrainingRun does."""
        attempt, stopping, again = self._attempt, self._stopping, job.judges
        identity = str(job.parent) if again else adapter_id_of(job.id)
        learned = self.known[identity] if again else attempt.lesson.after(stopping.best_step)
        rival = self.known[None if job.compared_with in (None, BASE) else job.compared_with]
        measured = self._measured(attempt.parts, learned.won - rival.won)
        found = measured.verdict(measured.fell, link=job.link, again=again)
        self.served += found.outcome is Outcome.LEARNED
        made = job.total_steps or attempt.worth
        if not again:
            self.known[identity] = learned
            files = self.folder.adapter(identity)
            files.mkdir(parents=True)
            (files / CONFIG_NAME).write_text("{}")
            (files / WEIGHTS_NAME).write_text("")
        row: Any = {
            "id": identity,
            "job_id": job.id,
            "model": job.model,
            "parent": job.parent,
            "created_at": self.now(),
        }
        self.store.jobs.succeed(
            job.id,
            adapter=Adapter(outcome=found.outcome, **row),
            publish=found.outcome is Outcome.LEARNED,
            chain_steps=job.chain_steps + made,
            unfinished=goes_on(attempt.worth, made, ended_early=stopping.ended_early, outcome=found.outcome),
            now=self.now(),
        )

    def _measured(self, parts: Sequence[Sequence[Text]], gain: float) -> HeldOut:
        """A text's luck is the device's own, and the same in each verdict until another adapter is served."""
        falls: list[np.ndarray] = []
        weights: list[int] = []
        texts: list[tuple[int, int]] = []
        blocks: list[int] = []
        for number, part in enumerate(parts):
            before = len(weights)
            for text in part:
                random = np.random.default_rng((self.seed, self.served, int(text.id[-8:], 16)))
                counts = blocks_of(text.words)
                change = BETWEEN_TEXTS * effects(random, 1) + (0 if number else gain)
                falls.append(change + PER_TOKEN / np.sqrt(counts) * effects(random, len(counts)))
                weights += counts
                texts += [(number, text.number)] * len(counts)
            blocks.append(len(weights) - before)
        fell = np.concatenate(falls)
        return HeldOut(before=fell + _BASE_LOSS, fell=fell, weights=weights, texts=texts, old_blocks=blocks[1:])
