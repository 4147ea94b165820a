from statistics import fmean
from typing import Any

import pytest
import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.activation_pca import PASSES, adapter_along_activations
from tests.support.models.learning import ALL_ROWS, TARGETS, equal, random_blocks, some_blocks

#: Which row goes with which others changes the order of a float32 sum, and three passes sharpen what differs.
SUM_TOLERANCE = 1e-3

#: Of what the best rows capture, on average. In a random model no directions stand out, so three passes do not quite
#: find them, from some starts less than from others.
CAPTURED, STARTS = 0.97, 8


def adapter_on(model: LanguageModel, *buckets: Batch, **changes: Any) -> Adapter:
    given: dict[str, Any] = {"targets": TARGETS, "rank": 4, "seed": 0, "micro_batch": ALL_ROWS} | changes
    return adapter_along_activations(model, buckets, **given)


@torch.inference_mode()
def test_rows_span_the_strongest_directions_of_the_inputs(tiny: ModelFolder) -> None:
    model, buckets = LanguageModel(tiny), (some_blocks(8), some_blocks(3, 8))
    path = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    hook = model.linears[path].register_forward_hook(lambda _m, x, _y: seen.append(x[0].flatten(0, -2)))
    for blocks in buckets:
        model.hidden(blocks)
    hook.remove()
    x = torch.cat(seen)
    exact = torch.linalg.svd(x, full_matrices=False).Vh[:4]
    for micro_batch in (3, ALL_ROWS):
        captured = []
        for seed in range(STARTS):
            adapter = adapter_on(model, *buckets, seed=seed, micro_batch=micro_batch)
            rows = torch.linalg.qr(adapter.a[path].t()).Q
            captured.append(float((x @ rows).square().sum() / (x @ exact.t()).square().sum()))
        assert fmean(captured) > CAPTURED, micro_batch


@torch.inference_mode()
def test_a_fresh_adapter_changes_nothing_and_is_scaled_to_the_outputs(tiny: ModelFolder) -> None:
    model, blocks = LanguageModel(tiny), some_blocks(8)
    adapter = adapter_on(model, blocks)
    assert set(adapter.a) == {path for path in model.linears if path.rpartition(".")[2] in TARGETS}
    assert adapter.scaling == 1.0
    before = model.block_losses(blocks)
    model.set_parameters(adapter)
    assert model.block_losses(blocks) == before
    path = "model.layers.0.self_attn.q_proj"
    ratios: list[torch.Tensor] = []
    hook = model.linears[path].register_forward_hook(
        lambda _m, x, y: ratios.append((x[0] @ adapter.a[path].t()).square().sum(-1).mean() / y.square().mean())
    )
    model.hidden(blocks)
    hook.remove()
    assert 0.5 < float(ratios[0].sqrt()) < 2


@torch.inference_mode()
def test_is_deterministic_and_does_not_look_through_an_adapter_in_use(tiny: ModelFolder) -> None:
    model = LanguageModel(tiny)
    one = adapter_on(model, some_blocks(8))
    for b in one.b.values():
        b.fill_(1.0)
    model.set_parameters(one)
    two = adapter_on(model, some_blocks(8))
    assert all(torch.equal(one.a[path], two.a[path]) for path in one.a)
    assert equal(two, adapter_on(LanguageModel(tiny), some_blocks(8)))


@torch.inference_mode()
def test_how_many_rows_go_together_makes_no_difference(tiny: ModelFolder) -> None:
    model, buckets = LanguageModel(tiny), (random_blocks(5), random_blocks(3, 7))
    one, two = (adapter_on(model, *buckets, micro_batch=rows) for rows in (1, ALL_ROWS))
    for path, a in one.a.items():
        size = float(a.abs().max())
        # A direction's sign is free.
        signs = (a * two.a[path]).sum(1, keepdim=True).sign()
        assert torch.allclose(a, two.a[path] * signs, rtol=0, atol=SUM_TOLERANCE * size), path


@torch.inference_mode()
def test_rank_above_the_width_is_filled_up_with_nothing(tiny: ModelFolder) -> None:
    adapter = adapter_on(LanguageModel(tiny), some_blocks(8), targets=["q_proj"], rank=40)
    a = adapter.a["model.layers.0.self_attn.q_proj"]
    assert a.shape == (40, 32)
    assert a[32:].count_nonzero() == 0
    assert a.isfinite().all()


@torch.inference_mode()
def test_tells_of_each_pass(tiny: ModelFolder) -> None:
    told: list[int] = []
    adapter_on(LanguageModel(tiny), some_blocks(2), rank=2, on_pass=told.append)
    assert told == list(range(1, PASSES + 1))


def test_targets_that_the_model_has_not_are_answered_with_those_that_it_has(tiny: ModelFolder) -> None:
    with pytest.raises(BadRequest, match=r"training\.targets \(query, c_attn\).*Name some.*down_proj, .*q_proj"):
        adapter_on(LanguageModel(tiny), some_blocks(1), targets=["query", "c_attn"])
