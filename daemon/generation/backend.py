"""Which program decodes: transformers, which is always there, or llama.cpp, where it and a GGUF file are."""

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pocketllm.engine.formats.gguf_origin import OriginChanged, find_origin
from pocketllm.engine.formats.model_folder import ModelFolder

#: The setting `backend`; auto is llama.cpp where that is available.
BackendPreference = Literal["auto", "transformers", "llamacpp"]
#: llama.cpp's own server, as Termux and Debian have it, and the Python package that holds the same one.
EXECUTABLE, PACKAGE = "llama-server", "xllamacpp"


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """What it takes to decode with llama.cpp."""

    program: str  #: the path of an executable, or PACKAGE
    base: Path  #: the model's GGUF file


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What decodes, and if it is not llama.cpp, why not."""

    name: Literal["transformers", "llamacpp"]
    reason: str | None = None


def find_llamacpp(model_folder: ModelFolder, preference: BackendPreference) -> LlamaCpp | Backend:
    """What to decode this model with through llama.cpp; else the other backend, with the reason."""
    if preference == "transformers":
        return Backend(name="transformers", reason="the setting backend says so")
    try:
        base = find_origin(model_folder.manifest)
    except OriginChanged as changed:
        return Backend(name="transformers", reason=str(changed))
    program = shutil.which(EXECUTABLE) or (PACKAGE if find_spec(PACKAGE) else None)
    if program is None:
        return Backend(
            name="transformers",
            reason=f"there is no llama.cpp here: neither {EXECUTABLE} (`pkg install llama-cpp` in Termux) nor "
            f"{PACKAGE} (`pip install 'pocketllm[llamacpp]'`)",
        )
    return LlamaCpp(program=program, base=base)


def expected_backend(model_folder: ModelFolder, preference: BackendPreference) -> Backend:
    """What is going to decode this model, as far as can be told without trying."""
    found = find_llamacpp(model_folder, preference)
    return Backend(name="llamacpp") if isinstance(found, LlamaCpp) else found
