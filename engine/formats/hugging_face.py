"""A Hugging Face folder as a source of weights, and downloads from the hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.safetensors_io import TensorEntry, read_header, read_rows
from pocketllm.engine.formats.tensor_specs import Need, first_line, library_error, refuse_mismatch, rows_per_chunk

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Pickle files, which run arbitrary code when they are opened.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
#: transformers can build a tokenizer from any of these.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model", "README.md"]
#: Subfolders, and a second copy of the weights in Mistral's own layout.
_NOT_FROM_HUB = ["*/*", "consolidated*"]
_FRONT_MATTER_BYTES = 65536


class HuggingFaceSource:
    """A folder with config.json, safetensors and a tokenizer. Raises ModelFileError when one is absent or broken,
    and UnsupportedModel when the weights are quantized."""

    def __init__(self, folder: Path, origin: str) -> None:
        """origin: where the model came from, without paths of this machine."""
        self.path, self.origin = folder, origin
        self._settings = _read_json(folder / "config.json")
        if self._settings.get("quantization_config"):
            raise UnsupportedModel(
                f"{folder} holds weights that are quantized for another program. Import the original weights, or "
                "a GGUF file."
            )
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        for file in _weight_files(folder):
            for name, entry in read_header(file).items():
                if name in self._entries:
                    raise ModelFileError(f"{folder} holds tensor {name!r} in two files. Get the folder again.")
                self._entries[name] = (file, entry)
        self.tensor_count = len(self._entries)  #: in the folder
        self._found: dict[str, tuple[Path, TensorEntry]] = {}

    @property
    def license(self) -> str:
        """The licence in README.md's front matter, or "unknown"."""
        try:
            with (self.path / "README.md").open(encoding="utf-8", errors="replace") as file:
                text = file.read(_FRONT_MATTER_BYTES)
        except OSError:
            return "unknown"
        front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
        return found[1] if found else "unknown"

    def config(self) -> PreTrainedConfig:
        """The config as transformers reads it. Raises UnsupportedModel for an unknown type."""
        from transformers import CONFIG_MAPPING, AutoConfig

        model_type = self._settings.get("model_type")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise UnsupportedModel(
                f"{self.path} holds a model of type {model_type!r}, which transformers does not know. Choose another "
                "model; code that comes with a model is never run."
            )
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a setting of the wrong type may fail anywhere
            raise library_error(self.path, "config.json", error) from error
        return config

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files, or convert them when there is no tokenizer.json.

        generation_config.json is copied, too: it names the tokens that end an answer.
        """
        from transformers import AutoTokenizer

        if not any((self.path / name).exists() for name in _VOCABULARIES):
            raise ModelFileError(
                f"{self.path} has no tokenizer. Put the tokenizer.json that belongs to the model beside its weights."
            )
        copied = ["generation_config.json"]
        if (self.path / "tokenizer.json").exists():
            # Not loaded and saved, since another version of transformers may read them differently.
            copied += _TOKENIZER_FILES
        for name in copied:
            if (self.path / name).exists():
                shutil.copyfile(self.path / name, folder / name)
        if "tokenizer.json" in copied:
            return
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            tokenizer.save_pretrained(folder)
        except Exception as error:
            raise library_error(self.path, "The tokenizer", error) from error

    def match(self, model: PreTrainedModel, needs: list[Need]) -> None:
        """Find every need, also without the prefix, which a model saved without its head lacks."""
        self._found = {}
        prefix = f"{model.base_model_prefix}."
        missing, misshapen = [], []
        for need in needs:
            names = [name for name in (need.name, *need.aliases) if name in self._entries]
            names = names or [name for name in [need.name.removeprefix(prefix)] if name in self._entries]
            if not names:
                missing.append(need.name)
                continue
            entry = self._entries[names[0]][1]
            if entry.shape != need.shape:
                misshapen.append(f"{need.name} {entry.shape}, not {need.shape}")
            self._refuse_packed(need, entry)
            self._found[need.name] = self._entries[names[0]]
            for other in names[1:]:
                self._refuse_untied(names[0], other)
        left = self._entries.keys() - {entry.name for _, entry in self._found.values()}
        if missing and left:
            raise UnsupportedModel(
                f"{self.path} has other names for its tensors than transformers has (such as {min(left)} in place of "
                f"{min(missing)}), and is not converted. Choose another model."
            )
        refuse_mismatch(self.path, missing, misshapen)

    def read(self, need: Need) -> Iterator[torch.Tensor]:
        """Yield the tensor's rows in the dtype of the file."""
        return _rows_of(*self._found[need.name])

    def _refuse_packed(self, need: Need, entry: TensorEntry) -> None:
        floats = {"float16", "bfloat16", "float32", "float64"}
        if entry.dtype not in (floats if need.dtype.is_floating_point else {str(need.dtype)[len("torch.") :]}):
            raise UnsupportedModel(
                f"{self.path} holds {need.name} as {entry.dtype}: the weights are quantized. Import the original "
                "weights, or a GGUF file."
            )

    def _refuse_untied(self, first: str, second: str) -> None:
        """Raise ModelFileError unless two tied tensors of the file are equal, since only one is kept."""
        one, other = self._entries[first], self._entries[second]
        same = one[1].shape == other[1].shape and all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(_rows_of(*one), _rows_of(*other), strict=True)
        )
        if not same:
            raise ModelFileError(
                f"{self.path} holds {first} and {second} with different content, but its config.json ties them. Set "
                "tie_word_embeddings to false in config.json and import again."
            )


