"""Chooses the decoder: llama.cpp if it is installed and the model has a GGUF file, else transformers."""

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.gguf_origin import find_origin
from pocketllm.engine.formats.model_folder import ModelFolder

#: The setting `backend`; auto is llama.cpp if available.
BackendPreference = Literal["auto", "transformers", "llamacpp"]
#: llama.cpp's server, as in Termux and Debian, and a Python package with the same server.
EXECUTABLE, PACKAGE = "llama-server", "xllamacpp"


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """llama.cpp for one model."""

    program: str  #: the path of an executable, or PACKAGE
    base: Path  #: the model's GGUF file


@dataclass(frozen=True)
class Backend:
    """The decoder: llama.cpp, or transformers for a reason."""

    reason: str | None = None

    @property
    def name(self) -> Literal["transformers", "llamacpp"]:
        """As in the setting `backend`."""
        return "llamacpp" if self.reason is None else "transformers"

    @property
    def refusal_of_json(self) -> str:
        """Why it does not hold an answer to a JSON schema, where it is not llama.cpp."""
        return f"Answers in JSON require llama.cpp, but {self.reason}."


def find_llamacpp(model_folder: ModelFolder, preference: BackendPreference) -> LlamaCpp | Backend:
    """llama.cpp for this model; else the other backend, with the reason."""
    if preference == "transformers":
        return Backend("the setting backend is transformers")
    try:
        base = find_origin(model_folder.manifest)
    except ModelFileError as changed:
        return Backend(str(changed))
    program = shutil.which(EXECUTABLE) or (PACKAGE if find_spec(PACKAGE) else None)
    if program is None:
        return Backend(
            f"llama.cpp is not installed: neither {EXECUTABLE} (`pkg install llama-cpp` in Termux) nor "
            f"{PACKAGE} (`pip install 'pocketllm[llamacpp]'`)"
        )
    return LlamaCpp(program=program, base=base)


def expected_backend(model_folder: ModelFolder, preference: BackendPreference) -> Backend:
    """The expected decoder of this model, without trying it."""
    found = find_llamacpp(model_folder, preference)
    return Backend() if isinstance(found, LlamaCpp) else found
