"""The daemon's exceptions. Each message says what to do next."""


class DaemonError(Exception):
    """The daemon could not carry out the request."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class BadSettings(DaemonError):
    """A setting has an invalid value."""


class InvalidValue(DaemonError):
    """A value is invalid."""

    def __init__(self, message: str | None = None, param: str | None = None) -> None:
        """param: the field that has it."""
        super().__init__(message)
        self.param = param


class TooLarge(InvalidValue):
    """The request is larger than the setting max_body_bytes allows. Send it in parts."""


class NothingToLearn(DaemonError):
    """There is no text to train on. Add some with `pocketllm add` or POST /texts."""


class ModelNotReady(DaemonError):
    """The model is not imported. Run `pocketllm models add`."""


class GeneratorBusy(DaemonError):
    """Too many requests are waiting for an answer. Try again in a few seconds."""


class GeneratorFailed(DaemonError):
    """The generator process died, perhaps because memory ran out. Try again with less text or a lower max_tokens."""


class ChildFailed(DaemonError):
    """A program cannot be run, failed, or did not answer in time or as expected."""


class GenerationTooLarge(DaemonError):
    """There is not enough memory for this request. Shorten the prompt, or lower max_tokens."""


class ClientGone(DaemonError):
    """The client went away before its answer was complete."""
