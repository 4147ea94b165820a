import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from pocketllm.engine.errors import EngineError, ModelFileError, UnsupportedModel
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import FLOAT_DTYPES, WEIGHTS_NAME, list_model_folders, open_model_folder
from tests.support.models.hub_double import serve_hub
from tests.support.models.tiny_models import (
    VOCABULARY,
    edit_json,
    edit_tensors,
    import_and_open,
    logits,
    mapped,
    save_with_tokenizer,
    tiny_llama_folder,
)

EMBEDDINGS, NORM = "model.embed_tokens.weight", "model.norm.weight"


def test_a_folder_keeps_its_logits(llama: Path, models: Path) -> None:
    for dtype in FLOAT_DTYPES:
        manifest = import_model(str(llama), models, dtype=dtype, replace=True)
        assert (manifest.name, manifest.compute_dtype) == ("tiny-llama", dtype)
        folder = models / manifest.name
        got, expected = logits(folder, dtype="auto"), logits(llama, dtype=getattr(torch, dtype))
        assert got.dtype == expected.dtype == getattr(torch, dtype)
        assert torch.equal(got, expected)
        assert manifest == open_model_folder(folder, verify=True).manifest


def test_shards_are_joined_with_their_index_and_without(tmp_path: Path, models: Path) -> None:
    """With a head that is not tied to the embeddings."""
    source = tiny_llama_folder(tmp_path / "sharded", shard_size="30KB", tied=False)
    assert len(list(source.glob("*.safetensors"))) > 1
    expected = logits(source, dtype=torch.bfloat16)
    for name in ("with", "without"):
        import_model(str(source), models, name=name)
        assert torch.equal(logits(models / name), expected)
        (source / "model.safetensors.index.json").unlink(missing_ok=True)


def test_a_tied_head_is_stored_once(changed: Path, models: Path, llama: Path) -> None:
    """Whether the source names it as the embeddings, as the head, or as both."""
    both = load_file(changed / WEIGHTS_NAME)
    both["lm_head.weight"] = both[EMBEDDINGS].clone()
    head = {name: tensor for name, tensor in both.items() if name != EMBEDDINGS}
    for name, tensors in {"head": head, "both": both}.items():
        save_file(tensors, changed / WEIGHTS_NAME)
        assert "lm_head.weight" not in mapped(import_and_open(changed, models, name=name))
        assert torch.equal(logits(models / name), logits(llama, dtype=torch.bfloat16))


def test_another_family_saved_without_its_prefix(tmp_path: Path, models: Path) -> None:
    source = tmp_path / "gpt2"
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    save_with_tokenizer(model, source)
    expected = logits(source, dtype=torch.bfloat16)
    tensors = load_file(source / WEIGHTS_NAME)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, source / WEIGHTS_NAME)
    manifest = import_model(str(source), models)
    assert manifest.architecture == "GPT2LMHeadModel"
    assert torch.equal(logits(models / "gpt2", dtype="auto"), expected)


