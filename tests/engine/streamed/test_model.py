"""Our model against transformers' and PEFT's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.tensor  # PEFT expects that transformers has imported it
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BioGptConfig,
    BloomConfig,
    CohereConfig,
    DynamicCache,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    PreTrainedConfig,
)

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import AdapterError, ModelFileError, UnsupportedModel
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.noise import Direction, Perturbation
from pocketllm.engine.streamed.model import HEAD_ROWS, LanguageModel
from tests.support.models.learning import (
    ALL_ROWS,
    imported,
    losses_moved,
    mean_loss,
    random_blocks,
    reference_losses,
    sides,
    some_adapter,
    some_blocks,
)
from tests.support.models.tiny_architectures import random_model
from tests.support.models.tiny_models import IDS, byte_tokenizer, edit_json, tiny_model_folder

#: Logits in fp32, sums in another order.
FP32_TOLERANCE = 1e-5
#: One rounding of a bf16 logit of size 4 is 2^-6; a few of them add up on the way.
BF16_TOLERANCE = 6e-2


def our_logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        head = model.head.at(None)
        logits: torch.Tensor = model.hidden(Batch(inputs=IDS, targets=IDS)) @ head.rows(0, head.vocabulary).t()
        return logits.float()


# PEFT 0.21 asks transformers 5.24 under a name that the latter has deprecated.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("fixture", "tolerance"), [("tiny", FP32_TOLERANCE), ("tiny_bf16", BF16_TOLERANCE)])
def test_peft_loads_our_adapter_and_gives_our_logits(
    fixture: str, tolerance: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model_folder: ModelFolder = request.getfixturevalue(fixture)
    model = LanguageModel(model_folder)
    adapter = some_adapter(model, rank=4, alpha=6.0)
    adapter.save(tmp_path / "adapter")

    base = AutoModelForCausalLM.from_pretrained(model_folder.path, dtype=model.context.dtype)
    with torch.inference_mode():
        unchanged = base(IDS).logits.float()
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits.float()
    model.set_parameters(adapter)
    ours = our_logits(model)
    assert torch.allclose(ours, theirs, atol=tolerance)
    # The adapter does much more than the tolerance.
    assert float((ours - unchanged).abs().max()) > 10 * tolerance


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_loads_the_adapter_of_a_masked_model(tmp_path: Path) -> None:
    model_folder = imported(tmp_path, "roberta", "float32")
    model = LanguageModel(model_folder)
    adapter = some_adapter(model, targets=("query", "value"))
    adapter.save(tmp_path / "adapter", is_mlm=model_folder.manifest.is_mlm)
    base = AutoModelForMaskedLM.from_pretrained(model_folder.path, dtype=torch.float32).eval()
    with torch.inference_mode():
        unchanged = base(IDS).logits
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits
    model.set_parameters(adapter)
    bias = model.head.at(None).bias
    assert bias is not None
    ours = our_logits(model) + bias
    assert torch.allclose(ours, theirs, atol=FP32_TOLERANCE)
    assert float((theirs - unchanged).abs().max()) > 10 * FP32_TOLERANCE


def test_weights_are_the_files_own_pages(tiny: ModelFolder) -> None:
    """What is stored in the dtype that the layers compute in is used where it is mapped."""
    model = LanguageModel(tiny)
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tiny.weights) in line]
    spans = [tuple(int(end, 16) for end in words[0].split("-")) for words in mapped]
    for name, weight in model.weights.items():
        dense = weight.dense(torch.float32, model.context.scratch)
        assert any(start <= dense.data_ptr() < stop for start, stop in spans), name


def test_no_matrix_is_in_memory_between_two_walks(tiny_bf16: ModelFolder) -> None:
    model = LanguageModel(tiny_bf16, dtype=torch.float32)
    model.block_losses(some_blocks(2))
    kept = [*model.network.parameters(), *model.network.buffers()]
    assert all(tensor.dim() < 2 for tensor in kept)
    largest = max(weight.shape for weight in model.weights.values())
    assert sum(tensor.nbytes for tensor in kept) < largest[0] * largest[1]


@torch.inference_mode()
def test_block_losses_and_batch_loss_agree(tiny: ModelFolder) -> None:
    model, blocks = LanguageModel(tiny), some_blocks(11)
    model.set_parameters(some_adapter(model))
    here = Perturbation(direction=Direction(seed=0, step=1), distance=0.0)
    batch_loss = model.losses_at([here], blocks, ALL_ROWS)[0]
    assert mean_loss(model, blocks) == pytest.approx(batch_loss, rel=1e-6)
    assert model.block_losses(blocks, 1) == pytest.approx(model.block_losses(blocks, ALL_ROWS), rel=1e-6)
    assert model.block_losses(blocks[slice(0, 0)]) == []


@torch.inference_mode()
def test_next_logits_make_a_large_head_dense_in_parts(tmp_path: Path) -> None:
    model_folder = open_model_folder(
        tiny_model_folder(tmp_path, dtype="int8", hidden=64, layers=1, vocab=2 * HEAD_ROWS + 77)
    )
    model = LanguageModel(model_folder, dtype=torch.float32)
    logits = model.next_logits(IDS, DynamicCache(config=model.network.config))
    assert torch.allclose(logits, our_logits(model)[0, -1], atol=FP32_TOLERANCE)


def test_adapter_of_another_model_is_refused(tiny: ModelFolder) -> None:
    model = LanguageModel(tiny)
    adapter = some_adapter(model)
    adapter.a["model.layers.99.mlp.down_proj"] = torch.zeros(4, 8)
    with pytest.raises(AdapterError, match=r"another model.*layers\.99"):
        model.set_parameters(adapter)


def test_weights_of_another_shape_than_the_configs_are_refused(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    edit_json(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelFileError, match=r"mlp\..*shape \(\d+, \d+\), but config.json requires"):
        LanguageModel(open_model_folder(folder))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path, layers=1)
    edit_json(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(ModelFileError, match=r"lacks model\.layers\.1.*Import the model again"):
        LanguageModel(open_model_folder(folder))


SIZES: dict[str, Any] = {
    "vocab_size": 263,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GROUPED: dict[str, Any] = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CohereConfig(**GROUPED, logit_scale=0.25), "scales or caps its logits"),
        (Gemma2Config(**GROUPED, head_dim=8, attn_logit_softcapping=9.0), "caps its attention scores"),
        (GptOssConfig(**GROUPED, head_dim=8, num_local_experts=2), r"cannot be streamed: model\.layers\.0.*sinks"),
        (GPT2Config(**SIZES), "without linear maps"),
    ],
    ids=["logits are scaled", "scores are capped", "a parameter beside modules", "no linear maps"],
)
def test_what_would_compute_something_else_is_refused(config: PreTrainedConfig, reason: str, tmp_path: Path) -> None:
    random_model(config).save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    import_model(str(tmp_path / "source"), tmp_path / "models", name="odd")
    with pytest.raises(UnsupportedModel, match=f"{reason}.*Choose another model"):
        LanguageModel(open_model_folder(tmp_path / "models" / "odd")).block_losses(some_blocks(1))


@torch.inference_mode()
def test_a_model_without_exchangeable_attention_keeps_its_own(tmp_path: Path) -> None:
    """Bloom adds its mask to the scores: the boolean one that goes with our attention would hide nothing."""
    config = BloomConfig(vocab_size=263, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    check_against_transformers(config, tmp_path)


@torch.inference_mode()
def test_positions_that_are_one_row_for_the_whole_batch(tmp_path: Path) -> None:
    """As in BioGPT: each side of a probe has its own table of them, and every block of a side the same row."""
    check_against_transformers(BioGptConfig(**SIZES, intermediate_size=64), tmp_path)


def check_against_transformers(config: PreTrainedConfig, folder: Path) -> None:
    network = random_model(config)
    network.save_pretrained(folder / "source")
    byte_tokenizer().save_pretrained(folder / "source")
    import_model(str(folder / "source"), folder / "models", name="other", dtype="float32")
    model, blocks = LanguageModel(open_model_folder(folder / "models" / "other")), random_blocks()
    network.set_attn_implementation("eager")
    assert model.block_losses(blocks) == pytest.approx(reference_losses(network, blocks), abs=FP32_TOLERANCE)
    theta = model.full()
    model.set_parameters(theta)
    points = sides(probes=2)
    assert model.losses_at(points, blocks, ALL_ROWS) == pytest.approx(
        losses_moved(model, theta, points, blocks), abs=FP32_TOLERANCE
    )
