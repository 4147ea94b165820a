"""The daemon's exceptions. Each message says what to do next.

DaemonError
├── BadSettings
├── AlreadyRunning
├── PortInUse
├── NothingToLearn
├── ModelNotReady
├── GeneratorBusy
├── GeneratorFailed
├── CalibrationFailed
├── CannotReplay
├── ExportFailed
├── BackupUnusable
├── GenerationTooLarge
└── BadGeneration
"""


class DaemonError(Exception):
    """The daemon could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class BadSettings(DaemonError):
    """A setting has a value that cannot be used."""


class AlreadyRunning(DaemonError):
    """Another daemon runs on this data folder. Stop it first, or choose another folder with --data-dir."""


class PortInUse(DaemonError):
    """The port is in use. Choose another with --port, or 0 for any free one."""


class NothingToLearn(DaemonError):
    """There is no text to learn from. Add some: `pocketllm add` does, and POST /texts."""


class ModelNotReady(DaemonError):
    """The model is not imported. Run `pocketllm models add`."""


class GeneratorBusy(DaemonError):
    """Too many requests are waiting for an answer. Try again in a few seconds."""


class GeneratorFailed(DaemonError):
    """The process that answers has died, perhaps for want of memory. Try again, with a lower max_tokens."""


class CalibrationFailed(DaemonError):
    """The model could not be measured on this device. Run `pocketllm models calibrate` to try again."""


class CannotReplay(DaemonError):
    """The job's learning cannot be done again. Choose a job that has succeeded."""


class ExportFailed(DaemonError):
    """The process that writes the file has failed. Try again."""


class BackupUnusable(DaemonError):
    """The backup cannot be made or used."""


class GenerationTooLarge(DaemonError):
    """There is not enough memory for this request. Shorten the prompt, or lower max_tokens."""


class BadGeneration(DaemonError):
    """The request for text cannot be carried out as it stands."""
