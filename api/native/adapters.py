"""/adapters: list, serve, roll back, delete and export adapters."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import AdapterId, ServicesDep, needs
from pocketllm.api.native.schemas import AdapterOut, Data
from pocketllm.daemon.documents import Body
from pocketllm.daemon.generation.llama.decoder import LORA_NAME
from pocketllm.daemon.services import Services
from pocketllm.daemon.tools.export import export_gguf
from pocketllm.storage.errors import WrongState
from pocketllm.storage.repositories.adapters import Change
from pocketllm.storage.tables import Adapter

router = APIRouter(tags=["adapters"], route_class=JSONRoute)

_TAR, _GGUF = "application/x-tar", "application/octet-stream"
_PIECE_BYTES = 1 << 20


class Format(StrEnum):
    """The format of an export."""

    PEFT = "peft"  #: its folder as a tar file
    GGUF = "gguf"  #: a LoRA file for llama.cpp
    MERGED = "merged"  #: added to the base model's file


class RollbackIn(Body):
    """The model to roll back."""

    model: str | None = Field(None, min_length=1, description="Default: the setting model.")


@router.get("/adapters", openapi_extra=needs("generate"))
def adapters(services: ServicesDep) -> Data[AdapterOut]:
    """List adapters, newest first, with their parents and folders."""
    rows, folder = services.store.adapters.all(), services.folder.adapter
    return Data(data=[AdapterOut(**dict(row), job=row.job_id, folder=str(folder(row.id))) for row in rows])


@router.post("/adapters/rollback")
def roll_back(services: ServicesDep, body: RollbackIn | None = None) -> Change:
    """Serve the parent of the serving adapter, or the base model if it has none. Deletes nothing.

    Texts that only the withdrawn adapters were trained on are set aside: no job trains on them again unless the adapter
    is served again. The adapter of a running job will not be served. Adapters that are damaged, or were trained on text
    that was deleted since, are skipped.
    """
    model = (body or RollbackIn()).model or services.settings.model
    return services.store.adapters.roll_back(model, usable=_usable(services), now=services.now())


@router.post("/adapters/{adapter_id}/serve")
def serve(adapter_id: AdapterId, services: ServicesDep, deleted_text: bool = False) -> Change:
    """Serve this adapter for its model, whatever its job's outcome. 409 if it was trained on text that was deleted
    since, unless `deleted_text` is true.
    """
    usable, now = _usable(services), services.now()
    return services.store.adapters.serve(adapter_id, usable=usable, now=now, deleted_text=deleted_text)


@router.delete("/adapters/{adapter_id}", status_code=HTTPStatus.NO_CONTENT)
def delete(services: ServicesDep, adapter_id: AdapterId) -> None:
    """Delete an adapter and its files. 409 if it is served, or if another adapter or an open job starts from it."""
    delete_adapter(services, adapter_id)


@router.get(
    "/adapters/{adapter_id}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (_TAR, _GGUF)}}},
)
def export(
    services: ServicesDep,
    adapter_id: str,
    export_format: Annotated[
        Format,
        Query(
            alias="format",
            description="`peft`: a tar file of the folder; `gguf`: a LoRA file for llama.cpp; `merged`: a GGUF file of "
            "the base model with the adapter.",
        ),
    ] = Format.PEFT,
) -> StreamingResponse:
    """Download an adapter. `peft` is its folder as a tar file, for `PeftModel.from_pretrained`; in mode `full`, it is a
    whole model.

    `gguf` is a file for llama.cpp's `--lora`, for use with any GGUF file of the base model. `merged` is such a file of
    the base model with the adapter merged in.
    """
    adapter = services.store.adapters.get(adapter_id)
    folder = services.folder.adapter(adapter.id)
    if not folder.is_dir():
        raise WrongState(f"The files of adapter {adapter.id} are missing. GET /adapters shows where they were.")
    if export_format is not Format.PEFT:
        return _gguf(services, folder, services.folder.models / adapter.model, merged=export_format is Format.MERGED)
    return StreamingResponse(tar(folder), media_type=_TAR, headers=_named(f"{adapter.id}.tar"))


def _gguf(services: Services, folder: Path, model: Path, *, merged: bool) -> StreamingResponse:
    # In the data folder, since a folder for temporary files may be in memory.
    services.folder.exports.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=services.folder.exports) as scratch:
        whole = Path(scratch) / "whole.gguf"
        export_gguf(folder, model, whole, merged=merged)
        size, file = whole.stat().st_size, whole.open("rb")  # its name may go, its bytes stay until it is closed
    headers = _named(f"{folder.name}.gguf") | {"Content-Length": str(size)}
    return StreamingResponse(_pieces(file), media_type=_GGUF, headers=headers)


def _named(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def tar(folder: Path) -> Iterator[bytes]:
    """Yield a folder's files as a tar file, in pieces, without llama.cpp's copy of the adapter."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LORA_NAME):
        about = tarfile.TarInfo(f"{folder.name}/{file.relative_to(folder)}")
        with file.open("rb") as content:
            found = os.fstat(content.fileno())
            about.size, about.mtime, about.mode = found.st_size, int(found.st_mtime), 0o600
            yield about.tobuf(tarfile.PAX_FORMAT)
            while piece := content.read(_PIECE_BYTES):
                yield piece
        yield bytes(-about.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def delete_adapter(services: Services, adapter_id: str) -> None:
    """Delete an adapter and its files. Raises NotFound, or WrongState while it is needed."""
    services.store.adapters.delete(adapter_id)
    shutil.rmtree(services.folder.adapter(adapter_id), ignore_errors=True)


def _usable(services: Services) -> Callable[[Adapter], bool]:
    return lambda adapter: services.scheduler.adapter_files.problem(adapter) is None
