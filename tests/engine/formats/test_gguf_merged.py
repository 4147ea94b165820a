"""The personal model as one GGUF file: read back, its weights are the base's with the adapter added."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import DynamicCache

from pocketllm.engine.errors import CannotExport
from pocketllm.engine.formats.gguf_merged import PACKED, write_merged_gguf
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import some_adapter
from tests.support.models.tiny_models import import_and_open


def test_its_weights_are_the_personal_models(tiny_gguf: Path, tmp_path: Path) -> None:
    model_folder = import_and_open(tiny_gguf, tmp_path / "models", name="tiny", dtype="float32")
    adapter = some_adapter(LanguageModel(model_folder), targets=None, alpha=6.0)
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


def test_without_the_bases_file_there_is_none(tiny: ModelFolder, tmp_path: Path) -> None:
    some_adapter(LanguageModel(tiny), targets=None).save(tmp_path / "it")
    with pytest.raises(CannotExport, match=r"not imported from a GGUF file\. Export a LoRA file"):
        write_merged_gguf(tmp_path / "it", tiny, tmp_path / "it.gguf")
    assert not list(tmp_path.glob("*.gguf"))
