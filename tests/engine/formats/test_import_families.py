"""Every family that can be learned comes in whole, as floats and packed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel

from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.architectures import auto_class
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME, ModelFolder, open_model_folder
from pocketllm.engine.formats.quantization import GROUPS, MINIMA, PACKINGS, SCALES, pack
from tests.support.models.learning import imported, source_folder, transformers_model
from tests.support.models.tiny_architectures import MASKED, architecture_folder, dense_tensors, families
from tests.support.models.tiny_models import (
    IDS,
    VOCABULARY,
    byte_tokenizer,
    edit_json,
    edit_tensors,
    import_and_open,
    mapped,
    save_with_tokenizer,
    tiny_llama_folder,
    tiny_model_folder,
    write_tiny_gguf,
)

pytestmark = pytest.mark.slow

EMBEDDINGS = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """A RoBERTa folder, to be changed."""
    return architecture_folder("roberta", tmp_path / "roberta")


def untied(model: Any) -> Tensors:
    """The model's tensors, tied ones once."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}


@pytest.mark.parametrize("name", families())
def test_a_family_comes_in_whole(root: Path, name: str) -> None:
    source, is_mlm = source_folder(root, name), name in MASKED
    assert auto_class(AutoConfig.from_pretrained(source)) is (AutoModelForMaskedLM if is_mlm else AutoModelForCausalLM)
    model = transformers_model(source, is_mlm=is_mlm, dtype=torch.float32)
    nothing_is_lost(model, imported(root, name, "float32"), is_mlm=is_mlm)
    for packing in PACKINGS:
        half_a_step_is_lost_at_most(model, imported(root, name, packing), packing)


def nothing_is_lost(model: Any, found: ModelFolder, *, is_mlm: bool) -> None:
    expected, tensors, manifest = untied(model), mapped(found), found.manifest
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert (manifest.is_mlm, manifest.architecture) == (is_mlm, type(model).__name__)
    assert manifest.parameters == sum(tensor.numel() for tensor in expected.values())
    assert (manifest.compute_dtype, manifest.quantization_error) == ("float32", None)
    again = transformers_model(found.path, is_mlm=is_mlm, dtype=torch.float32)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    open_model_folder(found.path, verify=True)


def half_a_step_is_lost_at_most(model: Any, found: ModelFolder, packing: str) -> None:
    expected, manifest = untied(model), found.manifest
    dense, stored = dense_tensors(found.path), load_file(found.weights)
    packings = expected_packings(model, packing)
    assert dense.keys() == expected.keys()
    assert {name.removesuffix(SCALES) for name in stored if name.endswith(SCALES)} == packings.keys()
    assert {name.removesuffix(MINIMA) for name in stored if name.endswith(MINIMA)} == {
        name for name, kind in packings.items() if kind == "int4"
    }
    for name, tensor in expected.items():
        if name in packings:
            steps = stored[name + SCALES].float().repeat_interleave(GROUPS[packings[name]], dim=1)
            # float16 of a scale is off by up to 2**-11, which the last of 127 steps shows.
            assert ((dense[name] - tensor).abs() <= 0.501 * steps).all(), name
        else:
            assert torch.equal(dense[name], tensor.bfloat16()), name
    error = sum((dense[name] - expected[name]).double().square().sum().item() for name in packings)
    weights = sum(expected[name].double().square().sum().item() for name in packings)
    assert manifest.quantization_error is not None
    assert manifest.quantization_error == pytest.approx(math.sqrt(error / weights), rel=1e-6)
    # The rounding of a normal distribution whose extremes are those of a group.
    least, most = {"int8": (0.004, 0.008), "int4": (0.04, 0.09)}[packing]
    assert least < manifest.quantization_error < most
    assert (manifest.dtype, manifest.compute_dtype) == (packing, "bfloat16")
    assert open_model_folder(found.path, verify=True).config().dtype == torch.bfloat16


