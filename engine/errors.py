"""The engine's exceptions. Each message says what to do next."""


class MezoError(Exception):
    """The engine could not do what was requested."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class ModelFileError(MezoError):
    """There is no such model, or it is incomplete or of another format. Get a complete safetensors or GGUF file."""


class ModelExists(MezoError):
    """A model with this name already exists. Choose another name, or replace it."""


class UnsupportedModel(MezoError):
    """This kind of model is not supported. Choose a causal language model that transformers can build."""


class AdapterError(MezoError):
    """The adapter folder is broken or belongs to another model. Train a new adapter."""


class CannotExport(MezoError):
    """A GGUF LoRA file cannot hold this adapter. Export its folder, which PEFT loads."""


class BadRequest(MezoError):
    """The request is invalid. Correct the named field and send it again."""


class DoesNotFit(MezoError):
    """The job needs more memory than it may use. Raise training.memory_bytes, or choose a smaller model."""


class TrainingDiverged(MezoError):
    """The loss is not finite. Start again with a smaller step size."""
