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
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.noise import Direction, Perturbation
from pocketllm.engine.streamed.model import HEAD_ROWS, LanguageModel
from tests.support.models.learning import (
    ALL_ROWS,
    TARGETS,
    imported,
    losses_moved,
    mean_loss,
    random_blocks,
    reference_losses,
    sides,
    some_adapter,
    some_blocks,
)
from tests.support.models.tiny_architectures import DECODER, imported_config, random_model
from tests.support.models.tiny_models import IDS, edit_json, tiny_model_folder

#: Logits in fp32, sums in another order.
FP32_TOLERANCE = 1e-5
#: One rounding of a bf16 logit of size 4 is 2^-6; a few of them add up on the way.
BF16_TOLERANCE = 6e-2


def our_logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        head = model.head.at(None)
        logits: torch.Tensor = model.hidden(Batch(inputs=IDS, targets=IDS)) @ head.rows(0, head.vocabulary).t()
        return (logits if head.bias is None else logits + head.bias).float()


@pytest.fixture
def masked(root: Path) -> ModelFolder:
    """A model that fills in masks."""
    return imported(root, "roberta", "float32")


# PEFT 0.21 asks transformers 5.24 under a name that the latter has deprecated.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("fixture", "targets", "tolerance"),
    [
        ("tiny", TARGETS, FP32_TOLERANCE),
        ("tiny_bf16", TARGETS, BF16_TOLERANCE),
        ("masked", ("query", "value"), FP32_TOLERANCE),
    ],
)
def test_peft_loads_our_adapter_and_gives_our_logits(
    fixture: str, targets: tuple[str, ...], tolerance: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model_folder: ModelFolder = request.getfixturevalue(fixture)
    model, is_mlm = LanguageModel(model_folder), model_folder.manifest.is_mlm
    adapter = some_adapter(model, alpha=6.0, targets=targets)
    adapter.save(tmp_path / "adapter", is_mlm=is_mlm)

    auto: Any = AutoModelForMaskedLM if is_mlm else AutoModelForCausalLM
    base = auto.from_pretrained(model_folder.path, dtype=model.context.dtype).eval()
    with torch.inference_mode():
        unchanged = base(IDS).logits.float()
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits.float()
    model.set_parameters(adapter)
    ours = our_logits(model)
    assert torch.allclose(ours, theirs, atol=tolerance)
    # The adapter does much more than the tolerance.
    assert float((ours - unchanged).abs().max()) > 10 * tolerance


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


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("intermediate_size", 48, r"mlp\..*shape \(\d+, \d+\), but config.json requires"),
        ("num_hidden_layers", 3, r"lacks model\.layers\.2.*Import the model again"),
    ],
)
def test_weights_that_are_not_the_configs_are_refused(tmp_path: Path, setting: str, value: int, problem: str) -> None:
    folder = tiny_model_folder(tmp_path)
    edit_json(folder / "config.json", **{setting: value})
    with pytest.raises(ModelFileError, match=problem):
        LanguageModel(open_model_folder(folder))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CohereConfig(**DECODER, logit_scale=0.25), "scales or caps its logits"),
        (Gemma2Config(**DECODER, head_dim=16, attn_logit_softcapping=9.0), "caps its attention scores"),
        (GptOssConfig(**DECODER, head_dim=16, num_local_experts=2), r"cannot be streamed: model\.layers\.0.*sinks"),
        (GPT2Config(**DECODER), "without linear maps"),
    ],
    ids=["logits are scaled", "scores are capped", "a parameter beside modules", "no linear maps"],
)
def test_what_would_compute_something_else_is_refused(config: PreTrainedConfig, reason: str, tmp_path: Path) -> None:
    model_folder = imported_config(config, tmp_path)
    with pytest.raises(UnsupportedModel, match=f"{reason}.*Choose another model"):
        LanguageModel(model_folder).block_losses(some_blocks(1))


@pytest.mark.parametrize(
    "config",
    [
        # Adds its mask to the scores: the boolean one that goes with our attention would hide nothing.
        BloomConfig(vocab_size=263, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        # Positions are one row for the whole batch: each side of a probe has a table of them, its blocks the same row.
        BioGptConfig(**DECODER),
    ],
    ids=["attention of its own", "positions of a batch"],
)
@torch.inference_mode()
def test_a_model_that_passes_through_in_another_way_is_transformers(config: PreTrainedConfig, tmp_path: Path) -> None:
    model, blocks = LanguageModel(imported_config(config, tmp_path)), random_blocks()
    network = random_model(config)
    network.set_attn_implementation("eager")
    assert model.block_losses(blocks) == pytest.approx(reference_losses(network, blocks), abs=FP32_TOLERANCE)
    theta = model.full()
    model.set_parameters(theta)
    points = sides(probes=2)
    moved = losses_moved(model, theta, points, blocks)
    assert model.losses_at(points, blocks, ALL_ROWS) == pytest.approx(moved, abs=FP32_TOLERANCE)
