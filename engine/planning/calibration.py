"""Measures a model on this device: the best compute dtype for its layers, and the speed.

Half precision takes half the memory, but is slower than fp32 on processors without instructions for it, and overflows
in a few models. So each dtype is timed, and a fast one must reproduce fp32's loss.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files

import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.data.examples import Example, encode
from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.formats.tokenizer import eos_id, lean_tokenizer, start_ids
from pocketllm.engine.planning.shapes import read_shapes
from pocketllm.engine.streamed.model import LanguageModel

#: Rows of the timed matrix product: a batch of eight blocks of 128 tokens.
ROWS = 1024
#: Rows of the products that warm up and show whether ROWS would take too long.
_FEW_ROWS = 32
#: How long, and how many times at most, to repeat a product; the best time counts.
_REPEAT_SECONDS, _MAX_REPEATS = 0.2, 50
#: Longer products are estimated from _FEW_ROWS: emulated ones can take minutes.
_LONG_SECONDS = 4.0
#: A half-precision dtype must be this many times as fast as fp32 to be used.
WORTHWHILE = 1.15
#: bf16 and fp16 count as equally fast when the slower one has this part of the other's speed.
TIE = 0.9
#: The largest deviation of a dtype's loss from fp32's, in nats per token.
TOLERANCE = 0.02
#: Tokens for the loss.
TOKENS = 96
#: Copies of them in the timed forward pass.
TIMED_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measurements of a model on a device."""

    compute_dtype: str  #: the best one for its layers, one of FLOAT_DTYPES
    loss_deviation: float  #: of that dtype's mean loss from fp32's, in nats per token
    gemm_flops: float  #: of matrix products in that dtype; a multiplication and an addition count as two
    gemm_flops_by_dtype: dict[str, float]  #: the same for each dtype that the device supports
    forward_seconds: float  #: of a forward pass with loss
    forward_tokens: int  #: its number of tokens


def calibrate(model_folder: ModelFolder, clock: Callable[[], float]) -> Calibration:
    """Measure the model on this device, with torch's current number of threads. clock: returns seconds.

    Raises ModelFileError when the model's loss is not finite even in fp32, or its files are broken; and
    UnsupportedModel.
    """
    flops = _gemm_flops_by_dtype(model_folder, clock)
    blocks = passage(model_folder)
    exact = mean_loss(model_folder, blocks, "float32")
    if not math.isfinite(exact):
        raise ModelFileError(
            f"The model in {model_folder.path} has no finite loss, not even in float32: its weights are damaged. "
            "Get the model again."
        )
    dtype, deviation = choose_dtype(
        flops,
        stored=model_folder.manifest.dtype,
        exact=exact,
        loss_in=lambda dtype: mean_loss(model_folder, blocks, dtype),
    )
    several = blocks.repeat(TIMED_ROWS)
    return Calibration(
        compute_dtype=dtype,
        loss_deviation=deviation,
        gemm_flops=flops[dtype],
        gemm_flops_by_dtype=flops,
        forward_seconds=_forward_seconds(model_folder, several, dtype, clock),
        forward_tokens=several.inputs.numel(),
    )


def choose_dtype(
    flops: dict[str, float], *, stored: str, exact: float, loss_in: Callable[[str], float]
) -> tuple[str, float]:
    """The compute dtype, and the deviation of its loss from `exact`, fp32's.

    flops: the speed of each dtype, including float32. stored: the dtype of the weights on disk. loss_in: returns the
    model's mean loss in a dtype; if it raises RuntimeError (no such operation), the dtype is not used.
    """
    for dtype in _by_preference(flops, stored):
        with suppress(RuntimeError):
            deviation = abs(loss_in(dtype) - exact)
            if deviation <= TOLERANCE:  # never true of nan
                return dtype, deviation
    return "float32", 0.0


