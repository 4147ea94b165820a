"""What enters a layer, kept in a file: computed once, and again where the file does not hold it whole."""

import os
import stat
from collections import Counter
from pathlib import Path

import pytest
import torch

from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.loss import NO_TARGET
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel
from pocketllm.mezo.trunk import TrunkCache
from tests.learning import ALL_ROWS, random_blocks

WIDTH, LAYER = 6, 3
PLENTY = 10**6
#: Of different sizes: the last is the longest, the second the shortest.
BATCHES = (random_blocks(4, 5), random_blocks(1, 3), random_blocks(4, 5), random_blocks(3, 9))
#: What stands in front of a slot's states, and how many bytes the states of the largest batch take, in float32.
HEAD_BYTES, SLOT_BYTES = 8, 8 + 3 * 9 * WIDTH * 4


class Layers:
    """A plain stand-in for the lower layers, that counts how often it is asked for each batch."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.asked = Counter[int]()
        self._dtype = dtype

    def __call__(self, blocks: Blocks, layer: int) -> torch.Tensor:
        self.asked[next(number for number, batch in enumerate(BATCHES) if batch is blocks)] += 1
        return (blocks.inputs[:, :, None] * torch.linspace(-1, 1, WIDTH) + layer).to(self._dtype)


def cache(file: Path, layers: Layers, *, most_bytes: int = PLENTY, dtype: torch.dtype = torch.float32) -> TrunkCache:
    return TrunkCache(BATCHES, layer=LAYER, entering=layers, width=WIDTH, dtype=dtype, file=file, most_bytes=most_bytes)


def check(trunk: TrunkCache, dtype: torch.dtype = torch.float32) -> None:
    """Each batch as it is, with what Layers makes of it."""
    for number, batch in enumerate(BATCHES):
        found = trunk.at(number)
        assert torch.equal(found.inputs, batch.inputs)
        assert torch.equal(found.targets, batch.targets)
        assert found.entering is not None
        assert found.entering.layer == LAYER
        expected = Layers(dtype)(batch, LAYER)
        assert found.entering.states.dtype == dtype
        assert torch.equal(found.entering.states, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inference", [False, True])
def test_gives_what_was_computed_and_computes_it_once(tmp_path: Path, dtype: torch.dtype, inference: bool) -> None:
    layers = Layers(dtype)
    with torch.inference_mode(inference), cache(tmp_path / "trunk.bin", layers, dtype=dtype) as trunk:
        assert len(trunk) == 4
        assert not layers.asked  # only when a batch is wanted
        for _ in range(3):
            check(trunk, dtype)
    assert layers.asked == Counter([0, 1, 2, 3])


def test_batches_without_an_order_of_asking(tmp_path: Path) -> None:
    layers = Layers()
    with cache(tmp_path / "trunk.bin", layers) as trunk:
        for number in (3, 1, 3, 0, 1):  # the slots of 0 and 2 are holes in the file meanwhile
            trunk.at(number)
        check(trunk)
    assert layers.asked == Counter([0, 1, 2, 3])


def test_survives_reopening(tmp_path: Path) -> None:
    first, second = Layers(), Layers()
    with cache(tmp_path / "trunk.bin", first) as trunk:
        check(trunk)
    with cache(tmp_path / "trunk.bin", second) as trunk:
        check(trunk)
    assert not second.asked


def test_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with cache(tmp_path / "trunk.bin", Layers()) as trunk:
            trunk.at(0)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "trunk.bin").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("place", "torn"),
    [
        (0, 0),  # the mark
        (HEAD_BYTES - 1, 0),  # the checksum
        (HEAD_BYTES, 0),
        (SLOT_BYTES + HEAD_BYTES + 7, 1),
        (3 * SLOT_BYTES + SLOT_BYTES - 1, 3),  # the very last
    ],
)
def test_a_slot_with_a_flipped_byte_is_computed_again(tmp_path: Path, place: int, torn: int) -> None:
    file = tmp_path / "trunk.bin"
    with cache(file, Layers()) as trunk:
        check(trunk)
    assert file.stat().st_size == 4 * SLOT_BYTES
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    layers = Layers()
    with cache(file, layers) as trunk:
        check(trunk)
        check(trunk)
    assert layers.asked == Counter([torn])


@pytest.mark.parametrize(
    ("size", "torn"),
    [
        (4 * SLOT_BYTES - 1, [3]),
        (3 * SLOT_BYTES + 5, [3]),  # within the head
        (2 * SLOT_BYTES, [2, 3]),
        (0, [0, 1, 2, 3]),
    ],
)
def test_a_truncated_file_is_filled_up_again(tmp_path: Path, size: int, torn: list[int]) -> None:
    file = tmp_path / "trunk.bin"
    with cache(file, Layers()) as trunk:
        check(trunk)
    os.truncate(file, size)
    layers = Layers()
    with cache(file, layers) as trunk:
        check(trunk)
        check(trunk)
    assert layers.asked == Counter(torn)
    assert file.stat().st_size == 4 * SLOT_BYTES


def test_a_file_of_zeros_or_garbage_is_none(tmp_path: Path) -> None:
    for byte in (b"\0", b"\xff", b"P"):
        (tmp_path / "trunk.bin").write_bytes(byte * 5 * SLOT_BYTES)
        layers = Layers()
        with cache(tmp_path / "trunk.bin", layers) as trunk:
            check(trunk)
        assert layers.asked == Counter([0, 1, 2, 3])


@pytest.mark.parametrize(("most_bytes", "slots"), [(0, 0), (SLOT_BYTES - 1, 0), (2 * SLOT_BYTES + 5, 2)])
def test_batches_beyond_the_most_bytes_are_computed_each_time(tmp_path: Path, most_bytes: int, slots: int) -> None:
    file, layers = tmp_path / "trunk.bin", Layers()
    with cache(file, layers, most_bytes=most_bytes) as trunk:
        check(trunk)
        check(trunk)
    assert layers.asked == Counter({number: 1 if number < slots else 2 for number in range(4)})
    assert file.stat().st_size <= most_bytes


def test_a_full_disk_costs_time_and_nothing_else() -> None:
    layers = Layers()
    with cache(Path("/dev/full"), layers) as trunk:
        check(trunk)
        check(trunk)
    assert layers.asked == Counter(dict.fromkeys(range(4), 2))


def test_no_folder_is_the_callers_affair(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        cache(tmp_path / "nowhere" / "trunk.bin", Layers())


@torch.inference_mode()
def test_the_losses_of_cached_batches_are_the_models(tiny_bf16: NativeModel, tmp_path: Path) -> None:
    model = LanguageModel(tiny_bf16)
    batches = (random_blocks(3), random_blocks(2, 7))
    batches[1].targets[0] = NO_TARGET
    with TrunkCache(
        batches,
        layer=1,
        entering=lambda blocks, layer: model.entering(blocks, layer, ALL_ROWS),
        width=32,
        dtype=model.walk.dtype,
        file=tmp_path / "trunk.bin",
        most_bytes=PLENTY,
    ) as trunk:
        for _ in range(2):
            for number, batch in enumerate(batches):
                assert model.block_losses(trunk.at(number)) == model.block_losses(batch)
