"""One job's training run: joins the stored texts, the model, the method and the evaluation."""

import gc
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from math import ceil

import torch

from pocketllm.backprop.gradients import PassSize
from pocketllm.backprop.method import Exact, ExactPlan, adapted_paths, fresh_adapter, rate_for
from pocketllm.daemon.adapter_files import digest_of
from pocketllm.daemon.evaluation import report as reporting
from pocketllm.daemon.evaluation.contamination import repeated
from pocketllm.daemon.evaluation.held_out import HeldOutEvaluation, block_keys, ordinary_text
from pocketllm.daemon.evaluation.promotion import EvaluationVerdict, evaluate
from pocketllm.daemon.paths import DataFolder, adapter_id_of
from pocketllm.daemon.process_memory import cap_anonymous_memory, give_back_free_memory, lift_cap
from pocketllm.daemon.scheduling import night
from pocketllm.daemon.scheduling.planning import method_message, plan_job
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training import rehearsal
from pocketllm.daemon.training.checkpoints import StoredRun
from pocketllm.daemon.training.data_split import HeldOut, blocks_between, example_of, for_first_verdict, with_replay
from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.daemon.training.trainer import Run, train
from pocketllm.daemon.training.validation_split import split, validation_interval
from pocketllm.engine.data.batches import Batch, Batches, shuffled
from pocketllm.engine.data.examples import encode
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.lora_folder import BASE_SHA256, base_sha256, read_config
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.formats.tokenizer import Tokenizer, eos_id, lean_tokenizer, start_ids, stop_ids_of
from pocketllm.engine.generate.model_report import ModelReport, sample
from pocketllm.engine.method import Method
from pocketllm.engine.params.full import FullWeights, save_full
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.planning.memory_model import MIN_ROWS, JobPlan, exact_passes, points_of, samples_at_once
from pocketllm.engine.planning.shapes import read_shapes
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.activation_pca import PASSES, adapter_along_activations
from pocketllm.mezo.method import MeZO, MeZOPlan
from pocketllm.storage.repositories.step_log import BASE_STEP
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, Job, Outcome, Text
from pocketllm.storage.tables import Adapter as AdapterRow

#: Blocks of the job's text for the activation PCA.
PCA_BLOCKS = 32


