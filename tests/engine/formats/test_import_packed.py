"""Packing weights while they stream: what is packed, and that what is on disk is what was written."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.importer import ImportProgress, import_model
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME, open_model_folder
from pocketllm.engine.formats.safetensors_io import ALIGNMENT_BYTES, read_header
from pocketllm.engine.streamed.quantization import MINIMA, PACKINGS, SCALES, pack
from tests.support.tiny_architectures import ODD_VOCABULARY, dense_tensors, llama_folder
from tests.support.tiny_models import (
    VOCABULARY,
    byte_tokenizer,
    mapped,
    tiny_llama_folder,
    tiny_model_folder,
    write_tiny_gguf,
)

pytestmark = pytest.mark.slow

EMBEDDINGS = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an odd vocabulary; tests do not change it."""
    return llama_folder(tmp_path_factory.mktemp("source") / "llama")


@pytest.mark.parametrize("packing", PACKINGS)
def test_big_tensors_are_packed_in_chunks(tmp_path: Path, packing: str) -> None:
    # 40,000 rows of 64 floats are 10 MB, so three chunks.
    folder = tiny_llama_folder(tmp_path / "big", vocab=40_000, hidden=64, layers=1)
    seen: list[ImportProgress] = []
    import_model(str(folder), tmp_path, name="x", dtype=packing, progress=seen.append)
    original = load_file(folder / WEIGHTS_NAME)[EMBEDDINGS]
    stored = load_file(tmp_path / "x" / WEIGHTS_NAME)
    assert all(torch.equal(stored[EMBEDDINGS + suffix], part) for suffix, part in pack(original, "int8").items())
    weights = [p for p in seen if p.stage == "weights"]
    assert weights[-1].done == weights[-1].total == sum(tensor.nbytes for tensor in stored.values())
    assert all(0 <= b.done - a.done <= 2 << 20 for a, b in pairwise(weights))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_gguf_file_is_packed_like_its_folder(tmp_path: Path, packing: str) -> None:
    write_tiny_gguf(tmp_path / "x.gguf", tiny_llama_folder(tmp_path / "x", hidden=64))
    import_model(str(tmp_path / "x.gguf"), tmp_path, name="dense", dtype="float32")
    import_model(str(tmp_path / "x.gguf"), tmp_path, name="packed", dtype=packing)
    dense, packed = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("dense", "packed"))
    for name, kind in ((EMBEDDINGS, "int8"), (DOWN, packing), ("model.layers.0.self_attn.q_proj.weight", packing)):
        for suffix, part in pack(dense[name], kind).items():
            assert torch.equal(packed[name + suffix], part), name


def test_a_folder_is_as_much_smaller_as_it_should_be(source: Path, tmp_path: Path) -> None:
    sizes = {
        dtype: import_model(str(source), tmp_path, name=dtype, dtype=dtype).weights_bytes
        for dtype in ("bfloat16", *PACKINGS)
    }
    assert sizes["int4"] < sizes["int8"] < 0.6 * sizes["bfloat16"]


def test_what_cannot_be_packed_stays_bfloat16(tmp_path: Path) -> None:
    # Rows of 32 are no whole groups of 64; only the map down from 64 has rows that are.
    folder = tiny_model_folder(tmp_path, dtype="int8")
    stored = load_file(folder / WEIGHTS_NAME)
    assert stored[EMBEDDINGS].dtype == torch.bfloat16
    assert stored[DOWN].dtype == torch.int8
    assert stored[DOWN + SCALES].shape == (32, 1)
    assert dense_tensors(folder).keys() == load_file(tiny_model_folder(tmp_path, "float") / WEIGHTS_NAME).keys()


def test_nothing_to_pack(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64))
    model.save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UnsupportedModel, match=r"no weights of a shape that int4 can pack\. Import it as bfloat16"):
        import_model(str(tmp_path / "gpt2"), tmp_path / "models", dtype="int4")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_part_can_be_mapped(source: Path, tmp_path: Path, packing: str) -> None:
    import_model(str(source), tmp_path, name="x", dtype=packing)
    entries = read_header(tmp_path / "x" / WEIGHTS_NAME)
    assert all(entry.offset % 2 == 0 for entry in entries.values())
    # The scales of 263 rows are the only part of odd length; with the rows themselves they stand at the end.
    assert list(entries)[-2:] == [EMBEDDINGS, EMBEDDINGS + SCALES]
    assert entries[EMBEDDINGS + SCALES].shape == (ODD_VOCABULARY, 1)
    assert all(entry.offset % ALIGNMENT_BYTES == 0 for entry in entries.values())
    found, stored = mapped(open_model_folder(tmp_path / "x")), load_file(tmp_path / "x" / WEIGHTS_NAME)
    assert all(torch.equal(found[name], stored[name]) for name in stored)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e30])
def test_a_number_that_has_no_packed_form(tmp_path: Path, packing: str, number: float) -> None:
    folder = llama_folder(tmp_path / "source")
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors[DOWN][3, 70] = number
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(ModelFileError, match=f"numbers in {DOWN} that are not finite as {packing}"):
        import_model(str(folder), tmp_path / "models", dtype=packing)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("packing", PACKINGS)
def test_weights_of_zero_have_no_error(tmp_path: Path, packing: str) -> None:
    folder = llama_folder(tmp_path / "source")
    tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
    save_file(tensors, folder / WEIGHTS_NAME)
    manifest = import_model(str(folder), tmp_path, name="x", dtype=packing)
    assert manifest.quantization_error == 0
    assert not any(tensor.any() for tensor in dense_tensors(tmp_path / "x").values())


@pytest.mark.parametrize("dtype", ["bfloat16", *PACKINGS])
@pytest.mark.parametrize("place", ["header", "first", "last"])
def test_a_flipped_bit_is_found(source: Path, tmp_path: Path, dtype: str, place: str) -> None:
    import_model(str(source), tmp_path, name="x", dtype=dtype)
    path = tmp_path / "x" / WEIGHTS_NAME
    entries = list(read_header(path).values())
    flip(path, {"header": 20, "first": entries[0].offset, "last": entries[-1].offset}[place])
    open_model_folder(tmp_path / "x")
    with pytest.raises(ModelFileError, match="has changed since the import"):
        open_model_folder(tmp_path / "x", verify=True)


@pytest.mark.parametrize("suffix", ["", SCALES, MINIMA])
def test_a_flipped_bit_in_any_part_is_found(source: Path, tmp_path: Path, suffix: str) -> None:
    import_model(str(source), tmp_path, name="x", dtype="int4")
    path = tmp_path / "x" / WEIGHTS_NAME
    entry = read_header(path)[DOWN + suffix]
    flip(path, entry.offset + entry.nbytes // 2)
    with pytest.raises(ModelFileError, match="has changed since the import"):
        open_model_folder(tmp_path / "x", verify=True)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["bfloat16", *PACKINGS])
@pytest.mark.parametrize("missing", [1, 100, None])
def test_a_truncated_file_is_found(source: Path, tmp_path: Path, dtype: str, missing: int | None) -> None:
    size = import_model(str(source), tmp_path, name="x", dtype=dtype).weights_bytes
    with (tmp_path / "x" / WEIGHTS_NAME).open("r+b") as file:
        file.truncate(size - missing if missing else 0)
    with pytest.raises(ModelFileError, match=f"bytes, not {size} as imported"):
        open_model_folder(tmp_path / "x")