@torch.inference_mode()
def mean_loss(model_folder: ModelFolder, blocks: Batch, dtype: str) -> float:
    """The model's mean loss on a block, in nats per target, with compute dtype `dtype`."""
    return LanguageModel(model_folder, dtype=getattr(torch, dtype), release_pages=True).block_losses(blocks)[0]


@torch.inference_mode()
def _forward_seconds(model_folder: ModelFolder, blocks: Batch, dtype: str, clock: Callable[[], float]) -> float:
    """The time of a forward pass on these blocks; the second one's, unless the first was long."""
    model = LanguageModel(model_folder, dtype=getattr(torch, dtype), release_pages=True)

    def seconds() -> float:
        begun = clock()
        model.block_losses(blocks, micro_batch=len(blocks))
        return clock() - begun

    first = seconds()
    return first if first > _LONG_SECONDS else min(first, seconds())


def _by_preference(flops: dict[str, float], stored: str) -> list[str]:
    """The half-precision dtypes that are fast enough, best first."""
    least = WORTHWHILE * flops["float32"]
    narrow = [dtype for dtype in ("bfloat16", "float16") if flops.get(dtype, 0.0) >= least]
    fastest = max((flops[dtype] for dtype in narrow), default=0.0)
    favourite = stored if stored in narrow else "bfloat16"
    tied = [dtype for dtype in narrow if flops[dtype] >= TIE * fastest]
    return sorted(narrow, key=lambda dtype: (dtype not in tied, dtype != favourite, -flops[dtype]))


def passage(model_folder: ModelFolder) -> Batch:
    """One block of at most TOKENS tokens of plain English, masked for a masked language model."""
    tokenizer = lean_tokenizer(model_folder)
    text = files("pocketllm").joinpath("ordinary_text.txt").read_text(encoding="utf-8")
    blocks = encode(
        [Example(text)],
        tokenizer,
        length=TOKENS,
        eos=eos_id(tokenizer),
        start=start_ids(tokenizer),
        is_mlm=model_folder.manifest.is_mlm,
    )[0]
    return blocks[slice(0, 1)]


def _gemm_flops_by_dtype(model_folder: ModelFolder, clock: Callable[[], float]) -> dict[str, float]:
    """The speed of the most common product of a step, in each dtype that this device supports."""
    linears = list(read_shapes(model_folder).linears.values())
    if not linears:
        raise UnsupportedModel(f"{model_folder.path} holds a model without linear maps. Choose another model.")
    shape = max(linears, key=lambda shape: linears.count(shape) * math.prod(shape))
    flops = {"float32": gemm_flops(shape, torch.float32, clock)}
    for dtype in ("bfloat16", "float16"):
        with suppress(RuntimeError):  # not supported by this build of torch
            flops[dtype] = gemm_flops(shape, getattr(torch, dtype), clock)
    return flops


@torch.inference_mode()
def gemm_flops(shape: tuple[int, int], dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """The speed of a product with a weight of this shape (out, in), in operations a second."""
    out_features, in_features = shape
    # Random numbers: with constants, a processor draws less power and runs faster.
    random = torch.Generator().manual_seed(0)
    weight = torch.randn((out_features, in_features), generator=random).to(dtype)
    rows = torch.randn((ROWS, in_features), generator=random).to(dtype)
    into = torch.empty((ROWS, out_features), dtype=dtype)

    def seconds(count: int) -> float:
        begun = clock()
        torch.mm(rows[:count], weight.t(), out=into[:count])
        return max(clock() - begun, 1e-9)  # a coarse clock may stand still for a tiny product

    # The first product of a dtype also compiles it, and starts threads: alone, it would pass for an emulated one.
    best = min(seconds(_FEW_ROWS), seconds(_FEW_ROWS)) * ROWS / _FEW_ROWS
    if best <= _LONG_SECONDS:
        best, end = seconds(ROWS), clock() + _REPEAT_SECONDS
        for _ in range(_MAX_REPEATS):
            if clock() >= end:
                break
            best = min(best, seconds(ROWS))
    return 2.0 * ROWS * out_features * in_features / best
