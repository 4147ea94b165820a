"""Every family that can be learned comes in whole, and nothing else comes in."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BartConfig,
    BertConfig,
    Gemma3Config,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.architectures import auto_class
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME, open_model_folder
from pocketllm.engine.streamed.quantization import GROUPS, MINIMA, PACKINGS, SCALES
from tests.support.tiny_architectures import (
    ARCHITECTURES,
    MASKED,
    dense_tensors,
    families,
    opt_folder,
    roberta_folder,
)
from tests.support.tiny_models import IDS, byte_tokenizer, edit_json, mapped

pytestmark = pytest.mark.slow

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=families(ARCHITECTURES))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each family, called after it; tests do not change it."""
    return ARCHITECTURES[request.param](tmp_path_factory.mktemp("source") / request.param)


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """A RoBERTa folder, to be changed."""
    return roberta_folder(tmp_path / "roberta")


def reference(folder: Path, is_mlm: bool) -> Any:
    """The model as transformers loads it."""
    auto: Any = AutoModelForMaskedLM if is_mlm else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32)


def untied(model: Any) -> Tensors:
    """The model's tensors, tied ones once."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}


def test_nothing_is_lost_in_float32(source: Path, tmp_path: Path) -> None:
    manifest = import_model(str(source), tmp_path, name="x", dtype="float32")
    is_mlm = source.name in MASKED
    model = reference(source, is_mlm)
    expected = untied(model)
    tensors = mapped(open_model_folder(tmp_path / "x", verify=True))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert (manifest.is_mlm, manifest.architecture) == (is_mlm, type(model).__name__)
    assert manifest.parameters == sum(tensor.numel() for tensor in expected.values())
    assert (manifest.compute_dtype, manifest.quantization_error) == ("float32", None)
    with torch.no_grad():
        assert torch.equal(reference(tmp_path / "x", is_mlm)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_weights_are_half_a_step_away_at_most(source: Path, tmp_path: Path, packing: str) -> None:
    manifest = import_model(str(source), tmp_path, name="x", dtype=packing)
    model = reference(source, source.name in MASKED)
    expected, dense = untied(model), dense_tensors(tmp_path / "x")
    stored = load_file(tmp_path / "x" / WEIGHTS_NAME)
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
    assert open_model_folder(tmp_path / "x", verify=True).config().dtype == torch.bfloat16


def expected_packings(model: Any, packing: str) -> dict[str, str]:
    """By name, what the contract says: linear maps in the packing, both ends of the model in int8."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {
        name: "int8" if id(weight) in ends else packing
        for name, weight in model.named_parameters()
        if name in linear or id(weight) in ends
    }


def config(make: Callable[..., PreTrainedConfig], name: str | None, **values: Any) -> PreTrainedConfig:
    return make(architectures=[name] if name else None, **values)


@pytest.mark.parametrize(
    ("unsupported", "complaint"),
    [
        (config(BertConfig, "BertForSequenceClassification"), "describes a BertForSequenceClassification,"),
        (config(BertConfig, "BertForMaskedLM"), "nor RobertaForMaskedLM"),
        (config(BertConfig, "BertLMHeadModel", is_decoder=True), "describes a BertLMHeadModel,"),
        (config(BertConfig, None), "describes a BertLMHeadModel,"),
        (config(T5Config, "T5ForConditionalGeneration"), "describes a T5ForConditionalGeneration,"),
        (config(T5Config, None), "describes a t5,"),
        (config(BartConfig, "BartForCausalLM"), "describes a BartForCausalLM,"),
        (config(Gemma3Config, "Gemma3ForConditionalGeneration"), "text-only causal language model"),
        (config(RobertaConfig, "RobertaForCausalLM"), "describes a RobertaForCausalLM,"),
        (config(RobertaConfig, "RobertaForSequenceClassification"), "describes a RobertaForSequenceClassification,"),
        (config(RobertaConfig, "RobertaModel"), "describes a RobertaModel,"),
        (config(RobertaConfig, "RobertaForMaskedLM", is_decoder=True), "makes RobertaForMaskedLM a decoder"),
    ],
)
def test_what_cannot_be_learned_is_refused(unsupported: PreTrainedConfig, complaint: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{complaint}.* Choose another model"):
        auto_class(unsupported)


def test_the_class_that_builds_a_model(source: Path) -> None:
    is_mlm = source.name in MASKED
    found = auto_class(AutoConfig.from_pretrained(source))
    assert found is (AutoModelForMaskedLM if is_mlm else AutoModelForCausalLM)


def test_a_masked_model_is_known_by_its_family_alone(roberta: Path, tmp_path: Path) -> None:
    edit_json(roberta / "config.json", architectures=None)
    assert import_model(str(roberta), tmp_path / "models").is_mlm


def change_weights(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)


def test_a_roberta_checkpoint_with_more_than_the_model(roberta: Path, tmp_path: Path) -> None:
    expected = untied(reference(roberta, is_mlm=True))

    def add(tensors: Tensors) -> None:
        tensors["roberta.embeddings.position_ids"] = torch.arange(259).unsqueeze(0)
        tensors["roberta.pooler.dense.weight"] = torch.ones(64, 64)
        tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()

    change_weights(roberta, add)
    import_model(str(roberta), tmp_path, name="x", dtype="float32")
    assert same(load_file(tmp_path / "x" / WEIGHTS_NAME), expected)


def test_a_roberta_checkpoint_that_names_the_other_of_two_tied_biases(roberta: Path, tmp_path: Path) -> None:
    expected = untied(reference(roberta, is_mlm=True))
    change_weights(roberta, lambda t: t.update({"lm_head.decoder.bias": t.pop("lm_head.bias")}))
    import_model(str(roberta), tmp_path, name="x", dtype="float32")
    assert same(load_file(tmp_path / "x" / WEIGHTS_NAME), expected)


def same(some: Tensors, others: Tensors) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_a_roberta_without_its_head(roberta: Path, tmp_path: Path) -> None:
    change_weights(roberta, lambda t: [t.pop(name) for name in list(t) if name.startswith("lm_head")])
    with pytest.raises(ModelFileError, match=r"5 missing \(lm_head\.bias"):
        import_model(str(roberta), tmp_path / "models")


def test_a_tokenizer_without_a_mask(roberta: Path, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(roberta)
    with pytest.raises(ModelFileError, match="has no mask token"):
        import_model(str(roberta), tmp_path / "models")


def test_a_folder_of_another_task_is_named(tmp_path: Path) -> None:
    folder = opt_folder(tmp_path / "opt")
    edit_json(folder / "config.json", architectures=["OPTForSequenceClassification"])
    with pytest.raises(UnsupportedModel, match=r"opt cannot be imported\. Its config describes a OPTForSequence"):
        import_model(str(folder), tmp_path / "models")
