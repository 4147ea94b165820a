"""One job's run: from what is stored to what was learned. What joins storage and mezo."""

import gc
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from pocketllm.daemon import carrying, reporting
from pocketllm.daemon.division import example_of, first_blocks, with_replay
from pocketllm.daemon.guarding import StoredRun, ended_early
from pocketllm.daemon.measuring import Measuring, ordinary_text
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.planning import plan_job
from pocketllm.daemon.process_memory import (
    cap_anonymous_memory,
    give_back_free_memory,
    lift_cap,
)
from pocketllm.daemon.publishing import Judgement, judge
from pocketllm.daemon.repeats import repeated
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.mezo import guided_run
from pocketllm.mezo.adapters import Adapter, load_adapter
from pocketllm.mezo.batches import Buckets, shuffled
from pocketllm.mezo.budget import HEAD_RANK, JobPlan, points_of
from pocketllm.mezo.decoding import end_tokens, separator
from pocketllm.mezo.directions import PASSES, adapter_along_activations
from pocketllm.mezo.errors import UnsupportedModel
from pocketllm.mezo.examples import encode
from pocketllm.mezo.full import FullWeights, save_full
from pocketllm.mezo.guarded import Checks, train_guarded
from pocketllm.mezo.insight import Insight, sample
from pocketllm.mezo.kept_aside import divide, steps_between_checks
from pocketllm.mezo.loop import Plan
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel, open_native
from pocketllm.mezo.templates import Template
from pocketllm.mezo.weights import open_weights
from pocketllm.storage.journal import BASE_STEP
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter as AdapterRow
from pocketllm.storage.tables import Job, Outcome, Text

Result = TypeVar("Result")

#: Blocks of the job's text that the adapter's frozen directions are taken from.
DIRECTION_BLOCKS = 32
#: The fewest rows that pass through the layers at once: a pair of points.
LEAST_ROWS = 2


