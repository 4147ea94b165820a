"""Our model against transformers' and PEFT's own."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache

from pocketllm.mezo.errors import AdapterError
from pocketllm.mezo.estimator import moved
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel
from tests.learning import some_adapter, some_blocks
from tests.tiny_models import IDS

#: fp32 sums in another order.
FP32_TOLERANCE = 1e-5
#: One rounding of a bf16 logit of size 1 is 2^-8; a few of them add up on the way.
BF16_TOLERANCE = 3e-2


def our_logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.hidden(IDS) @ model.network.get_output_embeddings().weight.t()
        return logits.float()


def test_logits_equal_transformers(tiny: NativeModel) -> None:
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)(IDS).logits
    assert torch.allclose(our_logits(LanguageModel(tiny)), theirs, atol=FP32_TOLERANCE)


# PEFT 0.21 asks transformers 5.24 under a name that the latter has deprecated.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("fixture", "tolerance"), [("tiny", FP32_TOLERANCE), ("tiny_bf16", BF16_TOLERANCE)])
def test_peft_loads_our_adapter_and_gives_our_logits(
    fixture: str, tolerance: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    native: NativeModel = request.getfixturevalue(fixture)
    model = LanguageModel(native)
    adapter = some_adapter(model, rank=4, alpha=6.0)
    adapter.save(tmp_path / "adapter")

    base = AutoModelForCausalLM.from_pretrained(native.folder, dtype=model.network.dtype)
    with torch.inference_mode():
        unchanged = base(IDS).logits.float()
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits.float()
    model.use(adapter)
    ours = our_logits(model)
    assert torch.allclose(ours, theirs, atol=tolerance)
    # The adapter does much more than the tolerance.
    assert float((ours - unchanged).abs().max()) > 20 * tolerance


def test_parameters_are_the_files_own_pages(tiny: NativeModel) -> None:
    views = tiny.tensors()
    model = LanguageModel(tiny)
    weight = model.linears["model.layers.0.self_attn.q_proj"].base.weight
    assert weight.data_ptr() == views["model.layers.0.self_attn.q_proj.weight"].data_ptr()
    assert model.network.get_output_embeddings().weight.data_ptr() == views["model.embed_tokens.weight"].data_ptr()


@torch.inference_mode()
def test_two_sided_losses_equal_two_separate_forwards(tiny: NativeModel) -> None:
    model, batch = LanguageModel(tiny), some_blocks(4)
    adapter = some_adapter(model)
    points = [moved(adapter.parameters(), 0, 1, distance) for distance in (0.05, -0.05)]
    together = model.losses_at(adapter, batch, points)
    apart = [model.losses_at(adapter, batch, [point])[0] for point in points]
    assert together == pytest.approx(apart, rel=1e-6)
    assert abs(together[0] - together[1]) > 1e-4


@torch.inference_mode()
def test_block_losses_and_batch_loss_agree(tiny: NativeModel) -> None:
    model, blocks = LanguageModel(tiny), some_blocks(11)
    adapter = some_adapter(model)
    batch_loss = model.losses_at(adapter, blocks, [adapter.parameters()])[0]
    model.use(adapter)
    each = model.block_losses(blocks)
    counts = blocks.target_counts.tolist()
    mean = sum(loss * count for loss, count in zip(each, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(batch_loss, rel=1e-5)


@torch.inference_mode()
def test_next_logits_with_a_cache_equal_one_forward(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    model.use(some_adapter(model))
    cache = DynamicCache(config=model.network.config)
    for start in (0, 5, 7):
        logits = model.next_logits(IDS[:, start : {0: 5, 5: 7, 7: 8}[start]], cache)
    assert torch.allclose(logits, our_logits(model)[0, -1], atol=FP32_TOLERANCE)


def test_base_is_untouched_by_an_adapter_that_was_used(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    before = our_logits(model)
    model.use(some_adapter(model))
    assert not torch.equal(our_logits(model), before)
    model.use(None)
    assert torch.equal(our_logits(model), before)


def test_adapter_of_another_model_is_refused(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    adapter = some_adapter(model)
    adapter.a["model.layers.99.mlp.down_proj"] = torch.zeros(4, 8)
    with pytest.raises(AdapterError, match=r"another model.*layers\.99"):
        model.use(adapter)
