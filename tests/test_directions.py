import torch

from pocketllm.mezo.directions import adapter_along_activations
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel
from tests.learning import TARGETS, equal, some_blocks


@torch.inference_mode()
def test_rows_span_the_strongest_directions_of_the_inputs(tiny: NativeModel) -> None:
    model, blocks = LanguageModel(tiny), some_blocks(8)
    adapter = adapter_along_activations(model, blocks, targets=TARGETS, rank=4, seed=0)
    path = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    hook = model.linears[path].base.register_forward_hook(lambda _m, x, _y: seen.append(x[0].flatten(0, -2)))
    model.hidden(blocks.inputs)
    hook.remove()
    x = torch.cat(seen)
    exact = torch.linalg.svd(x, full_matrices=False).Vh[:4]
    rows = torch.linalg.qr(adapter.a[path].t()).Q
    captured = (x @ rows).square().sum() / (x @ exact.t()).square().sum()
    assert float(captured) > 0.99


@torch.inference_mode()
def test_a_fresh_adapter_changes_nothing_and_is_scaled_to_the_outputs(tiny: NativeModel) -> None:
    model, blocks = LanguageModel(tiny), some_blocks(8)
    adapter = adapter_along_activations(model, blocks, targets=TARGETS, rank=4, seed=0)
    assert set(adapter.a) == {path for path in model.linears if path.rpartition(".")[2] in TARGETS}
    before = model.block_losses(blocks)
    model.use(adapter)
    assert model.block_losses(blocks) == before
    path = "model.layers.0.self_attn.q_proj"
    ratios: list[torch.Tensor] = []
    hook = model.linears[path].base.register_forward_hook(
        lambda _m, x, y: ratios.append((x[0] @ adapter.a[path].t()).square().sum(-1).mean() / y.square().mean())
    )
    model.hidden(blocks.inputs)
    hook.remove()
    assert 0.5 < float(ratios[0].sqrt()) < 2


@torch.inference_mode()
def test_is_deterministic(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    one, two = (adapter_along_activations(model, some_blocks(8), targets=TARGETS, rank=4, seed=0) for _ in range(2))
    assert equal(one, two)


@torch.inference_mode()
def test_rank_above_the_width_is_filled_up_with_nothing(tiny: NativeModel) -> None:
    adapter = adapter_along_activations(LanguageModel(tiny), some_blocks(8), targets=["q_proj"], rank=40, seed=0)
    a = adapter.a["model.layers.0.self_attn.q_proj"]
    assert a.shape == (40, 32)
    assert a[32:].count_nonzero() == 0
    assert a.isfinite().all()
