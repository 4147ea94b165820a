import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pocketllm.engine.errors import EngineError, ModelFileError, UnsupportedModel
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import open_model_folder
from tests.support.models.tiny_models import byte_tokenizer, edit_json, logits, tiny_llama_folder, write_tiny_gguf


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gguf_is_unpacked_as_transformers_does(tiny_gguf: Path, models: Path, dtype: str) -> None:
    manifest = import_model(str(tiny_gguf), models, dtype=dtype)
    assert (manifest.name, manifest.license, manifest.source) == ("tiny-llama", "apache-2.0", "Tiny-Llama.Q8_0.gguf")
    expected = logits(tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=getattr(torch, dtype))
    assert torch.equal(logits(models / "tiny-llama", dtype="auto"), expected)


def test_gguf_tokenizer_is_the_same(from_gguf: Path) -> None:
    tokenizer, original = open_model_folder(from_gguf / "tiny").tokenizer(), byte_tokenizer()
    text = "Grüße <|im_start|>x<|im_end|> 42\n"
    assert tokenizer(text).input_ids == original(text).input_ids
    assert tokenizer.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(chat, tokenize=False)


def test_every_truncation_of_a_gguf_is_noticed(tmp_path: Path, tiny_gguf: Path, models: Path) -> None:
    data = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(4, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match=rf"The header of {re.escape(str(path))} cannot be read: ValueError"):
            import_model(str(path), models)


def test_what_is_no_model_as_a_whole_is_refused(tmp_path: Path, models: Path) -> None:
    refused = (
        ("mystery", 1, UnsupportedModel, "architecture 'mystery'"),
        ("llama", 3, UnsupportedModel, "one of 3 parts"),
        ("llama", 1, EngineError, r"2\.gguf"),  # without settings
    )
    for number, (architecture, parts, error, complaint) in enumerate(refused):
        path = tmp_path / f"{number}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_uint16("split.count", parts)
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(error, match=complaint) as caught:
            import_model(str(path), models)
        assert str(path) in str(caught.value)


def test_a_gguf_that_lacks_a_tensor(tmp_path: Path, llama: Path, models: Path) -> None:
    source = tiny_llama_folder(tmp_path / "source", layers=3)
    edit_json(source / "config.json", num_hidden_layers=4)
    path = write_tiny_gguf(tmp_path / "short.gguf", source)
    with pytest.raises(ModelFileError, match=r"9 missing \(model\.layers\.3\."):
        import_model(str(path), models)


def test_a_corrupt_gguf_header_never_surprises(tmp_path: Path, tiny_gguf: Path, models: Path) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        data = bytearray(tiny_gguf.read_bytes())
        for position in random.integers(4, 12_000, size=20):
            data[position] = random.integers(256)
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(data)
        try:
            import_model(str(path), models)
        except EngineError as error:
            assert str(path) in str(error)


def import_scaled(llama: Path, models: Path, **written: Any) -> Path:
    path = write_tiny_gguf(models.parent / "scaled.gguf", llama, **written)
    import_model(str(path), models, dtype="float32", replace=True)
    return models / "scaled"


def test_rotations_that_llama3_scales_are_scaled(llama: Path, models: Path) -> None:
    """llama.cpp's converter writes what llama3's parameters come to: a factor for each rotation."""
    parameters = {
        **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    }
    ids = torch.arange(240)[None] % 200 + 10

    def of(folder: Path, **settings: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)

    plain, scaled = of(llama), of(llama, rope_parameters=parameters)
    frequencies = [LlamaRotaryEmbedding(model.config).inv_freq for model in (plain, scaled)]
    folder = import_scaled(llama, models, more={"rope_freqs.weight": (frequencies[0] / frequencies[1]).numpy()})
    imported = of(folder)
    scaled.load_state_dict(imported.state_dict())
    plain.load_state_dict(imported.state_dict())
    with torch.no_grad():
        got, expected, dropped = (model(ids).logits for model in (imported, scaled, plain))
    assert torch.allclose(got, expected, atol=1e-3)
    assert not torch.allclose(got, dropped, atol=1)


def test_what_the_metadata_says_of_rotations_is_used_or_refused(llama: Path, models: Path) -> None:
    config = open_model_folder(import_scaled(llama, models, scaling={"type": "linear", "factor": 4.0})).config()
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
    for scaling in ({"type": "magic", "factor": 2.0}, {"type": "linear", "factor": 2.0, "spin": 1.0}):
        with pytest.raises(UnsupportedModel, match="scales rotations by position in a way that is not supported"):
            import_scaled(llama, models, scaling=scaling)


def test_a_tensor_that_the_model_has_no_place_for(llama: Path, models: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"holds blk\.0\.layer_scale\.weight, for which .* has no place"):
        import_scaled(llama, models, more={"blk.0.layer_scale.weight": np.ones(32, dtype=np.float32)})
