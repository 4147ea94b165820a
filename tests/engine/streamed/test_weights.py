"""An open weights file: what comes out of it, and every way in which it can be broken."""

import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME
from pocketllm.engine.formats.quantization import MINIMA, SCALES
from pocketllm.engine.streamed.context import Scratch
from pocketllm.engine.streamed.weights import open_weights
from tests.support.models.learning import imported
from tests.support.models.tiny_architectures import dense_tensors

PACKED = "model.layers.0.mlp.up_proj.weight"
DTYPES = ("float32", "bfloat16", "int8", "int4")


def test_every_weight_is_what_is_stored(root: Path) -> None:
    for dtype, wanted in product(DTYPES, (torch.float32, torch.bfloat16, torch.float64)):
        model_folder, scratch = imported(root, "llama", dtype), Scratch()
        weights, expected = open_weights(model_folder.weights), dense_tensors(model_folder.path)
        assert weights.keys() == expected.keys()
        tolerance = 1e-2 if wanted == torch.bfloat16 else 1e-6  # a bf16 scale times a code, then a minimum
        for name, weight in weights.items():
            case = dtype, wanted, name
            assert weight.shape == expected[name].shape, case
            dense = weight.dense(wanted, scratch)
            assert dense.dtype == wanted, case
            assert torch.allclose(dense.double(), expected[name].double(), rtol=tolerance, atol=tolerance), case
            dense = dense.clone()
            assert torch.equal(weight.rows(1, 4, wanted, scratch), dense[1:4]), case
            ids = torch.tensor([5, 0, 5])
            assert torch.equal(weight.gather(ids, wanted), dense[ids]), case
            assert weight.gather(ids[:0], wanted).shape == (0, *weight.shape[1:]), case


def test_releasing_loses_nothing(root: Path) -> None:
    scratch = Scratch()
    for dtype in DTYPES:
        for name, weight in open_weights(imported(root, "llama", dtype).weights).items():
            before = weight.dense(torch.float64, scratch).clone()
            weight.prefetch()
            weight.release()
            weight.release(0, weight.shape[0])
            assert torch.equal(weight.dense(torch.float64, scratch), before), (dtype, name)
            # Many rows, some of them again, with pages given back on the way.
            for count in (0, 1, 7 * weight.shape[0]):
                ids = torch.arange(count) * 5 % weight.shape[0]
                found = weight.gather(ids, torch.float64, release=True)
                assert torch.equal(found, before[ids]), (dtype, name, count)


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


def test_packed_weights_that_do_not_fit_are_refused_by_name(
    root: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    broken: list[tuple[str, str, Callable[[torch.Tensor], torch.Tensor] | None, str]] = [
        ("int8", SCALES, None, r"in int8 without a matching .*up_proj\.weight\.scales"),
        ("int4", MINIMA, None, r"in int4 without a matching .*up_proj\.weight\.minima"),
        ("int8", SCALES, lambda scales: scales[:, :0], r"in int8 without a matching .*up_proj\.weight\.scales"),
        ("int8", SCALES, torch.Tensor.float, r"in int8 without a matching .*up_proj\.weight\.scales"),
        ("int8", "", None, r"up_proj\.weight\.scales, which belongs to no weight"),
        ("int8", "", lambda codes: codes[0, 0], r"in int8, which its shape \(\) rules out"),
        ("int4", "", lambda codes: codes[None], r"in int4, which its shape \(1, 128, 64\) rules out"),
    ]
    for number, (dtype, suffix, change, reason) in enumerate(broken):
        tensors = load_file(imported(root, "llama", dtype).weights)
        tensor = tensors.pop(PACKED + suffix)
        if change is not None:
            tensors[PACKED + suffix] = change(tensor).clone(memory_format=torch.contiguous_format)
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with subtests.test(reason), pytest.raises(ModelFileError, match=f"{path} holds .*{reason}.*[Ii]mport"):
            open_weights(path)


def test_a_truncated_or_missing_file_is_refused(root: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    data, path = imported(root, "llama", "int8").weights.read_bytes(), tmp_path / WEIGHTS_NAME
    for kept in (0, 7, 8, 100, -1, -1000):
        path.write_bytes(data[:kept])
        reason = r"not a complete safetensors file: .*Get the file again"
        with subtests.test(kept=kept), pytest.raises(ModelFileError, match=reason):
            open_weights(path)
    path.unlink()
    with subtests.test("gone"), pytest.raises(ModelFileError, match=rf"{path} cannot be read.*Import the model again"):
        open_weights(path)


def test_no_flipped_bit_of_a_header_does_worse_than_be_refused(root: Path, tmp_path: Path) -> None:
    """A name or a digit may still make sense, but then the file is read without harm."""
    data = bytearray(imported(root, "llama", "int4").weights.read_bytes())
    count = len(open_weights(imported(root, "llama", "int4").weights))
    places = range(0, 8 + struct.unpack("<Q", data[:8])[0], 29)
    path, refused = tmp_path / WEIGHTS_NAME, 0
    for place in places:
        data[place] ^= 1 << 5
        path.write_bytes(data)
        data[place] ^= 1 << 5
        try:
            weights = open_weights(path)
        except ModelFileError:
            refused += 1
        else:
            assert len(weights) <= count
            for weight in weights.values():
                weight.dense(torch.float32, Scratch())
    assert refused > len(places) / 2
