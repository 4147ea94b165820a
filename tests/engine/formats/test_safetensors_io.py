import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.safetensors_io import ALIGNMENT_BYTES, read_header, write_safetensors


def test_writer_writes_what_safetensors_reads(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {
        "matrix": torch.randn(5, 3).bfloat16(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "vector": torch.arange(7),
        "last": torch.empty(3, 0, dtype=torch.float16),
    }
    chunks = [
        *torch.split(tensors["matrix"].t().contiguous().t(), 2),
        tensors["scalar"],
        *torch.split(tensors["vector"], 3),
        tensors["last"],
    ]
    size, sha256 = write_safetensors(path, [(name, t.shape, t.dtype) for name, t in tensors.items()], chunks)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert size == path.stat().st_size
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    entries = read_header(path)
    assert entries["matrix"].offset % ALIGNMENT_BYTES == 0
    assert {name: entry.shape for name, entry in entries.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


def test_writer_notices_what_is_missing_or_too_much(tmp_path: Path) -> None:
    tensors = [("a", (2, 3), torch.float32), ("b", (2,), torch.float32)]
    for numbers in (3, 9):
        with pytest.raises(ModelFileError, match=r"was left incomplete: it has \d+ bytes, its tensors need \d+"):
            write_safetensors(tmp_path / "w", tensors, [torch.zeros(numbers)])


def test_header_refuses(tmp_path: Path) -> None:
    path, whole = tmp_path / "w.safetensors", save({"a": torch.zeros(4)})
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}).encode()
    broken = {
        b"": "header too small",
        struct.pack("<Q", 50) + b"{}": "invalid header length",
        struct.pack("<Q", 1) + b"{": "invalid JSON",
        whole[:-1]: "not fully covered",
        struct.pack("<Q", len(header)) + header + bytes(4): "F8_E8M0",  # a dtype that torch has not
    }
    for data, complaint in broken.items():
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=complaint) as caught:
            read_header(path)
        assert str(path) in str(caught.value)


@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_header_never_points_outside_the_file(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    data = bytearray(save({"a": torch.zeros(4), "b": torch.ones(2, 3)}))
    data[position % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(data)
    try:
        entries = read_header(path)
    except ModelFileError:
        return
    assert all(8 <= e.offset <= e.offset + e.nbytes <= len(data) for e in entries.values())