def test_licence_from_the_readme(changed: Path, models: Path) -> None:
    (changed / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\nlicense: other\n")
    assert import_model(str(changed), models, name="a").license == "apache-2.0"
    (changed / "README.md").write_text("# Tiny\nlicense: mit\n")
    assert import_model(str(changed), models, name="b").license == "unknown"


@pytest.mark.smoke
def test_a_model_of_the_hub(tmp_path: Path, changed: Path, models: Path) -> None:
    (changed / "pytorch_model.bin").write_bytes(b"\x80")
    (changed / "onnx").mkdir()
    (changed / "onnx" / "model.safetensors").write_bytes(b"?")
    (changed / "README.md").write_text("---\nlicense: mit\n---\n")
    with serve_hub("some-org/Tiny", changed) as hub:
        done = run_import("some-org/Tiny", models, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    (model,) = list_model_folders(models)
    assert model.manifest.name == "tiny"
    assert model.manifest.source == f"some-org/Tiny@{hub.commit}"
    assert model.manifest.license == "mit"
    assert "model.safetensors" in hub.fetched
    assert not {"pytorch_model.bin", "onnx/model.safetensors"} & set(hub.fetched)


@pytest.mark.slow
def test_a_model_that_the_hub_does_not_give(tmp_path: Path, llama: Path, models: Path) -> None:
    home = str(tmp_path / "home")
    offline = run_import("some-org/tiny", models, HF_HUB_OFFLINE="1", HF_HOME=home)
    assert "ModelFileError: There is no file or folder some-org/tiny" in offline.stderr
    assert "give a GGUF file or a Hugging Face folder on this device" in offline.stderr
    with serve_hub("some-org/tiny", llama) as hub:
        unknown = run_import("some-org/other", models, HF_ENDPOINT=hub.url, HF_HOME=home)
    assert "ModelFileError" in unknown.stderr
    assert "shows no public model of that name" in unknown.stderr


def run_import(source: str, models: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pathlib import Path; from pocketllm.engine.formats.importer import import_model;"
        "import_model(sys.argv[1], Path(sys.argv[2]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, source, str(models)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


Damage = Callable[[Path], object]


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    return lambda folder: edit_tensors(folder / WEIGHTS_NAME, change)


def one_shard_of_two(folder: Path) -> None:
    weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])(folder)
    (folder / WEIGHTS_NAME).rename(folder / "model-00001-of-00002.safetensors")


def settings(**values: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **values)


def fewer_tokens(folder: Path) -> None:
    settings(vocab_size=200)(folder)
    weights(lambda tensors: tensors.update({EMBEDDINGS: tensors[EMBEDDINGS][:200]}))(folder)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


CODE_OF_ITS_OWN = {"auto_map": {"AutoConfig": "evil.Config"}}
#: What is done to a folder, and what the refusal says.
DAMAGED: tuple[tuple[Damage, type[EngineError], str], ...] = (
    (lambda f: (f / "config.json").unlink(), ModelFileError, r"has no config\.json"),
    (lambda f: (f / "config.json").write_text("{"), ModelFileError, "not valid JSON"),
    (lambda f: (f / "config.json").write_text("[]"), ModelFileError, "not a JSON object"),
    (lambda f: (f / "config.json").write_text("[" * 10**6), ModelFileError, "not valid JSON"),
    (settings(hidden_size="wide"), EngineError, "hidden_size|size"),
    (settings(num_hidden_layers=10**9), ModelFileError, "1000000000 layers but holds"),
    (settings(num_hidden_layers=3), ModelFileError, r"9 missing \(model\.layers\.2\..*, \.\.\."),
    (settings(hidden_size=64), ModelFileError, r"another shape \(model\..* \(32,\), not \(64,\)"),
    (settings(model_type=["llama"]), UnsupportedModel, r"type \['llama'\]"),
    (settings(model_type="mystery"), UnsupportedModel, "type 'mystery'"),
    (settings(model_type="mystery", **CODE_OF_ITS_OWN), UnsupportedModel, "comes with a model is never run"),
    (settings(model_type="vit", architectures=None), UnsupportedModel, "describes a vit, which is neither"),
    (settings(architectures=5), UnsupportedModel, "TypeError"),
    (settings(quantization_config={"quant_method": "gptq"}), UnsupportedModel, "quantized"),
    (no_tokenizer, ModelFileError, "has no tokenizer"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), ModelFileError, "tokenizer of .* cannot be used"),
    (fewer_tokens, ModelFileError, f"has {VOCABULARY} tokens, but the model has 200"),
    (lambda f: (f / WEIGHTS_NAME).unlink(), ModelFileError, "no weights"),
    (lambda f: (f / WEIGHTS_NAME).rename(f / "pytorch_model.bin"), ModelFileError, "opening a pickle can run any code"),
    (lambda f: os.truncate(f / WEIGHTS_NAME, 50_000), ModelFileError, "not fully covered"),
    (weights(lambda t: t.pop(NORM)), ModelFileError, r"1 missing \(model\.norm"),
    (weights(lambda t: t.update({"lm_head.weight": t[EMBEDDINGS] + 1})), ModelFileError, "tie_word_embeddings"),
    (
        weights(lambda t: t[NORM][3:4].fill_(torch.nan)),
        ModelFileError,
        r"numbers in model\.norm\.weight that are not finite",
    ),
    (weights(lambda t: t.update({NORM: t[NORM].to(torch.int8)})), UnsupportedModel, r"model\.norm\.weight as int8"),
    (one_shard_of_two, ModelFileError, r"9 missing \(model\.layers\.1\."),
)


def test_a_damaged_folder_is_refused(llama: Path, models: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for number, (damage, error, complaint) in enumerate(DAMAGED):
        folder = Path(shutil.copytree(llama, tmp_path / str(number)))
        damage(folder)
        with subtests.test(complaint):
            with pytest.raises(error, match=complaint) as caught:
                import_model(str(folder), models, name="x")
            assert str(folder) in str(caught.value)
            assert list(models.iterdir()) == []
