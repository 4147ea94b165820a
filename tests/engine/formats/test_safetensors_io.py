import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.safetensors_io import ALIGNMENT_BYTES, atomic, read_header, write_safetensors


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


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_replaced_is_whole_at_any_time(tmp_path: Path, kind: str) -> None:
    def write(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
        (path / "inside" if kind == "folder" else path).write_text(text)

    def read() -> str:
        return (tmp_path / "it" / "inside" if kind == "folder" else tmp_path / "it").read_text()

    write(tmp_path / ".it.writing", "of a writer that was killed")
    with atomic(tmp_path / "it") as scratch:
        write(scratch, "old")
    with pytest.raises(InterruptedError), atomic(tmp_path / "it") as scratch:
        write(scratch, "half")
        raise InterruptedError
    assert read() == "old"
    with atomic(tmp_path / "it") as scratch:
        write(scratch, "new")
        assert read() == "old"
    assert read() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def with_header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file of two tensors whose header was changed."""
    data = save({"a": torch.zeros(4), "b": torch.ones(2)})
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header = change(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def entry(name: str, **values: Any) -> bytes:
    return with_header(lambda header: header[name].update(values))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(b"", "header too small", id="empty"),
        pytest.param(b"\x10", "header too small", id="no length"),
        pytest.param(struct.pack("<Q", 50) + b"{}", "invalid header length", id="cut header"),
        pytest.param(struct.pack("<Q", 100_000_001), "header too large", id="huge header"),
        pytest.param(with_header(lambda _: b"{"), "invalid JSON", id="no JSON"),
        pytest.param(with_header(lambda _: b"[" * 10**6), "invalid JSON", id="deep JSON"),
        pytest.param(with_header(lambda _: [1]), "invalid JSON", id="list"),
        pytest.param(with_header(lambda h: h.update(a=1)), "invalid JSON", id="entry"),
        pytest.param(entry("a", dtype="F7"), "unknown variant `F7`", id="dtype"),
        pytest.param(entry("a", dtype=["F32"]), "invalid type", id="dtype list"),
        pytest.param(entry("a", shape=[-4]), "expected usize", id="negative"),
        pytest.param(entry("a", shape=[True, 4]), "expected usize", id="bool"),
        pytest.param(entry("a", shape=None), "expected a sequence", id="no shape"),
        pytest.param(entry("a", shape=[5]), "invalid shape", id="too short"),
        pytest.param(entry("a", data_offsets=[0, 16, 2]), "expected 2 elements", id="three offsets"),
        pytest.param(entry("a", data_offsets=[4, 20]), "invalid offset", id="gap"),
        pytest.param(entry("b", data_offsets=[8, 16]), "invalid offset", id="overlap"),
        pytest.param(with_header(lambda h: h.update(a=h["b"])), "invalid offset", id="same bytes"),
        pytest.param(save({"a": torch.zeros(4)})[:-1], "not fully covered", id="cut data"),
        pytest.param(save({"a": torch.zeros(4)}) + b"x", "not fully covered", id="more data"),
    ],
)
def test_header_refuses(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "w.safetensors"
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


def test_a_dtype_that_torch_has_not_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ModelFileError, match="F8_E8M0"):
        read_header(path)
