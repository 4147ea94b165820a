"""An open weights file: what comes out of it, and every way in which it can be broken."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME, open_model_folder
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.quantization import MINIMA, SCALES
from pocketllm.engine.streamed.weights import Scratch, Weight, open_weights
from tests.support.learning import imported
from tests.support.tiny_architectures import dense_tensors

PACKED = "model.layers.0.mlp.up_proj.weight"
DTYPES = ("float32", "bfloat16", "int8", "int4")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "architectures"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float64])
def test_every_weight_is_what_is_stored(root: Path, dtype: str, wanted: torch.dtype) -> None:
    model_folder, scratch = imported(root, "llama", dtype), Scratch()
    weights, expected = open_weights(model_folder.weights), dense_tensors(model_folder.path)
    assert weights.keys() == expected.keys()
    tolerance = 1e-2 if wanted == torch.bfloat16 else 1e-6  # a bf16 scale times a code, then a minimum
    for name, weight in weights.items():
        assert weight.shape == expected[name].shape
        dense = weight.dense(wanted, scratch)
        assert dense.dtype == wanted
        assert torch.allclose(dense.double(), expected[name].double(), rtol=tolerance, atol=tolerance), name
        dense = dense.clone()
        assert torch.equal(weight.rows(1, 4, wanted, scratch), dense[1:4])
        ids = torch.tensor([5, 0, 5])
        assert torch.equal(weight.gather(ids, wanted), dense[ids])
        assert weight.gather(ids[:0], wanted).shape == (0, *weight.shape[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_releasing_loses_nothing(root: Path, dtype: str) -> None:
    model_folder, scratch = imported(root, "llama", dtype), Scratch()
    for name, weight in open_weights(model_folder.weights).items():
        before = weight.dense(torch.float64, scratch).clone()
        weight.prefetch()
        weight.release()
        weight.release(0, weight.shape[0])
        assert torch.equal(weight.dense(torch.float64, scratch), before), name
        # Many rows, some of them again, with pages given back on the way.
        for count in (0, 1, 7 * weight.shape[0]):
            ids = torch.arange(count) * 5 % weight.shape[0]
            assert torch.equal(weight.gather(ids, torch.float64, release=True), before[ids]), (name, count)


def test_a_loaded_weight_is_no_longer_the_files(root: Path) -> None:
    model_folder = imported(root, "llama", "bfloat16")
    weight = open_weights(model_folder.weights)[PACKED]
    copy = weight.load(torch.bfloat16)
    assert torch.equal(copy, load_file(model_folder.weights)[PACKED])
    copy.zero_()  # would end the process if it were the mapping
    assert weight.dense(torch.float32, Scratch()).count_nonzero() == 0
    weight.prefetch()
    weight.release()
    weight.release(0, 1)


def test_scratch_is_one_piece_of_memory_that_grows() -> None:
    scratch = Scratch()
    small = scratch.take((3, 5), torch.float64)
    assert (small.shape, small.dtype) == ((3, 5), torch.float64)
    assert scratch.take((2, 7), torch.bfloat16).data_ptr() == small.data_ptr()
    large = scratch.take((30, 50), torch.float32)
    assert scratch.take((), torch.float64).data_ptr() == large.data_ptr()
    assert scratch.take((0, 4), torch.float32).shape == (0, 4)


@pytest.mark.parametrize("columns", [64, 128])
def test_rows_of_a_weight_in_memory(columns: int) -> None:
    floats = torch.randn(9, columns)
    weight = Weight(floats.shape, {"": floats})
    assert not weight.packed
    assert weight.dense(torch.float32, Scratch()) is floats
    assert torch.equal(weight.rows(2, 5, torch.float64, Scratch()), floats[2:5].double())


def rewrite(model_folder_path: Path, target: Path, change: Callable[[Tensors], None]) -> Path:
    """The weights file of a folder with other tensors in it."""
    tensors = load_file(model_folder_path / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, target / WEIGHTS_NAME)
    return target / WEIGHTS_NAME


def drop(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor], of: str = "") -> Callable[[Tensors], None]:
    """Put what is made of one tensor in its own or in another's place."""

    def change(tensors: Tensors) -> None:
        tensors[name] = make(tensors[of or name]).clone(memory_format=torch.contiguous_format)

    return change


