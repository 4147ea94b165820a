"""A base GGUF file with an output head of its own: the same model, so that an adapter's head has where to go."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pocketllm.engine.errors import CannotExport, ModelFileError
from pocketllm.engine.formats.gguf_untied import write_untied
from pocketllm.engine.formats.importer import import_model
from tests.support.tiny_models import logits

Table = dict[str, tuple[gguf.GGMLQuantizationType, list[int], bytes]]


def table(path: Path) -> Table:
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: (tensor.tensor_type, tensor.shape.tolist(), tensor.data.tobytes()) for tensor in reader.tensors
    }


def metadata(path: Path) -> dict[str, Any]:
    return {
        name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if name != "GGUF.tensor_count"
    }


def test_all_is_as_it_was_and_the_head_is_the_embeddings(tiny_gguf: Path, tmp_path: Path) -> None:
    write_untied(tiny_gguf, tmp_path / "untied.gguf")
    old, new = table(tiny_gguf), table(tmp_path / "untied.gguf")
    assert list(new) == [*old, "output.weight"]
    assert new == old | {"output.weight": old["token_embd.weight"]}
    assert metadata(tmp_path / "untied.gguf") == metadata(tiny_gguf)
    assert [path.name for path in tmp_path.iterdir()] == ["untied.gguf"]


def test_it_is_the_same_model(tiny_gguf: Path, tmp_path: Path) -> None:
    write_untied(tiny_gguf, tmp_path / "untied.gguf")
    import_model(str(tiny_gguf), tmp_path, name="tied")
    import_model(str(tmp_path / "untied.gguf"), tmp_path, name="untied")
    assert torch.equal(logits(tmp_path / "tied", dtype="auto"), logits(tmp_path / "untied", dtype="auto"))


@pytest.mark.parametrize("alignment", [32, 256])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "not padded"])
def test_any_alignment_and_an_end_without_padding(tmp_path: Path, alignment: int, padded: bool) -> None:
    source = tmp_path / "odd.gguf"
    numbers = {"token_embd.weight": np.arange(15), "output_norm.weight": np.arange(5)}
    write(source, {name: values.astype(np.float32) for name, values in numbers.items()}, alignment=alignment)
    if not padded:
        source.write_bytes(source.read_bytes()[: 5 * 4 - alignment])
    write_untied(source, tmp_path / "untied.gguf")
    old, new = table(source), table(tmp_path / "untied.gguf")
    assert new == old | {"output.weight": old["token_embd.weight"]}
    for tensor in gguf.GGUFReader(tmp_path / "untied.gguf").tensors:
        assert tensor.data_offset % alignment == 0


def write(path: Path, tensors: dict[str, Any], *, alignment: int = 32, parts: int = 1) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_uint16("split.count", parts)
    for name, numbers in tensors.items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


NUMBERS = np.ones(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("tensors", "parts", "error", "says"),
    [
        ({"token_embd.weight": NUMBERS, "output.weight": NUMBERS}, 1, CannotExport, "of its own already"),
        ({"blk.0.attn_q.weight.lora_a": NUMBERS}, 1, ModelFileError, "base model's"),
        ({"token_embd.weight": NUMBERS}, 2, CannotExport, "one of 2 parts"),
    ],
    ids=["untied", "a LoRA", "a part"],
)
def test_what_cannot_be_untied(
    tmp_path: Path, tensors: dict[str, Any], parts: int, error: type[Exception], says: str
) -> None:
    write(tmp_path / "source.gguf", tensors, parts=parts)
    with pytest.raises(error, match=says):
        write_untied(tmp_path / "source.gguf", tmp_path / "untied.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_a_disk_that_fails_leaves_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "untied.gguf").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError):
        write_untied(tiny_gguf, tmp_path / "untied.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["untied.gguf"]