def fetch(hub_id: str) -> Path:
    """Return the folder of the hub's cache with the model `hub_id` ("org/name"), downloading what is not there.

    Pickled weights are never downloaded. The hub's client shows its own progress on a terminal. Raises
    ModelFileError when `hub_id` is invalid, when the hub has no such model, or when it cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    constants.HF_HUB_DISABLE_XET = True  # its Rust part fails on Termux; of the variable it is too late
    if not _HUB_ID.fullmatch(hub_id) or hub_id.endswith((".gguf", ".safetensors", *PICKLE_SUFFIXES)):
        raise ModelFileError(
            f"There is no file or folder {hub_id}, and it is not a hub id (org/name). Give a GGUF file, a Hugging "
            "Face folder, or the id of a model on the Hugging Face hub."
        )
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_FROM_HUB))
    except RepositoryNotFoundError as error:
        raise ModelFileError(
            f"There is no file or folder {hub_id}, and the Hugging Face hub shows no public model of that name. "
            "Check the spelling; for a gated model, accept its terms there and run `hf auth login`."
        ) from error
    except Exception as error:  # including errors of its HTTP library
        raise ModelFileError(
            f"There is no file or folder {hub_id}, and the Hugging Face hub cannot be reached "
            f"({first_line(error)}). Without a network, give a GGUF file or a Hugging Face folder on this device."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the weights; other tensors in them do no harm."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if files := sorted(folder.glob("model-*-of-*.safetensors")) or sorted(folder.glob("*.safetensors")):
        return files
    if any(file.suffix in PICKLE_SUFFIXES for file in folder.iterdir()):
        raise pickled(folder)
    raise ModelFileError(f"{folder} has a config.json but no weights. Put the model's .safetensors files beside it.")


def pickled(path: Path) -> ModelFileError:
    """Return the error for pickled weights at `path`."""
    return ModelFileError(
        f"{path} holds pickled weights, and opening a pickle can run any code. Get the model as safetensors or GGUF."
    )


def _rows_of(file: Path, entry: TensorEntry) -> Iterator[torch.Tensor]:
    return read_rows(file, entry, rows_per_chunk(entry.shape))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path.parent} has no {path.name}. Give a Hugging Face folder (config.json, *.safetensors, "
            "tokenizer.json) or a GGUF file."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}. Get the file again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object. Get the file again.")
    return value
