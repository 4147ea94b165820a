"""One job's run: from what is stored to what was learned. What joins storage and mezo."""

import gc
import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from pocketllm.backprop.gradients import PassSize
from pocketllm.backprop.method import Exact, ExactPlan, adapted_paths, fresh_adapter
from pocketllm.daemon.evaluation import report as reporting
from pocketllm.daemon.evaluation.contamination import repeated
from pocketllm.daemon.evaluation.held_out import HeldOutEvaluation, block_keys, ordinary_text
from pocketllm.daemon.evaluation.promotion import EvaluationVerdict, evaluate
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.process_memory import cap_anonymous_memory, give_back_free_memory, lift_cap
from pocketllm.daemon.scheduling.planning import chosen, plan_job
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training import rehearsal
from pocketllm.daemon.training.checkpoints import StoredRun
from pocketllm.daemon.training.data_split import example_of, first_blocks, with_replay
from pocketllm.daemon.training.trainer import Run, train
from pocketllm.daemon.training.validation_split import split, validation_interval
from pocketllm.engine.data.batches import Batch, Batches, shuffled
from pocketllm.engine.data.examples import encode
from pocketllm.engine.data.label_templates import Template
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.generate.model_report import ModelReport, sample
from pocketllm.engine.generate.streaming_text import end_tokens, eos_id
from pocketllm.engine.method import Method
from pocketllm.engine.params.activation_pca import PASSES, adapter_along_activations
from pocketllm.engine.params.full import FullWeights, save_full
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.planning.memory_model import EXACT_PASSES, MIN_ROWS, JobPlan, points_of
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.weights import open_weights
from pocketllm.mezo.method import MeZO, MeZOPlan
from pocketllm.storage.repositories.step_log import BASE_STEP
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter as AdapterRow
from pocketllm.storage.tables import Job, Outcome, Text

Result = TypeVar("Result")

#: Blocks of the job's text that the adapter's frozen directions are taken from.
DIRECTION_BLOCKS = 32