class TrainingRun:
    """One job's run: its parts, made from what is stored. Raises MezoError for what trying again would not mend."""

    def __init__(self, folder: DataFolder, store: Store, job: Job) -> None:
        self.folder, self.store, self.job = folder, store, job
        self.settings = TrainingSettings.model_validate(job.settings)
        self.native = self._start_model()
        self.plan = self._plan()
        self.dtype: torch.dtype = getattr(torch, self.plan.compute_dtype)
        self.model = LanguageModel(self.native, dtype=self.dtype, release_pages=True, lanes=self.plan.lanes)
        # The tokenizer takes as much memory as a step does, and is not kept. It comes before the cap, since it
        # aborts the process where it cannot allocate; what it is given at a time is bounded.
        tokenizer = self.native.tokenizer()
        self.buckets, held_out, self.old_blocks = self._examples(tokenizer)
        masked = self.native.manifest.masked
        unknown = self.plan.method == "guided" and not carrying.is_known(self.native)
        self.neutral = carrying.neutral_text(tokenizer) if unknown else None
        self.measuring = Measuring(
            folder=folder,
            store=store,
            model=self.model,
            held_out=held_out,
            ordinary=None if self.old_blocks else ordinary_text(tokenizer, self.buckets, masked=masked),
            dtype=self.dtype,
            rows_at_once=self.plan.rows_at_once,
        )
        self.separator = separator(tokenizer)
        self.ends = end_tokens(self.model.network.config.eos_token_id, tokenizer)
        del tokenizer
        cap_anonymous_memory(self.settings.memory_bytes)

    def to_the_end(self) -> None:
        """Start, or go on, and finish."""
        self._conclude(*self._learn())

    def take_fewer_rows(self, because: str) -> bool:
        """Let half as many rows as before pass through the layers at once, from the next start on; whether it can."""
        before = self.plan.rows_at_once
        if before <= LEAST_ROWS:
            return False
        self.plan = replace(self.plan, rows_at_once=max(LEAST_ROWS, before // 4 * 2))
        self._say("reduced", f"{because} with {before} rows at once; going on with {self.plan.rows_at_once}")
        self.store.jobs.set_plan(self.job.id, self.plan.to_json(), predicted_bytes=self.job.predicted_bytes)
        return True

    @torch.inference_mode()
    def _learn(self) -> tuple[AdapterRow, Judgement, Insight | None]:
        """What was made and saved, what the held-out text says of it, and what there is to see of it."""
        theta = self._start()
        self.model.use(theta)
        give_back_free_memory()  # of the tokenizer and of what the directions were found with
        if self.plan.method == "guided":
            assert isinstance(theta, Adapter)
            return self._finish(theta, self._guided(theta))
        return self._finish(theta, self._mezo(theta))

    def _mezo(self, theta: Adapter | FullWeights) -> int:
        """Learn along random directions; what was done is replayed from the journal. Returns the number of steps,
        fewer than planned where going on brought nothing.
        """
        learned, checked = divide(self.buckets)
        plan = Plan(
            seed=self.job.seed,
            steps=self.job.total_steps,
            batch=self.plan.batch,
            epsilon=self.settings.epsilon,
            step_size=self.settings.step_size,
            measure_every=self.settings.measure_every,
            probes=self.plan.probes,
            noise=self.settings.noise,
        )
        watch = train_guarded(
            lambda points, batch: self.model.losses_at(points, batch, self.plan.rows_at_once),
            theta,
            shuffled(learned, size=plan.batch, seed=plan.seed),
            plan,
            checks=Checks(
                loss=lambda: self.model.mean_loss(checked, self.plan.rows_at_once),
                every=steps_between_checks(learned, checked, batch=plan.batch, points=points_of(plan.probes)),
            ),
            keeper=self._stored(theta),
            measure=lambda step: self._measure(step, theta),
            clock=time.monotonic,
        )
        return watch.best_step

    def _guided(self, theta: Adapter) -> int:
        """Learn along the guide, going on from what was saved last; returns the number of steps, fewer than planned
        where going on brought nothing.
        """
        self._measure_carrying()
        guided = guided_run.go_on(self.model, theta)
        self.model.use(theta)
        state = guided_run.train(
            self.model,
            self.buckets,
            guided,
            seed=self.job.seed,
            steps=self.job.total_steps,
            batch=self.plan.batch,
            measure_every=self.settings.measure_every,
            rows_at_once=self.plan.rows_at_once,
            folder=self.folder.run(self.job.id),
            cache_bytes=self.settings.trunk_bytes,
            done=self.store.journal.last_step(self.job.id),
            keep=self._stored(theta).keep,
            measure=lambda step: self._measure(step, theta),
            remaining=lambda step: 1 - (step - 1) / self.job.total_steps,
            clock=time.monotonic,
        )
        if state.ended:
            self._say("ended early", ended_early(state, state.step))
            self.store.jobs.set_total_steps(self.job.id, state.step)
        return state.step

    def _stored(self, theta: Adapter | FullWeights) -> StoredRun:
        return StoredRun(self.store, self.job.id, lambda _: self._to_start(theta))

    def _measure(self, step: int, theta: Adapter | FullWeights) -> None:
        if self.store.journal.evaluation(self.job.id, step) is None:
            self.measuring.evaluate(self.job, step, theta)

    def _start_model(self) -> NativeModel:
        """The weights that the job starts from: the base's, or all of those that an earlier full job made."""
        if self.settings.mode == "full" and self.job.parent:
            return open_native(self.folder.adapter(self.job.parent))
        return open_native(self.folder.models / self.job.model)

    def _plan(self) -> JobPlan:
        """How the job runs: settled at its first start, so that a resumed run makes the same sums."""
        if self.job.plan is not None:
            return JobPlan(**{**self.job.plan, "targets": tuple(self.job.plan["targets"])})
        planned = plan_job(self.native, self.settings, steps=self.job.total_steps)
        for sentence in planned.reductions:
            self._say("reduced", sentence)
        self.store.jobs.set_plan(self.job.id, planned.plan.to_json(), predicted_bytes=planned.prediction.peak_bytes)
        self.store.jobs.set_method(self.job.id, planned.plan.method)
        return planned.plan

    def _examples(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Buckets, Buckets, tuple[int, ...]]:
        """Blocks to learn from, to measure with, and how many of the latter, at the end, are of each old part."""

        def encoded(texts: Sequence[Text]) -> Buckets:
            return encode(
                [example_of(text) for text in texts],
                tokenizer,
                length=self.plan.block_tokens,
                separator=separator(tokenizer),
                template=Template(pattern=self.settings.template, words=self.settings.label_words),
                masked=self.native.manifest.masked,
                seed=self.job.seed,
            )

        return with_replay(self.store.texts.of_job(self.job.id), encoded)

    def _start(self) -> Adapter | FullWeights:
        """What the job starts from: the same at each start. A fresh adapter is written down at the first."""
        if self.settings.mode == "full":
            return self.model.full()
        folder = self.folder.start(self.job.id)
        if folder.exists():
            return load_adapter(folder)
        adapter = self._of_parent() or self._fresh()
        adapter.save(folder)
        return adapter

    def _to_start(self, theta: Adapter | FullWeights) -> None:
        """Make of theta, in place, what `_start` gave."""
        if isinstance(theta, FullWeights):
            theta.reload(open_weights(self.native.weights))
            return
        for path, b in load_adapter(self.folder.start(self.job.id)).b.items():
            theta.b[path].copy_(b)

    def _of_parent(self) -> Adapter | None:
        """The parent's adapter, if this job's method can go on with it."""
        if self.job.parent is None:
            return None
        adapter = load_adapter(self.folder.adapter(self.job.parent))
        if (self.model.head_path in adapter.a) == (self.plan.method == "guided"):
            return adapter
        self._say("begun anew", f"{self.job.parent} was taught by another method, which adapts other maps")
        self.job = self.store.jobs.set_parent(self.job.id, None)
        return None

    def _fresh(self) -> Adapter:
        if self.plan.method == "guided" and (adapter := self._aimed()) is not None:
            return adapter
        return adapter_along_activations(
            self.model,
            first_blocks(self.buckets, DIRECTION_BLOCKS),
            targets=self.settings.targets,
            rank=self.plan.rank,
            seed=self.job.seed,
            rows_at_once=self.plan.rows_at_once,
            on_pass=self._passed,
        )

    def _aimed(self) -> Adapter | None:
        """An adapter for the guide; None where the method is open and the guide promises less than chance does."""
        try:
            self._measure_carrying()
            aimed = guided_run.begin(
                self.model,
                self.buckets,
                rank=self.plan.rank,
                head_rank=HEAD_RANK,
                seed=self.job.seed,
                rows_at_once=self.plan.rows_at_once,
                on_pass=self._passed,
            )
        except UnsupportedModel as error:
            if self.settings.method == "guided":
                raise
            self._change_to_mezo(str(error))
            return None
        layers = [one for one in aimed.aims if one.paths[0] in aimed.adapter.a]
        found = (
            f"on a first batch the loss would fall by {aimed.guide_promise:.3g} nats per token along the guide and by "
            f"{aimed.random_promise:.3g} along random signs"
        )
        if self.settings.method == "auto" and aimed.guide_promise <= aimed.random_promise:
            self._change_to_mezo(found)
            return None
        agreeing = f", which agree with it to {min(one.agreement for one in layers):.2f} or more" if layers else ""
        self._say("chosen", f"guided: {found}; adapted are the output head and {2 * len(layers)} layers{agreeing}")
        return aimed.adapter

    def _measure_carrying(self) -> None:
        """Once a model, and before what is aimed with it."""
        if self.neutral is None:
            return
        self._say("preparing", "measuring how the model's layers pass on what they are given: once a model")
        carrying.measure_once(self.model, self.neutral)
        self.neutral = None

    def _change_to_mezo(self, reason: str) -> None:
        self._say("chosen", f"mezo: {reason}")
        training = self.settings.model_copy(update={"method": "mezo"})
        planned = plan_job(self.native, training, steps=self.job.total_steps)
        self.plan = planned.plan
        self.measuring = replace(self.measuring, rows_at_once=self.plan.rows_at_once)
        self.store.jobs.set_plan(self.job.id, self.plan.to_json(), predicted_bytes=planned.prediction.peak_bytes)
        self.store.jobs.set_method(self.job.id, "mezo")

    def _passed(self, number: int) -> None:
        self._say("preparing", f"looked at the text, pass {number} of {PASSES}")

    def _finish(self, theta: Adapter | FullWeights, last: int) -> tuple[AdapterRow, Judgement, Insight | None]:
        """Judge and save what was made, and look at it while the model is there."""
        before = self.store.journal.evaluation(self.job.id, 0)
        now = self.store.journal.evaluation(self.job.id, last)
        assert before is not None and now is not None, "train() measures at both ends"
        base = self.store.journal.evaluation(self.job.id, BASE_STEP)
        judgement = judge(
            before.block_losses,
            now.block_losses,
            self.measuring.weights,
            old_blocks=self.old_blocks,
            base=None if base is None else base.block_losses,
            repeats=repeated(self.buckets, self.measuring.held_out, masked=self.native.manifest.masked),
            ordinary=self.measuring.compare_ordinary(theta),
        )
        identity = self.job.id.replace("job-", "adapter-")
        self._save(theta, identity)
        row = AdapterRow(
            id=identity,
            job_id=self.job.id,
            model=self.job.model,
            mode=self.settings.mode,
            parent=self.job.parent,
            outcome=judgement.outcome,
            held_out_loss_before=before.loss,
            held_out_loss_now=now.loss,
            created_at=_now(),
        )
        return row, judgement, reporting.attempted(lambda: self._look(theta), self._say)

    def _look(self, theta: Adapter | FullWeights) -> Insight:
        self._say("reporting", "looking at what was learned")
        give_back_free_memory()  # of the steps
        masked, base = self.native.manifest.masked, self.folder.models / self.job.model
        places = sample(self.buckets, self.measuring.held_out, separator=self.separator, ends=self.ends, masked=masked)
        return reporting.look(self.model, theta, base, places, self.plan.rows_at_once)

    def _conclude(self, row: AdapterRow, judgement: Judgement, found: Insight | None) -> None:
        """End the job with its report. A worker that is killed before has lost seconds: the next does this again."""
        content = None
        if found is not None:
            del self.model, self.measuring, self.buckets
            gc.collect()
            give_back_free_memory()
            lift_cap()  # for the tokenizer, which has the memory again that it had before the cap
            texts = self.store.texts.of_job(self.job.id)
            content = reporting.attempted(lambda: reporting.in_words(found, self.native, texts), self._say)
        self._say("judged", judgement.sentence)
        self.store.jobs.succeed(
            self.job.id,
            adapter=row,
            publish=judgement.outcome is Outcome.LEARNED,
            report=reporting.report(judgement, found, content),
            now=_now(),
        )
        self.store.journal.compact(self.job.id)
        shutil.rmtree(self.folder.start(self.job.id), ignore_errors=True)
        shutil.rmtree(self.folder.run(self.job.id), ignore_errors=True)

    def _save(self, theta: Adapter | FullWeights, identity: str) -> None:
        folder = self.folder.adapter(identity)
        if isinstance(theta, FullWeights):
            save_full(self.native, theta, folder, created_at=_now())
            return
        theta.metadata = {"job": self.job.id, "base_weights_sha256": self.native.manifest.weights_sha256}
        theta.save(folder, masked=self.native.manifest.masked)

    def _say(self, kind: str, message: str) -> None:
        self.store.jobs.add_event(self.job.id, kind=kind, message=message, now=_now())


def _now() -> datetime:
    return datetime.now(UTC)
