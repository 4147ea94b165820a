"""The engine's exceptions. Each message says what to do next."""


class EngineError(Exception):
    """The engine could not do what was requested."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class ModelFileError(EngineError):
    """There is no such model, or it is incomplete or of another format. Get a complete safetensors or GGUF file."""


class ModelExists(EngineError):
    """A model with this name already exists. Choose another name, or replace it."""


class UnsupportedModel(EngineError):
    """This kind of model is not supported. Choose a causal language model that transformers can build."""


class AdapterError(EngineError):
    """The adapter folder is broken or belongs to another model. Train a new adapter."""


class CannotExport(EngineError):
    """A GGUF LoRA file cannot hold this adapter. Export its folder, which PEFT loads."""


class BadRequest(EngineError):
    """The request is invalid. Correct the named field and send it again."""


class DoesNotFit(EngineError):
    """The job needs more memory than it may use. Raise training.memory_bytes, or choose a smaller model."""


class TrainingDiverged(EngineError):
    """The loss is not finite. Start again with a smaller step size."""
