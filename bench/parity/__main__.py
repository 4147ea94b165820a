"""Is it the same algorithm, and what do packed weights cost in loss?

python -m bench.parity [--quick] [--models DIR]

1. Steps of full-parameter MeZO with Gaussian z on a tiny model, against a dense textbook in float64 (textbook.py).
2. The two losses of a two-sided forward against those of two separate forwards, for each dtype of the weights.
3. Exact gradients in bfloat16 and in fp32, one layer at a time, against transformers' autograd in fp32.
4. The loss of int8 and int4 weights on the sample notes, which the model has not seen, minus that of bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import pocketllm
from bench.common import ours, textbook
from bench.common.harness import Limit, finish, parser, progress, start
from bench.common.shapes import SMOLLM2, ensure, models_folder
from bench.parity.gradients import worst_cosine
from pocketllm.engine.formats.model_folder import open_model_folder

#: How far two-sided and separate losses may be apart, relative, by the dtype of the weights: other sizes of a matrix
#: product add in another order, and packed weights are computed in bfloat16.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-3, "int8": 2e-3, "int4": 2e-3}
LIMITS = {
    "trajectory_rel_error": Limit(at_most=1e-6, always=True),
    "gradient_worst_cosine": Limit(at_least=0.99, always=True),
    "gradient_worst_cosine_float32": Limit(at_least=0.99, always=True),
} | {f"two_sided_rel_error_{dtype}": Limit(at_most=tolerance, always=True) for dtype, tolerance in TOLERANCES.items()}
#: The run that is compared. The rate moves the weights by a few per cent, so that a wrong step would show.
STEPS, SEED, EPSILON, RATE = 30, 7, 1e-3, 3e-4
_TINY = "llama-tiny"
_TINY_BATCH, _TINY_TOKENS = 4, 16
_BLOCK = 128  # tokens, of the sample notes
_TWO_SIDED_BLOCKS = 4
_QUICK_BLOCKS = 2
_BYTES = 256  # ids below this are in the tiny model's vocabulary

Ids = tuple[torch.Tensor, torch.Tensor]


def trajectory_errors(folder: Path) -> dict[str, float]:
    """How far our run on the tiny Llama in `folder` is from the textbook's, relative.

    losses: the largest difference of a loss; parameters: of a tensor, by norms, at the end; moved: how far the
    textbook's run moved them, all tensors together.
    """
    ids = torch.randint(0, _BYTES, (_TINY_BATCH, _TINY_TOKENS + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    settings: dict[str, Any] = {"steps": STEPS, "seed": SEED, "epsilon": EPSILON, "rate": RATE}
    run = ours.trajectory(folder, inputs, targets, **settings)
    names = list(run.parameters)
    reference = textbook.train(folder, inputs, targets, names=names, noise=ours.gaussian, **settings)
    mine, theirs = np.array(run.losses), np.array(reference.losses)
    return {
        "losses": float((np.abs(mine - theirs) / np.abs(theirs)).max()),
        "parameters": max(
            _distance({name: run.parameters[name]}, {name: value}) for name, value in reference.parameters.items()
        ),
        "moved": _distance(reference.parameters, reference.start),
    }


def _distance(mine: Mapping[str, NDArray[np.float64]], theirs: Mapping[str, NDArray[np.float64]]) -> float:
    """The norm of the difference over the norm of `theirs`."""
    difference = sum(float(np.square(mine[name] - value).sum()) for name, value in theirs.items())
    return float(np.sqrt(difference / sum(float(np.square(value).sum()) for value in theirs.values())))


def two_sided_error(folder: Path, ids: Ids, modes: Sequence[str]) -> float:
    """The largest relative difference between a two-sided forward's losses and two separate forwards'."""
    worst = 0.0
    for mode in modes:
        together = ours.two_sided_losses(folder, *ids, mode=mode, seed=SEED, epsilon=EPSILON)
        apart = ours.separate_losses(folder, *ids, mode=mode, seed=SEED, epsilon=EPSILON)
        worst = max(worst, *(abs(a - b) / abs(b) for a, b in zip(together, apart, strict=True)))
    return worst


def sample_blocks(folder: Path) -> Ids:
    """The sample notes in the model's own tokens, (blocks, tokens) ids and the next ids."""
    text = (Path(pocketllm.__file__).parent / "sample_notes.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(open_model_folder(folder).tokenizer()(text, add_special_tokens=False).input_ids)
    blocks = (len(tokens) - 1) // _BLOCK
    length = blocks * _BLOCK
    return tokens[:length].view(blocks, _BLOCK), tokens[1 : length + 1].view(blocks, _BLOCK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    shape = _TINY if options.quick else SMOLLM2
    with models_folder(options.models) as models:
        progress(f"{STEPS} steps against the textbook ...")
        errors = trajectory_errors(ensure(models, _TINY, "float32"))
        folders = {dtype: ensure(models, shape, dtype) for dtype in TOLERANCES}
        inputs, targets = sample_blocks(folders["bfloat16"])
        if options.quick:
            inputs, targets = inputs[:_QUICK_BLOCKS], targets[:_QUICK_BLOCKS]
        some = inputs[:_TWO_SIDED_BLOCKS], targets[:_TWO_SIDED_BLOCKS]
        progress("exact gradients against autograd ...")
        cosines = [worst_cosine(folders["bfloat16"], *some, dtype) for dtype in (torch.bfloat16, torch.float32)]
        sides, losses = {}, {}
        for dtype, folder in folders.items():
            progress(f"{folder.name}: one forward for both signs against two, and the loss on the sample notes ...")
            packed = dtype in ("int8", "int4")
            sides[dtype] = two_sided_error(folder, some, ["lora"] if packed else ["lora", "full"])
            losses[dtype] = ours.mean_loss(folder, inputs, targets)
    values: dict[str, float | None] = {
        "trajectory_rel_error": max(errors["losses"], errors["parameters"]),
        "gradient_worst_cosine": cosines[0],
        "gradient_worst_cosine_float32": cosines[1],
        "int8_loss_delta": losses["int8"] - losses["bfloat16"],
        "int4_loss_delta": losses["int4"] - losses["bfloat16"],
        **{f"two_sided_rel_error_{dtype}": error for dtype, error in sides.items()},
    }
    raw = {"losses": losses, "trajectory": errors}
    return finish("parity", [], values=values, limits=LIMITS, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.parity", "The engine against a textbook, and packed weights against bfloat16.")
    made.add_argument("--models", type=Path, help="keep the models in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