BROKEN: dict[str, tuple[str, Callable[[Tensors], None], str]] = {
    "scales are missing": ("int8", drop(PACKED + SCALES), r"in int8 without a matching .*up_proj\.weight\.scales"),
    "scales of int4 are missing": ("int4", drop(PACKED + SCALES), r"in int4 without a matching .*\.scales"),
    "minima are missing": ("int4", drop(PACKED + MINIMA), r"in int4 without a matching .*\.minima"),
    "scales of another shape": ("int8", put(PACKED + SCALES, lambda s: s[:, :0]), r"without a matching .*\.scales"),
    "scales turned round": ("int8", put(PACKED + SCALES, torch.t), r"without a matching .*\.scales"),
    "a scale too few": ("int4", put(PACKED + SCALES, lambda s: s[:-1]), r"without a matching .*\.scales"),
    "scales of another dtype": ("int8", put(PACKED + SCALES, torch.Tensor.float), r"without a matching .*\.scales"),
    "scales of another 16 bits": (
        "int4",
        put(PACKED + MINIMA, lambda m: m.view(torch.int16)),
        r"without a matching .*\.minima",
    ),
    "scales of nothing": ("int8", drop(PACKED), r"holds .*up_proj\.weight\.scales, which belongs to no weight"),
    "scales of floats": (
        "bfloat16",
        put(PACKED + SCALES, lambda w: w.half(), of=PACKED),
        r"holds .*up_proj\.weight\.scales, which belongs to no weight",
    ),
    "minima of int8": (
        "int8",
        put(PACKED + MINIMA, lambda s: s, of=PACKED + SCALES),
        r"holds .*up_proj\.weight\.minima, which belongs to no weight",
    ),
    "codes in one dimension": ("int8", put(PACKED, torch.flatten), r"in int8, which its shape \(8192,\) rules out"),
    "codes in three": ("int4", put(PACKED, lambda c: c[None]), r"in int4, which its shape \(1, 128, 64\) rules out"),
    "one code": ("int8", put(PACKED, lambda c: c[0, 0]), r"in int8, which its shape \(\) rules out"),
    "rows that are no whole groups": ("int8", put(PACKED, lambda c: c[:, :60]), r"\(128, 60\) rules out"),
    "codes of the other packing": ("int8", put(PACKED, lambda c: c.view(torch.uint8)), r"in int4 without a matching"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_packed_weights_that_do_not_fit_are_refused_by_name(root: Path, tmp_path: Path, how: str) -> None:
    dtype, change, reason = BROKEN[how]
    path = rewrite(imported(root, "llama", dtype).path, tmp_path, change)
    with pytest.raises(ModelFileError, match=f"{reason}.*[Ii]mport") as raised:
        open_weights(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1, -1000])
def test_a_truncated_file_is_refused(root: Path, tmp_path: Path, kept: int) -> None:
    data = imported(root, "llama", "int8").weights.read_bytes()
    (tmp_path / WEIGHTS_NAME).write_bytes(data[:kept])
    with pytest.raises(ModelFileError, match=r"not a complete safetensors file: .*Get the file again"):
        open_weights(tmp_path / WEIGHTS_NAME)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone\.safetensors cannot be read.*Import the model again"):
        open_weights(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
@pytest.mark.parametrize("bit", [0, 5])
def test_no_flipped_bit_of_a_header_does_worse_than_be_refused(
    root: Path, tmp_path: Path, dtype: str, bit: int
) -> None:
    """Each byte of it in turn. A name or a digit may still make sense, but then the file is read without harm."""
    data = bytearray(imported(root, "llama", dtype).weights.read_bytes())
    names = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]]).keys()
    path, refused, length = tmp_path / WEIGHTS_NAME, 0, 8 + struct.unpack("<Q", data[:8])[0]
    for place in range(0, length, 3):
        data[place] ^= 1 << bit
        path.write_bytes(data)
        data[place] ^= 1 << bit
        try:
            weights = open_weights(path)
        except ModelFileError:
            refused += 1
        else:
            assert len(weights) <= len(names)
            for weight in weights.values():
                weight.dense(torch.float32, Scratch())
    assert refused > length / 3 / 2


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_a_flipped_bit_of_the_data_is_found_when_asked(root: Path, tmp_path: Path, dtype: str) -> None:
    folder = imported(root, "llama", dtype).path
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    open_model_folder(tmp_path, verify=True)
    data = bytearray((tmp_path / WEIGHTS_NAME).read_bytes())
    data[-777] ^= 4
    (tmp_path / WEIGHTS_NAME).write_bytes(data)
    LanguageModel(open_model_folder(tmp_path))  # without reading it all nothing can be seen
    with pytest.raises(ModelFileError, match=r"hash differs.*Import it again"):
        open_model_folder(tmp_path, verify=True)