class TrainingRun:
    """One job's run. Raises EngineError for errors that a retry would not fix."""

    def __init__(self, folder: DataFolder, store: Store, job: Job, seconds: float) -> None:
        """seconds: what is probably left of the night."""
        self.folder, self.store, self.job = folder, store, job
        self._ends_at, self._evaluation_seconds = time.monotonic() + seconds, 0.0
        self.settings = TrainingSettings.model_validate(job.settings)
        self.model_folder = self._start_model()
        self.plan = self._plan()
        self.dtype: torch.dtype = getattr(torch, self.plan.compute_dtype)
        self.model = LanguageModel(self.model_folder, dtype=self.dtype, release_pages=True)
        # The tokenizer takes as much memory as a step, and is dropped after use. It runs before the memory cap, since
        # it aborts the process where it cannot allocate.
        tokenizer = lean_tokenizer(self.model_folder)
        self.eos, self.start = eos_id(tokenizer), start_ids(tokenizer)
        self.buckets, (held_out, owners), old_blocks = self._examples(tokenizer)
        is_mlm = self.model_folder.manifest.is_mlm
        self.evaluation = HeldOutEvaluation(
            folder=folder,
            store=store,
            model=self.model,
            held_out=held_out,
            texts=owners,
            old_blocks=old_blocks,
            repeats=repeated(self.buckets, held_out, is_mlm=is_mlm),
            ordinary=None if old_blocks else ordinary_text(tokenizer, is_mlm=is_mlm),
            dtype=self.dtype,
            micro_batch=self.plan.micro_batch,
        )
        self.rehearsal_prompts = rehearsal.prompts(tokenizer)
        self.stop_ids = stop_ids_of(self.model.network.config.eos_token_id, tokenizer)
        del tokenizer
        give_back_free_memory()
        cap_anonymous_memory(self.settings.memory_bytes)

    @torch.no_grad()
    def run(self) -> None:
        """Start or resume the job, and finish it. Its success is stored before its report is made."""
        trainable, stopping = self._learn()
        verdict = self._finish(trainable, stopping)
        self._report(trainable, verdict)

    def use_less_memory(self) -> bool:
        """From the next start on, keep no activations, or halve the micro-batch; returns False if nothing is left."""
        before, fewest = self.plan.micro_batch, MIN_ROWS[self.plan.method]
        if self.plan.kept_layers:  # what the plan filled the memory with
            self.plan = replace(self.plan, kept_layers=0)
            how = "with activations kept; continuing without"
        elif before > fewest:
            self.plan = replace(self.plan, micro_batch=max(fewest, before // 4 * 2))
            how = f"with {before} rows at once; continuing with {self.plan.micro_batch}"
        else:
            return False
        self._say("reduced", f"memory ran out {how}")
        self.store.jobs.update(self.job.id, plan=asdict(self.plan))
        return True

    def _learn(self) -> tuple[Adapter | FullWeights, EarlyStopping]:
        """Train; returns the parameters, and early stopping, which says what step they are of."""
        if self.job.judges:  # it makes no step: the adapter is evaluated as if one had made it of the serving one
            again, added = self.job.looks_again, self.folder.added / self.job.id
            folder = self.folder.adapter(str(self.job.parent)) if again else added
            if base_sha256(folder) not in (None, self.model_folder.manifest.weights_sha256):
                raise BadRequest(f"{folder.name} was trained on other weights of {self.job.model}. Import those again.")
            adapter, self._worth = load_adapter(folder), 0
            for step in (0, 1):
                self._measure(step, adapter)
            return adapter, EarlyStopping(best_step=1)
        samples = self._samples()
        trainable = self._start()
        self.model.set_parameters(trainable)
        give_back_free_memory()  # of the activation PCA
        self._measure(0, trainable)  # again, where a held-out text was deleted meanwhile
        training, validation = split(self.buckets)
        new = self.plan.batch - self._rehearsed  # blocks of text in a step
        blocks = sum(ceil(len(bucket) / new) for bucket in training)
        self._worth = self.job.total_steps or 1
        if self.job.fits_the_night:
            self._worth = max(1, night.worth(blocks, self.plan.method) - self.job.chain_steps)
        method, points = self._method(trainable, samples, sum(bucket.inputs.numel() for bucket in training))
        stopping = train(
            method,
            StoredRun(self.store, self.job.id, self.folder.run(self.job.id)),
            Run(
                steps=self._worth,
                batch=shuffled(training, size=new, seed=self.job.seed),
                remaining=self._remaining,
                validation_loss=lambda: self.model.mean_loss(validation, self.plan.micro_batch),
                validated_on=hashlib.sha256(" ".join(block_keys(validation)).encode()).hexdigest()[:16],
                check_every=validation_interval(training, validation, batch=self.plan.batch, points=points),
                measure=lambda step: self._measure(step, trainable),
                measure_every=self.settings.measure_every,
                clock=time.monotonic,
            ),
        )
        return trainable, stopping

    def _remaining(self, step: int) -> float:
        """The remaining part of the run at a step; 1 for the first ones, whose time decides how many there are."""
        first = night.FIRST_STEPS if self.job.fits_the_night else 0
        if step > first and self.job.total_steps is None:
            self._fit()
        return night.remaining(step, self.job.total_steps, measured=first)

    def _fit(self) -> None:
        """Fix the number of steps, by the time of the first ones, so that a resumed run computes the same."""
        seconds = [row.seconds for row in self.store.step_log.steps(self.job.id)[1:]]
        a_step, left = sum(seconds) / len(seconds), self._ends_at - time.monotonic() - 2 * self._evaluation_seconds
        most = night.most_steps(self.plan.method, first=self.job.compared_with == BASE)
        total = min(self._worth, most, night.fitting(left, a_step, made=night.FIRST_STEPS))
        message = f"{total} steps of {a_step:.2g} s; the text is worth {self._worth}"
        self._say("planned", f"{message}, and {max(0, left) / 3600:.1f} h are probably left of the night")
        self.job = self.store.jobs.update(self.job.id, total_steps=total)

    def _samples(self) -> Batch | None:
        """Samples of the base model for rehearsal; None where there is none."""
        if not self._rehearsed:
            return None
        return rehearsal.rehearsal_blocks(
            self.model,
            self.rehearsal_prompts,
            count=self._rehearsed * self.plan.steps,
            on_progress=lambda done, count: self._say(
                "preparing", f"drew {done} of {count} samples from the base model (once per model)"
            ),
            at_once=samples_at_once(read_shapes(self.model_folder), rehearsal.AT_ONCE, self.settings.memory_bytes),
        )

    @property
    def _rehearsed(self) -> int:
        """The number of rehearsal blocks in a step: only exact steps on a causal model have some."""
        if self.plan.method != "exact" or self.model_folder.manifest.is_mlm:
            return 0
        return rehearsal.blocks_of_step(self.settings.rehearsal, self.plan.batch)

    def _method(self, trainable: Adapter | FullWeights, samples: Batch | None, tokens: int) -> tuple[Method, float]:
        """The job's method, and the cost of its step in forward passes. tokens: of the training text."""
        if self.plan.method == "exact":
            assert isinstance(trainable, Adapter)
            # A chain's rate anneals as that of a single long job does.
            share = night.chain_share(self.job.chain_steps, self.job.chain_steps + self._worth)
            count, rate = self._rehearsed, rate_for(self.settings.rate, tokens) * share
            exact = Exact(
                self.model,
                trainable,
                ExactPlan(seed=self.job.seed, rate=rate, samples_weight=count / self.plan.batch),
                pass_size(self.plan),
                to_start=lambda: self._to_start(trainable),
                samples=None if samples is None else shuffled((samples,), size=count, seed=self.job.seed),
            )
            return exact, exact_passes(read_shapes(self.model_folder), self.plan)
        mezo = MeZO(
            lambda points, batch: self.model.losses_at(points, batch, self.plan.micro_batch),
            trainable,
            MeZOPlan(
                seed=self.job.seed,
                epsilon=self.settings.epsilon,
                step_size=self.settings.step_size,
                probes=self.plan.probes,
                noise=self.settings.noise,
            ),
            to_start=lambda: self._to_start(trainable),
        )
        return mezo, points_of(self.plan.probes)

    def _measure(self, step: int, trainable: Adapter | FullWeights) -> None:
        found = self.store.step_log.evaluation(self.job.id, step)
        if found is None or not self.evaluation.covers(found):
            began = time.monotonic()
            self.evaluation.evaluate(self.job, step, trainable)
            self._evaluation_seconds = max(self._evaluation_seconds, time.monotonic() - began)

    def _start_model(self) -> ModelFolder:
        """The weights to start from: the base model's, or those of an earlier full-parameter job."""
        if self.settings.mode == "full" and self.job.parent:
            return open_model_folder(self.folder.adapter(self.job.parent))
        return open_model_folder(self.folder.models / self.job.model)

    def _plan(self) -> JobPlan:
        """The job's plan, fixed at its first start, so that a resumed run computes the same."""
        if self.job.plan is not None:
            known = {field.name for field in fields(JobPlan)}  # another version's plan may have more
            plan = {name: value for name, value in self.job.plan.items() if name in known}
            return JobPlan(**{**plan, "targets": tuple(plan["targets"])})
        settings, parent = self.settings, self.job.parent
        if (
            parent
            and not self.job.judges
            and settings.mode == "lora"
            and (rank := read_config(self.folder.adapter(parent)).rank) != settings.rank
        ):
            self._say("chosen", f"rank {rank}, not {settings.rank}, since it continues {parent}")
            settings = settings.model_copy(update={"rank": rank})
        ahead = night.Ahead(
            words=self.job.words or 0,
            seconds=max(1.0, self._ends_at - time.monotonic()),
            first=self.job.compared_with == BASE,
        )
        planned = plan_job(self.model_folder, settings, ahead)
        if not self.job.judges:
            self._say("chosen", method_message(planned))
        for sentence in planned.reductions:
            self._say("reduced", sentence)
        settled, predicted = planned.plan, planned.prediction.peak_bytes
        method = self.job.method if self.job.judges else settled.method
        self.store.jobs.update(self.job.id, plan=asdict(settled), method=method, predicted_bytes=predicted)
        return settled

    def _examples(self, tokenizer: Tokenizer) -> tuple[Batches, HeldOut, tuple[int, ...]]:
        """Training blocks, held-out blocks, and how many of the latter, at the end, belong to each part of old text."""

        def encoded(texts: Sequence[Text], *, apart: bool = False) -> Batches:
            return encode(
                [example_of(text, apart=apart and not self.model_folder.manifest.is_mlm) for text in texts],
                tokenizer,
                length=self.plan.block_tokens,
                eos=self.eos,
                start=self.start,
                is_mlm=self.model_folder.manifest.is_mlm,
                seed=self.job.seed,
            )

        texts = self.store.texts.of_job(self.job.id)
        if self.job.judges and not any(text.held_out for text in texts):
            raise BadRequest("No text on this device is held out, so no adapter can be judged. Add more text first.")
        return with_replay(for_first_verdict(self.job, self.plan.method, texts), encoded)

    def _start(self) -> Adapter | FullWeights:
        """The initial parameters, the same at each start: the first start saves a new adapter."""
        if self.settings.mode == "full":
            return self.model.full()
        folder = self.folder.start(self.job.id)
        if folder.exists():
            return load_adapter(folder)
        adapter = self._of_parent() or self._fresh()
        adapter.save(folder)
        return adapter

    def _to_start(self, trainable: Adapter | FullWeights) -> None:
        """Reset the parameters, in place, to what `_start` returned."""
        if isinstance(trainable, FullWeights):
            trainable.reload(self.model_folder.weights)
            return
        start = load_adapter(self.folder.start(self.job.id))
        for path in trainable.a:
            trainable.a[path].copy_(start.a[path])
            trainable.b[path].copy_(start.b[path])

    def _of_parent(self) -> Adapter | None:
        """The parent's adapter, if this job can continue it."""
        if self.job.parent is None:
            return None
        adapter = load_adapter(folder := self.folder.adapter(self.job.parent))
        if base_sha256(folder) not in (None, self.model_folder.manifest.weights_sha256):
            problem = f"was trained on other weights of {self.job.model}"
        elif self.plan.method == "exact" and list(adapter.a) != adapted_paths(self.model):
            problem = "adapts other linear maps than exact does"
        else:
            return adapter
        self._say("began anew", f"{self.job.parent} {problem}")
        self.job = self.store.jobs.update(self.job.id, parent=None)
        return None

    def _fresh(self) -> Adapter:
        if self.plan.method == "exact":
            return fresh_adapter(self.model, rank=self.settings.rank, seed=self.job.seed)
        return adapter_along_activations(
            self.model,
            blocks_between(self.buckets, 0, PCA_BLOCKS),
            targets=self.settings.targets,
            rank=self.settings.rank,
            seed=self.job.seed,
            micro_batch=self.plan.micro_batch,
            on_pass=lambda number: self._say("preparing", f"activation PCA: pass {number} of {PASSES}"),
        )

    def _finish(self, trainable: Adapter | FullWeights, stopping: EarlyStopping) -> EvaluationVerdict:
        """Evaluate and save the result, and end the job. A worker that is killed before repeats this in seconds."""
        before = self.store.step_log.evaluation(self.job.id, 0)
        now = self.store.step_log.evaluation(self.job.id, stopping.best_step)
        assert before is not None and now is not None, "train() measures at both ends"
        base = self.store.step_log.evaluation(self.job.id, BASE_STEP)
        verdict = evaluate(
            self.evaluation.paired(before),
            self.evaluation.paired(now),
            self.evaluation.weights,
            texts=self.evaluation.texts,
            old_blocks=self.evaluation.old_blocks,
            base=None if base is None else self.evaluation.paired(base),
            repeats=self.evaluation.repeats,
            ordinary=self.evaluation.compare_ordinary(trainable),
            link=self.job.link,
            again=self.job.looks_again,
        )
        identity = str(self.job.parent) if self.job.looks_again else adapter_id_of(self.job.id)
        if not self.job.looks_again:
            self._save(trainable, identity)
        row = AdapterRow(
            id=identity,
            sha256=digest_of(self.folder.adapter(identity)),
            job_id=self.job.id,
            model=self.job.model,
            mode=self.settings.mode,
            parent=self.job.parent,
            outcome=verdict.outcome,
            held_out_loss_before=before.loss,
            held_out_loss_now=now.loss,
            created_at=datetime.now(UTC),
        )
        self._say("evaluated", verdict.sentence)
        made = self.job.total_steps or self._worth
        ended_early, outcome = stopping.ended_early or not self.job.fits_the_night, verdict.outcome
        self.store.jobs.succeed(
            self.job.id,
            adapter=row,
            publish=verdict.outcome is Outcome.LEARNED,
            report=reporting.report(self.job.id, verdict),
            chain_steps=self.job.chain_steps + made,
            unfinished=night.goes_on(self._worth, made, ended_early=ended_early, outcome=outcome),
            now=datetime.now(UTC),
        )
        return verdict

    def _report(self, trainable: Adapter | FullWeights, verdict: EvaluationVerdict) -> None:
        """Complete the job's report. If the worker is killed meanwhile, the verdict is all of it."""
        found = reporting.attempt(lambda: self._compared(trainable), self._say)
        if found is None:
            return
        del self.model, self.evaluation, self.buckets
        gc.collect()
        give_back_free_memory()
        lift_cap()  # for the tokenizer, as at the start
        texts = self.store.texts.of_job(self.job.id)
        content = reporting.attempt(lambda: reporting.report_content(found, self.model_folder, texts), self._say)
        self.store.reports.replace(reporting.report(self.job.id, verdict, found, content))

    def _compared(self, trainable: Adapter | FullWeights) -> ModelReport:
        give_back_free_memory()
        is_mlm, base = self.model_folder.manifest.is_mlm, self.folder.models / self.job.model
        places = sample(
            self.buckets,
            self.evaluation.held_out,
            eos=self.eos,
            start=self.start,
            stop_ids=self.stop_ids,
            is_mlm=is_mlm,
        )
        return reporting.model_report(self.model, trainable, base, places, self.plan.micro_batch)

    def _save(self, trainable: Adapter | FullWeights, identity: str) -> None:
        folder = self.folder.adapter(identity)
        if isinstance(trainable, FullWeights):
            save_full(self.model_folder, trainable, folder, created_at=datetime.now(UTC))
            return
        trainable.metadata = {"job": self.job.id, BASE_SHA256: self.model_folder.manifest.weights_sha256}
        trainable.save(folder, is_mlm=self.model_folder.manifest.is_mlm)

    def _say(self, kind: str, message: str) -> None:
        self.store.jobs.add_event(self.job.id, kind=kind, message=message, now=datetime.now(UTC))


def pass_size(plan: JobPlan) -> PassSize:
    """A plan's sizes in positions: short blocks, as labelled sentences are, go through the layers in larger numbers."""
    return PassSize(
        stored=plan.pass_blocks * plan.block_tokens,
        micro_batch=plan.micro_batch * plan.block_tokens,
        kept=plan.kept_layers,
    )