class TrainingRun:
    """One job's run: its parts, made from what is stored. Raises MezoError for what trying again would not mend."""

    def __init__(self, folder: DataFolder, store: Store, job: Job) -> None:
        self.folder, self.store, self.job = folder, store, job
        self.settings = TrainingSettings.model_validate(job.settings)
        self.model_folder = self._start_model()
        self.plan = self._plan()
        self.dtype: torch.dtype = getattr(torch, self.plan.compute_dtype)
        self.model = LanguageModel(self.model_folder, dtype=self.dtype, release_pages=True, replicas=self.plan.replicas)
        # The tokenizer takes as much memory as a step does, and is not kept. It comes before the cap, since it
        # aborts the process where it cannot allocate; what it is given at a time is bounded.
        tokenizer = self.model_folder.tokenizer()
        self.eos = eos_id(tokenizer)  # which looks through all words
        self.buckets, held_out, self.old_blocks = self._examples(tokenizer)
        is_mlm = self.model_folder.manifest.is_mlm
        self.measuring = HeldOutEvaluation(
            folder=folder,
            store=store,
            model=self.model,
            held_out=held_out,
            ordinary=None if self.old_blocks else ordinary_text(tokenizer, self.buckets, is_mlm=is_mlm),
            dtype=self.dtype,
            micro_batch=self.plan.micro_batch,
        )
        self.openings = rehearsal.openings(tokenizer)
        self.ends = end_tokens(self.model.network.config.eos_token_id, tokenizer)
        del tokenizer
        cap_anonymous_memory(self.settings.memory_bytes)

    def to_the_end(self) -> None:
        """Start, or go on, and finish."""
        self._conclude(*self._learn())

    def take_fewer_rows(self, because: str) -> bool:
        """Let half as many rows as before pass through the layers at once, from the next start on; whether it can."""
        before, fewest = self.plan.micro_batch, MIN_ROWS[self.plan.method]
        if before <= fewest:
            return False
        self.plan = replace(self.plan, micro_batch=max(fewest, before // 4 * 2))
        self._say("reduced", f"{because} with {before} rows at once; going on with {self.plan.micro_batch}")
        self.store.jobs.set_plan(self.job.id, self.plan.to_json(), predicted_bytes=self.job.predicted_bytes)
        return True

    @torch.no_grad()
    def _learn(self) -> tuple[AdapterRow, EvaluationVerdict, ModelReport | None]:
        """What was made and saved, what the held-out text says of it, and what there is to see of it."""
        samples = self._samples()
        theta = self._start()
        self.model.use(theta)
        give_back_free_memory()  # of the tokenizer and of what the directions were found with
        self.measuring.refresh(self.job, theta)
        training, validation = split(self.buckets)
        method, points = self._method(theta, samples)
        new = self.plan.batch - self._rehearsed  # blocks of a step
        stopping = train(
            method,
            StoredRun(self.store, self.job.id, self.folder.run(self.job.id)),
            Run(
                steps=self.job.total_steps,
                batch=shuffled(training, size=new, seed=self.job.seed),
                remaining=lambda step: 1 - (step - 1) / self.job.total_steps,
                validation_loss=lambda: self.model.mean_loss(validation, self.plan.micro_batch),
                validated_on=hashlib.sha256(" ".join(block_keys(validation)).encode()).hexdigest()[:16],
                check_every=validation_interval(training, validation, batch=self.plan.batch, points=points),
                measure=lambda step: self._measure(step, theta),
                measure_every=self.settings.measure_every,
                clock=time.monotonic,
            ),
        )
        return self._finish(theta, stopping.best_step)

    def _samples(self) -> Batch | None:
        """The base model's own samples, where steps rehearse them."""
        if not self._rehearsed:
            return None
        wanted = self._rehearsed * self.job.total_steps
        return rehearsal.rehearsal_blocks(self.model, self.openings, wanted=wanted, on_part=self._drawn)

    @property
    def _rehearsed(self) -> int:
        """Blocks of a step that are samples: of exact steps on a model that writes."""
        if self.plan.method != "exact" or self.model_folder.manifest.is_mlm:
            return 0
        return rehearsal.blocks_of_step(self.settings.rehearsal, self.plan.batch)

    def _drawn(self, count: int, wanted: int) -> None:
        self._say("preparing", f"drew {count} of {wanted} samples of the base model, once a model")

    def _method(self, theta: Adapter | FullWeights, samples: Batch | None) -> tuple[Method, float]:
        """The job's method, and how many forward passes a step of it takes as long as."""
        if self.plan.method == "exact":
            assert isinstance(theta, Adapter)
            size = PassSize(blocks=self.plan.pass_blocks, micro_batch=self.plan.micro_batch)
            count = self._rehearsed
            exact = Exact(
                self.model,
                theta,
                ExactPlan(seed=self.job.seed, rate=self.settings.rate, samples_weight=count / self.plan.batch),
                size,
                to_start=lambda: self._to_start(theta),
                samples=None if samples is None else shuffled((samples,), size=count, seed=self.job.seed),
            )
            return exact, EXACT_PASSES
        mezo = MeZO(
            lambda points, batch: self.model.losses_at(points, batch, self.plan.micro_batch),
            theta,
            MeZOPlan(
                seed=self.job.seed,
                epsilon=self.settings.epsilon,
                step_size=self.settings.step_size,
                probes=self.plan.probes,
                noise=self.settings.noise,
            ),
            to_start=lambda: self._to_start(theta),
        )
        return mezo, points_of(self.plan.probes)

    def _measure(self, step: int, theta: Adapter | FullWeights) -> None:
        found = self.store.step_log.evaluation(self.job.id, step)
        if found is None or not self.measuring.covers(found):
            self.measuring.evaluate(self.job, step, theta)

    def _start_model(self) -> ModelFolder:
        """The weights that the job starts from: the base's, or all of those that an earlier full job made."""
        if self.settings.mode == "full" and self.job.parent:
            return open_model_folder(self.folder.adapter(self.job.parent))
        return open_model_folder(self.folder.models / self.job.model)

    def _plan(self) -> JobPlan:
        """How the job runs: settled at its first start, so that a resumed run makes the same sums."""
        if self.job.plan is not None and self.job.plan.get("method") == "guided":
            self._begin_anew()
        if self.job.plan is not None:
            known = {field.name for field in fields(JobPlan)}  # an older version's plan may say more
            plan = {name: value for name, value in self.job.plan.items() if name in known}
            return JobPlan(**{**plan, "targets": tuple(plan["targets"])})
        planned = plan_job(self.model_folder, self.settings, steps=self.job.total_steps)
        self._say("chosen", chosen(planned))
        for sentence in planned.reductions:
            self._say("reduced", sentence)
        predicted = planned.prediction.peak_bytes
        self.store.jobs.set_plan(self.job.id, planned.plan.to_json(), predicted_bytes=predicted)
        self.store.jobs.set_method(self.job.id, planned.plan.method)
        return planned.plan

    def _begin_anew(self) -> None:
        """Forget the run of a job that was paused while it learned by a method that is gone."""
        self._say("began anew", "the method guided is gone: the job starts again with exact gradients")
        self.store.step_log.forget_run(self.job.id)
        self.job = self.store.jobs.get(self.job.id)
        shutil.rmtree(self.folder.start(self.job.id), ignore_errors=True)
        shutil.rmtree(self.folder.run(self.job.id), ignore_errors=True)

    def _examples(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Batches, Batches, tuple[int, ...]]:
        """Blocks to learn from, to measure with, and how many of the latter, at the end, are of each old part."""

        def encoded(texts: Sequence[Text]) -> Batches:
            return encode(
                [example_of(text) for text in texts],
                tokenizer,
                length=self.plan.block_tokens,
                eos=self.eos,
                template=Template(pattern=self.settings.template, words=self.settings.label_words),
                is_mlm=self.model_folder.manifest.is_mlm,
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
            theta.reload(open_weights(self.model_folder.weights))
            return
        start = load_adapter(self.folder.start(self.job.id))
        for path in theta.a:
            theta.a[path].copy_(start.a[path])
            theta.b[path].copy_(start.b[path])

    def _of_parent(self) -> Adapter | None:
        """The parent's adapter, if this job's method can go on with it."""
        if self.job.parent is None:
            return None
        adapter = load_adapter(self.folder.adapter(self.job.parent))
        if self.plan.method == "exact":
            fits = list(adapter.a) == adapted_paths(self.model)
        else:
            fits = self.model.head_path not in adapter.a
        if fits:
            return adapter
        self._say("began anew", f"{self.job.parent} adapts other maps than {self.plan.method} does")
        self.job = self.store.jobs.set_parent(self.job.id, None)
        return None

    def _fresh(self) -> Adapter:
        if self.plan.method == "exact":
            return fresh_adapter(self.model, rank=self.plan.rank, seed=self.job.seed)
        return adapter_along_activations(
            self.model,
            first_blocks(self.buckets, DIRECTION_BLOCKS),
            targets=self.settings.targets,
            rank=self.plan.rank,
            seed=self.job.seed,
            micro_batch=self.plan.micro_batch,
            on_pass=self._passed,
        )

    def _passed(self, number: int) -> None:
        self._say("preparing", f"looked at the text, pass {number} of {PASSES}")

    def _finish(
        self, theta: Adapter | FullWeights, last: int
    ) -> tuple[AdapterRow, EvaluationVerdict, ModelReport | None]:
        """Judge and save what was made, and look at it while the model is there."""
        before = self.store.step_log.evaluation(self.job.id, 0)
        now = self.store.step_log.evaluation(self.job.id, last)
        assert before is not None and now is not None, "train() measures at both ends"
        base = self.store.step_log.evaluation(self.job.id, BASE_STEP)
        verdict = evaluate(
            self.measuring.paired(before),
            self.measuring.paired(now),
            self.measuring.weights,
            old_blocks=self.old_blocks,
            base=None if base is None else self.measuring.paired(base),
            repeats=repeated(self.buckets, self.measuring.held_out, is_mlm=self.model_folder.manifest.is_mlm),
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
            outcome=verdict.outcome,
            held_out_loss_before=before.loss,
            held_out_loss_now=now.loss,
            created_at=_now(),
        )
        return row, verdict, reporting.attempted(lambda: self._look(theta), self._say)

    def _look(self, theta: Adapter | FullWeights) -> ModelReport:
        self._say("reporting", "looking at what was learned")
        give_back_free_memory()  # of the steps
        is_mlm, base = self.model_folder.manifest.is_mlm, self.folder.models / self.job.model
        places = sample(self.buckets, self.measuring.held_out, eos=self.eos, ends=self.ends, is_mlm=is_mlm)
        return reporting.look(self.model, theta, base, places, self.plan.micro_batch)

    def _conclude(self, row: AdapterRow, verdict: EvaluationVerdict, found: ModelReport | None) -> None:
        """End the job with its report. A worker that is killed before has lost seconds: the next does this again."""
        content = None
        if found is not None:
            del self.model, self.measuring, self.buckets
            gc.collect()
            give_back_free_memory()
            lift_cap()  # for the tokenizer, which has the memory again that it had before the cap
            texts = self.store.texts.of_job(self.job.id)
            content = reporting.attempted(lambda: reporting.in_words(found, self.model_folder, texts), self._say)
        self._say("evaluated", verdict.sentence)
        self.store.jobs.succeed(
            self.job.id,
            adapter=row,
            publish=verdict.outcome is Outcome.LEARNED,
            report=reporting.report(verdict, found, content),
            now=_now(),
        )
        self.store.step_log.compact(self.job.id)
        shutil.rmtree(self.folder.start(self.job.id), ignore_errors=True)
        shutil.rmtree(self.folder.run(self.job.id), ignore_errors=True)

    def _save(self, theta: Adapter | FullWeights, identity: str) -> None:
        folder = self.folder.adapter(identity)
        if isinstance(theta, FullWeights):
            save_full(self.model_folder, theta, folder, created_at=_now())
            return
        theta.metadata = {"job": self.job.id, "base_weights_sha256": self.model_folder.manifest.weights_sha256}
        theta.save(folder, is_mlm=self.model_folder.manifest.is_mlm)

    def _say(self, kind: str, message: str) -> None:
        self.store.jobs.add_event(self.job.id, kind=kind, message=message, now=_now())


def _now() -> datetime:
    return datetime.now(UTC)
