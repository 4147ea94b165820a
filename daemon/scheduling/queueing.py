"""The queue: jobs that the owner requests, and jobs on new text when there is enough of it."""

import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from pocketllm.daemon.errors import ModelNotReady, NothingToLearn
from pocketllm.daemon.scheduling.night import Ahead
from pocketllm.daemon.scheduling.planning import JobRequest, Planned, with_request
from pocketllm.daemon.settings import Settings, TrainingSettings
from pocketllm.engine.errors import EngineError, ModelFileError
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import CANDIDATE, Job, Requester

log = logging.getLogger(__name__)

#: This share of `training.new_words` is enough if the oldest of them have waited for so long.
ENOUGH_SHARE, _ENOUGH_AFTER = 0.4, timedelta(days=7)
#: A candidate is judged again in another night than before.
_NEXT_LOOK_AFTER = timedelta(hours=12)
#: Plans a job on the configured model. Raises EngineError where that is not possible.
Planner = Callable[[TrainingSettings, Ahead], Planned]


class JobQueue:
    """Plans jobs and queues them."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        model_problem: Callable[[], str | None],
        planner: Planner,
        usual_night: Callable[[], float],
    ) -> None:
        """model_problem: returns why the model cannot be used; None when it is ready. usual_night: seconds."""
        self.settings, self._store = settings, store
        self._model_problem, self._planner, self._usual_night = model_problem, planner, usual_night

    def plan(self, requested: JobRequest) -> Planned:
        """Plan a requested job.

        Raises ModelNotReady; DoesNotFit, naming the sufficient memory; or BadRequest if it cannot be trained.
        """
        if problem := self._model_problem():
            raise ModelNotReady(problem)
        first = self._store.adapters.serving(self.settings.model) is None
        ahead = Ahead(words=self._store.texts.counts().new_words, seconds=self._usual_night(), first=first)
        try:
            return self._planner(with_request(self.settings.training, requested), ahead)
        except ModelFileError as error:
            raise ModelNotReady(str(error)) from error

    def request(
        self,
        requested: JobRequest,
        *,
        seed: int | None,
        immediate: bool,
        now: datetime,
        tuning: dict[str, Any] | None = None,
        texts: Sequence[NewText] | None = None,
        start_from: str | None = None,
        request_key: str | None = None,
    ) -> Job:
        """Queue a job for the owner, once for each key; where nothing particular is requested, an open job on new text
        proceeds instead. Raises NothingToLearn, and what `plan` raises.
        """
        if texts is None and self._store.texts.counts().texts == 0:
            raise NothingToLearn
        more: dict[str, Any] = {"tuning": tuning, "start_from": start_from, "immediate": immediate}
        job = self._new_job(Requester.OWNER, self.plan(requested), now, seed, **more)
        proceed = (requested, seed, tuning) == (JobRequest(), None, None)
        return self._store.jobs.add(job, texts=texts, proceed=proceed, request_key=request_key)

    def add_if_due(self, failed: Job | None, now: datetime) -> Job | None:
        """Queue a job where there is enough new text beside a failed job's, or the night has ended the last one.

        First a candidate that waits is judged again: it takes minutes, and a learning job trains on the evidence.
        """
        if self._model_problem() is not None:
            return None
        if self.look_is_due(now):
            return self.add(now, method=CANDIDATE, start_from=CANDIDATE)
        due = self.enough(now, beside=failed.id if failed else "")
        if not due and not failed:
            due = self._store.jobs.to_follow(self._new_job(Requester.THRESHOLD, None, now)) is not None
        return self.add(now) if due else None

    def look_is_due(self, now: datetime) -> bool:
        """Whether a candidate waits for evidence, and some has come in since it was judged in an earlier night."""
        last = self._store.jobs.last_look() if self.settings.training.mode == "lora" else None
        if last is None or last.finished_at is None or now - last.finished_at < _NEXT_LOOK_AFTER:
            return False
        return self._store.texts.counts(beside=last.id).new_words > 0

    def enough(self, now: datetime, *, beside: str = "") -> bool:
        """Whether there is enough new text for a job in the texts that this job does not have."""
        counts, enough = self._store.texts.counts, self.settings.training.new_words
        words = counts(beside=beside).new_words
        if not enough * ENOUGH_SHARE <= words < enough:
            return words >= enough
        return counts(beside=beside, until=now - _ENOUGH_AFTER).new_words > 0

    def add(self, now: datetime, request_key: str | None = None, **more: Any) -> Job:
        """Queue a job on new text with the default settings, once for each key. more: other columns."""
        try:
            planned: Planned | None = self.plan(JobRequest())
        except (ModelNotReady, EngineError):  # it is left to the worker to say why
            planned = None
        job = self._store.jobs.add(self._new_job(Requester.THRESHOLD, planned, now, **more), request_key=request_key)
        log.info("job %s queued on new text", job.id)
        return job

    def _new_job(
        self, by: Requester, planned: Planned | None, now: datetime, seed: int | None = None, **more: Any
    ) -> Job:
        """A job, by default with the default settings. more: other columns."""
        training = planned.training if planned else self.settings.training
        return Job(
            requested_by=by,
            model=self.settings.model,
            mode=training.mode,
            seed=secrets.randbits(31) if seed is None else seed,
            settings=training.model_dump(mode="json"),
            total_steps=None if training.steps == "auto" or "method" in more else training.steps,  # judging has none
            predicted_bytes=planned.prediction.peak_bytes if planned else None,
            created_at=now,
            **more,
        )
