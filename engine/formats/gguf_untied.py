"""A GGUF file whose output head is tied to its embeddings, with the head as a tensor of its own.

llama.cpp takes `output.weight` where a file has it, and the embeddings else; a LoRA of the head can only be hung on
the former. The new file is the old one byte for byte, but for one more row in the table of tensors and, behind all
others, a second copy of the embeddings, packed as they are: it gives the same logits.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from pocketllm.engine.errors import CannotExport, ModelFileError
from pocketllm.engine.formats.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from pocketllm.engine.formats.safetensors_io import sync

EMBEDDINGS = "token_embd.weight"
HEAD = "output.weight"
_COPY_BYTES = 1 << 20
#: Magic and version; then how many tensors and how many metadata entries there are.
_MAGIC_BYTES, _COUNTS = 8, struct.Struct("<QQ")


def write_untied(source: Path, destination: Path) -> None:
    """Write the model of the GGUF file at `source` with an output head of its own, whole or not at all.

    It is the base file that an adapter of the head needs (gguf_lora.needs_untied_head). A MB at a time is in memory.
    Replaces what is at `destination`. Raises CannotExport when the file has such a head already or is one of several
    parts, and ModelFileError when it is broken.
    """
    header = read_gguf_header(source)
    _check(source, header)
    scratch = destination.with_name(f".{destination.name}.writing")
    try:
        with source.open("rb") as old, scratch.open("wb") as new:
            _write(header, old, new)
        sync(scratch)
        scratch.rename(destination)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync(destination.parent)


def _check(source: Path, header: GgufHeader) -> None:
    parts = header.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise CannotExport(
            f"{source} is one of {parts} parts. Join them first: llama-gguf-split --merge FIRST_PART OUTPUT."
        )
    if HEAD in header.tensors:
        raise CannotExport(f"{source} has an output head of its own already. Use it as it is.")
    if EMBEDDINGS not in header.tensors:
        raise ModelFileError(f"{source} has no tensor {EMBEDDINGS}. Give the base model's GGUF file.")


def _write(header: GgufHeader, old: BinaryIO, new: BinaryIO) -> None:
    words = header.tensors[EMBEDDINGS]
    end = max(tensor.offset + tensor.nbytes for tensor in header.tensors.values())
    size = end - header.data_start
    new.write(old.read(_MAGIC_BYTES))
    tensors, entries = _COUNTS.unpack(old.read(_COUNTS.size))
    new.write(_COUNTS.pack(tensors + 1, entries))
    _copy(old, new, old.tell(), header.table_end)
    new.write(_row(words, size + -size % header.alignment))
    _pad(new, header.alignment)
    _copy(old, new, header.data_start, end)
    _pad(new, header.alignment)
    _copy(old, new, words.offset, words.offset + words.nbytes)
    _pad(new, header.alignment)


def _row(words: GgufTensor, offset: int) -> bytes:
    """The table's row for the head: name, shape (GGUF has the fastest-moving dimension first), packing and place."""
    name, dimensions = HEAD.encode(), words.shape[::-1]
    layout = f"<Q{len(name)}sI{len(dimensions)}QIQ"
    return struct.pack(layout, len(name), name, len(dimensions), *dimensions, words.kind, offset)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _copy(old: BinaryIO, new: BinaryIO, start: int, stop: int) -> None:
    old.seek(start)
    while start < stop:
        piece = old.read(min(_COPY_BYTES, stop - start))
        if not piece:
            raise ModelFileError(f"{old.name} ended early. It changed while being read; try again.")
        new.write(piece)
        start += len(piece)
