"""The engine's exceptions. Each message says what to do next.

MezoError
├── ModelFileError
├── ModelNotFound
├── ModelExists
├── UnsupportedModel
├── NotEnoughSpace
├── AdapterError
├── CannotExport
├── BadRequest
├── DoesNotFit
└── TrainingDiverged
"""


class MezoError(Exception):
    """The engine could not do what was requested."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class ModelFileError(MezoError):
    """The model file is truncated, foreign, corrupt or pickled; get a whole safetensors or GGUF file."""


class ModelNotFound(MezoError):
    """There is no such model; run `pocketllm models add` to import one."""


class ModelExists(MezoError):
    """A model of this name exists already; choose another name, or replace it."""


class UnsupportedModel(MezoError):
    """This kind of model cannot be used here; choose a causal language model that transformers can build."""


class NotEnoughSpace(MezoError):
    """The disk has too little free space; free some, or keep the data folder elsewhere."""


class AdapterError(MezoError):
    """The adapter folder is broken or belongs to another model; train a new adapter."""


class CannotExport(MezoError):
    """A GGUF LoRA file cannot hold this adapter; export its folder, which PEFT loads."""


class BadRequest(MezoError):
    """The request cannot be carried out as it stands; correct the named field and send it again."""


class DoesNotFit(MezoError):
    """The job needs more memory than it may take; raise training.memory_bytes, or choose a smaller model."""


class TrainingDiverged(MezoError):
    """The loss is not finite; start again with a smaller step size."""
