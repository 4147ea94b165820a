"""Small real pieces of learning that several tests share."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, pack
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.noise import Direction, Kind, Perturbation
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.estimator import directions
from tests.support.models.tiny_architectures import MASKED, architecture_folder, dense_tensors
from tests.support.paths import ROOT

TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
#: More rows than any test has: all pass through the layers together.
ALL_ROWS = 1000
#: A loss in float32 is a sum of some hundred numbers of size 1 to 10, in another order than the other's.
FP32_TOLERANCE = 2e-6


def some_adapter(
    model: LanguageModel,
    *,
    rank: int = 4,
    alpha: float = 4.0,
    size: float = 0.1,
    targets: Sequence[str] | None = TARGETS,
) -> Adapter:
    """An adapter that changes something: A and B of random signs; without targets for every linear map."""
    a, b = {}, {}
    for number, (path, linear) in enumerate(model.linears.items()):
        if targets is None or path.rpartition(".")[2] in targets:
            a[path] = Direction(seed=1, step=1).of(number, (rank, linear.in_features)) * 0.2
            b[path] = Direction(seed=1, step=2).of(number, (linear.out_features, rank)) * size
    return Adapter(base=model.folder.manifest.name, alpha=alpha, a=a, b=b)


def some_blocks(count: int = 12, length: int = 16) -> Batch:
    """Blocks of a text with a pattern to learn."""
    pattern = [3 + (7 * i) % 40 for i in range(count * length // 2)]
    return pack([pattern, pattern], length=length, eos=0)[slice(0, count)]


def random_blocks(count: int = 4, length: int = 20, *, lengths: Sequence[int] | None = None) -> Batch:
    """Blocks of random tokens, in which every third position, and what is behind a row's length, predicts nothing."""
    generator = torch.Generator().manual_seed(count + length)
    inputs, targets = torch.randint(3, 250, (2, count, length), generator=generator)
    targets[:, 1::3] = IGNORE_INDEX
    if lengths is None:
        return Batch(inputs=inputs, targets=targets)
    real = torch.tensor(lengths)
    targets[torch.arange(length) >= real[:, None]] = IGNORE_INDEX
    return Batch(inputs=inputs, targets=targets, lengths=real)


def equal(a: Adapter, b: Adapter) -> bool:
    """Whether two adapters' tensors are the same, bit for bit."""
    return all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[path], theirs[path]) for path in ours)
        for ours, theirs in ((a.a, b.a), (a.b, b.b))
    )


def sides(distance: float = 0.01, *, probes: int = 1, kind: Kind = "rademacher") -> list[Perturbation]:
    """Both points of each of a step's probes."""
    along = directions(1, 2, probes, kind)
    return [Perturbation(direction=z, distance=side * distance) for z in along for side in (1, -1)]


def mean_loss(model: LanguageModel, blocks: Batch) -> float:
    """The loss in nats per target at the parameters in use, by `block_losses`."""
    counts = blocks.target_counts.tolist()
    total: float = sum(loss * count for loss, count in zip(model.block_losses(blocks), counts, strict=True))
    return total / blocks.tokens


def losses_moved(
    model: LanguageModel, theta: Adapter | FullWeights, points: Sequence[Perturbation], blocks: Batch
) -> list[float]:
    """The loss at each point by really moving theta there; it is put back exactly."""
    trained = theta.b if isinstance(theta, Adapter) else theta.tensors
    losses = []
    for point in points:
        before = copy.deepcopy(trained)
        theta.add_scaled(point.direction, point.distance)
        model.set_parameters(theta)
        losses.append(mean_loss(model, blocks))
        for name, tensor in trained.items():
            tensor.copy_(before[name])
    model.set_parameters(theta)
    return losses


@cache
def source_folder(root: Path, architecture: str) -> Path:
    """The Hugging Face folder of a tiny architecture, written once for each `root`; tests do not change it."""
    return architecture_folder(architecture, root / "sources" / architecture)


@cache
def imported(root: Path, architecture: str, dtype: str) -> ModelFolder:
    """The same, imported; also once."""
    models = root / "models" / architecture
    import_model(str(source_folder(root, architecture)), models, name=dtype, dtype=dtype)
    return open_model_folder(models / dtype)


@cache
def transformers_model(folder: Path, *, is_mlm: bool = False, dtype: torch.dtype = torch.float64) -> Any:
    """The model in a Hugging Face folder, with torch's attention: transformers' plainest one rounds to float32."""
    auto: Any = AutoModelForMaskedLM if is_mlm else AutoModelForCausalLM
    with torch.inference_mode(False):  # a test that takes gradients may be the next to use it
        return auto.from_pretrained(folder, attn_implementation="sdpa", dtype=dtype).eval().requires_grad_(False)


def family(root: Path, architecture: str) -> Any:
    """transformers' own model of a tiny architecture, in float64; tests do not change it."""
    return transformers_model(source_folder(root, architecture), is_mlm=architecture in MASKED)


def family_as_stored(root: Path, architecture: str, dtype: str) -> Any:
    """The same with the numbers that the model imported as `dtype` stands for."""
    changed = copy.deepcopy(family(root, architecture))
    changed.load_state_dict(dense_tensors(imported(root, architecture, dtype).path), strict=False)
    changed.tie_weights()
    return changed


def reference_token_losses(network: Callable[..., Any], blocks: Batch) -> torch.Tensor:
    """(blocks, tokens): the loss of each target as transformers and torch give it."""
    mask = {}
    if blocks.lengths is not None:
        mask["attention_mask"] = (torch.arange(blocks.inputs.shape[1]) < blocks.lengths[:, None]).long()
    logits = network(input_ids=blocks.inputs, **mask).logits
    if blocks.label_ids is not None:
        others = torch.ones(logits.shape[-1], dtype=torch.bool).index_fill_(0, torch.tensor(blocks.label_ids), False)
        logits = logits.masked_fill(others, float("-inf"))
    return F.cross_entropy(logits.transpose(1, 2), blocks.targets, ignore_index=IGNORE_INDEX, reduction="none")


def reference_losses(network: Callable[..., Any], blocks: Batch) -> list[float]:
    """Each block's mean loss of these."""
    sums = reference_token_losses(network, blocks).sum(1)
    return sums.div(blocks.target_counts.clamp(min=1)).tolist()


def fresh_process(program: str, *arguments: object) -> Any:
    """Run a program in a Python of its own, and give what the last line that it prints says in JSON."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
