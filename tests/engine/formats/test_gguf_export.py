"""GGUF LoRA files and merged models: read back by gguf's own reader, which must find the adapter's numbers."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from pocketllm.engine.errors import AdapterError, CannotExport, EngineError
from pocketllm.engine.formats.gguf_lora import write_gguf_lora
from pocketllm.engine.formats.gguf_merged import PACKED, write_merged_gguf
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.params.full import save_full
from pocketllm.engine.params.lora import CONFIG_NAME, WEIGHTS_NAME, Adapter
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import fresh_process, imported, some_adapter
from tests.support.models.tiny_models import edit_json, gguf_name, import_and_open, permute, tiny_model_folder


def of_all_maps(model_folder: ModelFolder) -> Adapter:
    return some_adapter(LanguageModel(model_folder), targets=None, alpha=6.0)


def exported(adapter: Adapter, model_folder: ModelFolder, folder: Path) -> gguf.GGUFReader:
    adapter.save(folder / "it")
    write_gguf_lora(folder / "it", model_folder, folder / "it.gguf")
    assert sorted(path.name for path in folder.iterdir()) == ["it", "it.gguf"]
    return gguf.GGUFReader(folder / "it.gguf")


def tensors(reader: gguf.GGUFReader) -> dict[str, NDArray[Any]]:
    return {tensor.name: tensor.data for tensor in reader.tensors}


def metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def paired(path: str, b: torch.Tensor) -> NDArray[np.float32]:
    """B as llama.cpp's converter has the rows of a tiny Llama's maps: 4 heads of queries, 2 of keys."""
    numbers: NDArray[np.float32] = b.numpy()
    heads = {"q_proj": 4, "k_proj": 2}.get(path.rpartition(".")[2])
    return permute(numbers, heads) if heads else numbers


@pytest.mark.parametrize(
    ("family", "architecture", "reorders"),
    [
        ("llama", "llama", True),
        ("mistral", "llama", True),
        ("qwen2", "qwen2", False),
        ("qwen3", "qwen3", False),
        ("gemma3_text", "gemma3", False),
    ],
)
def test_every_tensor_comes_back_under_llama_cpps_name(
    root: Path, tmp_path: Path, family: str, architecture: str, reorders: bool
) -> None:
    model_folder = imported(root, family, "bfloat16")
    adapter = of_all_maps(model_folder)
    reader = exported(adapter, model_folder, tmp_path)
    found = tensors(reader)
    assert len(found) == 2 * len(adapter.a) == 2 * 2 * 7
    for path, b in adapter.b.items():
        name = gguf_name(f"{path}.weight")
        assert name.startswith("blk."), path
        assert np.array_equal(found[f"{name}.lora_a"], adapter.a[path].numpy()), path
        assert np.array_equal(found[f"{name}.lora_b"], paired(path, b) if reorders else b.numpy()), path
        assert found[f"{name}.lora_a"].dtype == np.float32
    assert metadata(reader) == {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": "it",
        "general.base_model.count": 1,
        "general.base_model.0.name": "bfloat16",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }


def test_a_family_that_no_such_file_can_be_made_of(root: Path, tmp_path: Path) -> None:
    for family in ("opt", "roberta"):
        model_folder = imported(root, family, "bfloat16")
        some_adapter(LanguageModel(model_folder), targets=None).save(tmp_path / family)
        with pytest.raises(CannotExport, match=r"GGUF LoRA files can be made only for .*as PEFT"):
            write_gguf_lora(tmp_path / family, model_folder, tmp_path / "it.gguf")


def test_a_model_all_of_whose_weights_were_trained(tiny: ModelFolder, tmp_path: Path) -> None:
    save_full(tiny, LanguageModel(tiny).full(), tmp_path / "it", created_at=datetime.now(UTC))
    with pytest.raises(CannotExport, match=r"convert_hf_to_gguf\.py"):
        write_gguf_lora(tmp_path / "it", tiny, tmp_path / "it.gguf")


def configured(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / CONFIG_NAME, **values)


#: What is done to an adapter's folder, and what the refusal says.
HARMS: tuple[tuple[Callable[[Path], object], type[EngineError], str], ...] = (
    (configured(target_modules=["model.visual"]), CannotExport, "model.visual"),
    (configured(target_modules=["lm_head"]), AdapterError, "does not match its config"),
    (lambda folder: os.truncate(folder / WEIGHTS_NAME, 9000), AdapterError, "not fully covered"),
)


def test_what_is_refused_leaves_the_old_file(tiny: ModelFolder, tmp_path: Path, subtests: pytest.Subtests) -> None:
    adapter = of_all_maps(tiny)
    (tmp_path / "it.gguf").write_bytes(b"old")
    for harm, error, says in HARMS:
        adapter.save(tmp_path / "it")
        harm(tmp_path / "it")
        with subtests.test(says):
            with pytest.raises(error, match=says):
                write_gguf_lora(tmp_path / "it", tiny, tmp_path / "it.gguf")
            assert (tmp_path / "it.gguf").read_bytes() == b"old"
            assert not list(tmp_path.glob(".*"))


def test_another_models_adapter(tiny: ModelFolder, tmp_path: Path) -> None:
    for number, (layers, complaint) in enumerate(
        ((3, r"no tensor for model\.layers\.2"), (2, "does not fit the model"))
    ):
        other = open_model_folder(tiny_model_folder(tmp_path / str(number), hidden=64, layers=layers))
        of_all_maps(other).save(tmp_path / "it")
        with pytest.raises(EngineError, match=complaint):
            write_gguf_lora(tmp_path / "it", tiny, tmp_path / "it.gguf")


PROGRAM = """
import json, sys
from pathlib import Path
from pocketllm.engine.formats.gguf_lora import write_gguf_lora
from pocketllm.engine.formats.model_folder import open_model_folder
folder, model_folder, target = map(Path, sys.argv[1:])
write_gguf_lora(folder, open_model_folder(model_folder), target)
print(json.dumps("torch" in sys.modules))
"""


def test_no_torch_is_needed(tiny: ModelFolder, tmp_path: Path) -> None:
    of_all_maps(tiny).save(tmp_path / "it")
    assert fresh_process(PROGRAM, tmp_path / "it", tiny.path, tmp_path / "it.gguf") is False


def test_a_merged_models_weights_are_the_personal_models(tiny_gguf: Path, tmp_path: Path) -> None:
    model_folder = import_and_open(tiny_gguf, tmp_path / "models", name="tiny", dtype="float32")
    adapter = of_all_maps(model_folder)
    adapter.save(tmp_path / "it")
    write_merged_gguf(tmp_path / "it", model_folder, tmp_path / "it.gguf")
    base, found = gguf.GGUFReader(tiny_gguf), gguf.GGUFReader(tmp_path / "it.gguf")
    kept = {name for name in base.fields if not name.startswith("GGUF.")}
    assert {name for name in found.fields if not name.startswith("GGUF.")} == kept
    assert all(found.fields[name].contents() == base.fields[name].contents() for name in kept)
    assert [tensor.name for tensor in found.tensors] == [tensor.name for tensor in base.tensors]
    changed = {one.name for one, other in zip(found.tensors, base.tensors, strict=True) if one.tensor_type == PACKED}
    assert len(changed) >= len(adapter.a)

    merged_folder = import_and_open(tmp_path / "it.gguf", tmp_path / "models", name="merged", dtype="float32")
    merged = LanguageModel(merged_folder, dtype=torch.float32)
    personal = LanguageModel(model_folder, dtype=torch.float32)
    personal.set_parameters(adapter)
    tokens = [[5, 6, 7, 8, 9]]
    with torch.inference_mode():
        logits = [model.next_logits(torch.tensor(tokens), DynamicCache()) for model in (merged, personal)]
        personal.set_parameters(None)
        unchanged = personal.next_logits(torch.tensor(tokens), DynamicCache())
    error, effect = float((logits[0] - logits[1]).abs().max()), float((unchanged - logits[1]).abs().max())
    assert error < 0.1 * effect


def test_without_the_bases_file_there_is_no_merged_one(tiny: ModelFolder, tmp_path: Path) -> None:
    of_all_maps(tiny).save(tmp_path / "it")
    with pytest.raises(CannotExport, match=r"not imported from a GGUF file\. Export a LoRA file"):
        write_merged_gguf(tmp_path / "it", tiny, tmp_path / "it.gguf")
    assert not list(tmp_path.glob("*.gguf"))
