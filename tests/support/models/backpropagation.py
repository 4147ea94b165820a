"""Gradients by transformers' own autograd through a whole model: what those of pocketllm.backprop are compared with."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pocketllm.backprop.gradients import LayerwiseGradients, PassSize, Sums
from pocketllm.backprop.method import adapted_paths
from pocketllm.engine.data.batches import IGNORE_INDEX, Batch
from pocketllm.engine.data.examples import Example, Row, bucketed, encode
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import reference_token_losses, some_adapter
from tests.support.models.tiny_architectures import masking_tokenizer
from tests.support.models.tiny_models import byte_tokenizer

#: Path of a linear map -> dLoss/dA and dLoss/dB.
Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]
#: Blocks with their weight in the objective.
Parts = Sequence[tuple[Batch, float]]

#: The words of two labels: the softmax of a labelled text runs over these alone.
LABEL_IDS = (60, 70)
EXAMPLES: dict[str, list[Example]] = {
    "plain": [Example(f"Wind west, glass {number} rising.") for number in range(4)],
    "completion": [Example(f"Tea number {number}:", " hot" * (number % 2 + 1)) for number in range(4)],
    "chat": [
        Example("", messages=[{"role": "user", "content": f"Hm {number}"}, {"role": "assistant", "content": "Aye."}])
        for number in range(3)
    ],
    "label": [],  # see `labelled`
}


def buckets_of(kind: str, *, is_mlm: bool) -> list[Batch]:
    """Small examples of one kind, encoded as a job does."""
    if kind == "label":
        return labelled()
    tokenizer = masking_tokenizer() if is_mlm else byte_tokenizer()
    return list(encode(EXAMPLES[kind], tokenizer, length=24 if kind == "plain" else 48, eos=2, is_mlm=is_mlm))


def labelled() -> list[Batch]:
    """Texts of three lengths with one target each, as the benches alone learn them."""
    rows = []
    for number, length in enumerate((13, 17, 21)):
        targets = np.full(length, IGNORE_INDEX, dtype=np.int64)
        targets[-2] = LABEL_IDS[number % 2]
        rows.append(Row(np.arange(20 + number, 20 + number + length, dtype=np.int64), targets))
    return list(bucketed(rows, length=48, pad=2, label_ids=LABEL_IDS))


def layers_adapter(model: LanguageModel, *, dtype: torch.dtype = torch.float64) -> Adapter:
    """An adapter of every linear map of the layers whose factors change something."""
    whole = some_adapter(model, targets=None, rank=3, alpha=6.0)
    whole.a = {path: whole.a[path].to(dtype) for path in adapted_paths(model)}
    whole.b = {path: whole.b[path].to(dtype) for path in whole.a}
    return whole


def adapted(network: Any, adapter: Adapter) -> tuple[Any, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A copy of a model with an adapter, and the factors as leaves in the model's dtype."""
    network = copy.deepcopy(network)
    factors = {}
    for path in adapter.a:
        linear = network.get_submodule(path)
        a, b = (factor[path].to(linear.weight.dtype).clone().requires_grad_() for factor in (adapter.a, adapter.b))
        factors[path] = (a, b)

        def forward(x: torch.Tensor, inner: Any = linear.forward, a: Any = a, b: Any = b) -> torch.Tensor:
            total: torch.Tensor = inner(x) + x @ a.t() @ b.t() * adapter.scaling
            return total

        linear.forward = forward
    return network, factors


def whole_loss(network: Any, blocks: Batch) -> torch.Tensor:
    """Mean loss in nats per target, by transformers and torch."""
    return reference_token_losses(network, blocks).sum() / blocks.tokens


def whole_gradients(network: Any, adapter: Adapter, parts: Parts) -> tuple[list[float], Gradients]:
    """Each part's loss, and the gradients of their weighted sum by one backward pass through everything.

    transformers' norms round to float32 whatever the model computes in, also on the way back. So errors have to be of
    the size that they have in pocketllm.backprop: a target of the first part counts as one.
    """
    network, factors = adapted(network, adapter)
    unit = parts[0][0].tokens / parts[0][1]
    with torch.enable_grad():
        losses = [whole_loss(network, blocks) for blocks, _ in parts]
        total = sum(loss * weight for loss, (_, weight) in zip(losses, parts, strict=True))
        leaves = [leaf for pair in factors.values() for leaf in pair]
        found = torch.autograd.grad(total * unit, leaves)  # type: ignore[arg-type]
    return [float(loss.detach()) for loss in losses], {
        path: (found[2 * i] / unit, found[2 * i + 1] / unit) for i, path in enumerate(factors)
    }


def layerwise(model: LanguageModel, adapter: Adapter, size: PassSize, parts: Parts) -> tuple[list[float], Gradients]:
    """The same by LayerwiseGradients."""
    model.set_parameters(adapter)
    gradients, sums = LayerwiseGradients(model, adapter, size), Sums()
    while not gradients(parts, sums):
        pass
    losses = [float(loss) / max(1, blocks.tokens) for loss, (blocks, _) in zip(sums["losses"], parts, strict=True)]
    return losses, {path: (sums[f"a.{path}"], sums[f"b.{path}"]) for path in adapter.a}


def worst_error(found: Gradients, expected: Gradients) -> float:
    """The largest relative error of a factor's gradient."""
    assert found.keys() == expected.keys()
    return max(
        float((ours.double() - theirs.double()).norm() / theirs.double().norm())
        for path in expected
        for ours, theirs in zip(found[path], expected[path], strict=True)
    )