def expected_packings(model: Any, packing: str) -> dict[str, str]:
    """By name, what the contract says: linear maps in the packing, both ends of the model in int8."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {
        name: "int8" if id(weight) in ends else packing
        for name, weight in model.named_parameters()
        if name in linear or id(weight) in ends
    }


def test_a_masked_model_is_known_by_its_family_alone(roberta: Path, models: Path) -> None:
    edit_json(roberta / "config.json", architectures=None)
    assert import_model(str(roberta), models).is_mlm


def test_a_roberta_checkpoint_may_hold_more_and_name_the_other_of_two_tied_biases(roberta: Path, models: Path) -> None:
    expected = untied(transformers_model(roberta, is_mlm=True, dtype=torch.float32))
    stored = {name: tensor.clone() for name, tensor in load_file(roberta / WEIGHTS_NAME).items()}
    more = {
        "roberta.embeddings.position_ids": torch.arange(259).unsqueeze(0),
        "roberta.pooler.dense.weight": torch.ones(64, 64),
        "lm_head.decoder.weight": stored["roberta.embeddings.word_embeddings.weight"].clone(),
        "lm_head.decoder.bias": stored["lm_head.bias"].clone(),
    }
    other = {name.replace("lm_head.bias", "lm_head.decoder.bias"): tensor for name, tensor in stored.items()}
    for name, tensors in {"more": stored | more, "other": other}.items():
        save_file(tensors, roberta / WEIGHTS_NAME)
        import_model(str(roberta), models, name=name, dtype="float32")
        found = load_file(models / name / WEIGHTS_NAME)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tokenizer_without_a_mask(roberta: Path, models: Path) -> None:
    byte_tokenizer().save_pretrained(roberta)
    with pytest.raises(ModelFileError, match="has no mask token"):
        import_model(str(roberta), models)


def test_a_gguf_file_is_packed_like_its_folder(tmp_path: Path, models: Path) -> None:
    file = write_tiny_gguf(tmp_path / "x.gguf", tiny_llama_folder(tmp_path / "x", hidden=64))
    dense, int8, int4 = (
        load_file(import_and_open(file, models, name=dtype, dtype=dtype).weights) for dtype in ("float32", *PACKINGS)
    )
    for packed, packing in ((int8, "int8"), (int4, "int4")):
        for name, kind in ((EMBEDDINGS, "int8"), (DOWN, packing), ("model.layers.0.self_attn.q_proj.weight", packing)):
            for suffix, part in pack(dense[name], kind).items():
                assert torch.equal(packed[name + suffix], part), (packing, name)


def test_what_cannot_be_packed_stays_bfloat16(tmp_path: Path, tiny_bf16: ModelFolder) -> None:
    # Rows of 32 are no whole groups of 64; only the map down from 64 has rows that are.
    folder = tiny_model_folder(tmp_path, dtype="int8")
    stored = load_file(folder / WEIGHTS_NAME)
    assert stored[EMBEDDINGS].dtype == torch.bfloat16
    assert stored[DOWN].dtype == torch.int8
    assert stored[DOWN + SCALES].shape == (32, 1)
    assert dense_tensors(folder).keys() == load_file(tiny_bf16.weights).keys()


def test_nothing_to_pack(tmp_path: Path, models: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64))
    save_with_tokenizer(model, tmp_path / "gpt2")
    with pytest.raises(UnsupportedModel, match=r"no weights of a shape that int4 can pack\. Import it as bfloat16"):
        import_model(str(tmp_path / "gpt2"), models, dtype="int4")
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -1e30])
def test_a_number_that_has_no_packed_form(tmp_path: Path, models: Path, number: float) -> None:
    folder = architecture_folder("llama", tmp_path / "source")
    edit_tensors(folder / WEIGHTS_NAME, lambda tensors: tensors[DOWN][3, 70:71].fill_(number))
    for packing in PACKINGS:
        with pytest.raises(ModelFileError, match=f"numbers in {DOWN} that are not finite as {packing}"):
            import_model(str(folder), models, dtype=packing)
        assert list(models.iterdir()) == []


def test_weights_of_zero_have_no_error(tmp_path: Path, models: Path) -> None:
    folder = architecture_folder("llama", tmp_path / "source")
    edit_tensors(folder / WEIGHTS_NAME, lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    for packing in PACKINGS:
        manifest = import_model(str(folder), models, name=packing, dtype=packing)
        assert manifest.quantization_error == 0
        assert not any(tensor.any() for tensor in dense_tensors(models / packing).values())
