"""Finds the GGUF file that a model was imported from, if it is unchanged."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import Manifest, sha256_of


def describe_origin(path: Path) -> dict[str, Any]:
    """Return a manifest's record of the file, as JSON values."""
    path = path.absolute()
    found = path.stat()
    sha256 = _sha256(path, found.st_size, found.st_mtime_ns)
    return {"path": str(path), "bytes": found.st_size, "modified_ns": found.st_mtime_ns, "sha256": sha256}


def find_origin(manifest: Manifest) -> Path:
    """The GGUF file that the model was imported from, unchanged. Raises ModelFileError.

    Where only the modification time differs, the hash decides: reinstalling a package restores the same file.
    """
    about = manifest.gguf
    if about is None:
        raise ModelFileError(f"{manifest.name} was not imported from a GGUF file")
    path = Path(about["path"])
    try:
        found = path.stat()
        if found.st_size == about["bytes"] and (
            found.st_mtime_ns == about["modified_ns"]
            or _sha256(path, found.st_size, found.st_mtime_ns) == about["sha256"]
        ):
            return path
    except OSError as error:
        raise ModelFileError(
            f"{path}, which {manifest.name} was imported from, cannot be read: {error.strerror}"
        ) from error
    raise ModelFileError(f"{path} is no longer the file that {manifest.name} was imported from")


@lru_cache(maxsize=4)
def _sha256(path: Path, _size: int, _modified_ns: int) -> str:
    """The hash of a file, read once as long as it looks the same."""
    return sha256_of(path)
