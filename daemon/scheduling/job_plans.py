"""What a job would take on the model in use, by the settings and by what is asked for."""

from collections.abc import Callable

from pocketllm.daemon.errors import ModelNotReady
from pocketllm.daemon.scheduling.planning import JobRequest, Planned, with_wish
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.errors import MezoError, ModelFileError, ModelNotFound

#: Plans a job of so many steps on the configured model; raises MezoError when there can be none.
Planner = Callable[[TrainingSettings, int], Planned]


class Plans:
    """Plans of jobs that are not there yet."""

    def __init__(
        self, settings: TrainingSettings, *, model_problem: Callable[[], str | None], planner: Planner
    ) -> None:
        """model_problem says what keeps the model from being used; None when it is ready."""
        self._settings, self._model_problem, self._planner = settings, model_problem, planner

    def plan(self, wish: JobRequest) -> Planned:
        """What a job that is asked for like this would take.

        Raises ModelNotReady; DoesNotFit, naming the memory that would do; or BadRequest for what cannot be trained.
        """
        if problem := self._model_problem():
            raise ModelNotReady(problem)
        training = with_wish(self._settings, wish)
        try:
            return self._planner(training, training.steps if wish.steps is None else wish.steps)
        except (ModelFileError, ModelNotFound) as error:
            raise ModelNotReady(str(error)) from error

    def predicted_bytes(self) -> int | None:
        """The peak memory of a job by the settings; None when there can be none, which the worker then says."""
        try:
            return self.plan(JobRequest()).prediction.peak_bytes
        except (ModelNotReady, MezoError):
            return None
