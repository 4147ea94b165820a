"""Adapters that were trained elsewhere: what PEFT writes is read, and everything else is refused by a sentence."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pocketllm.engine.errors import AdapterError
from pocketllm.engine.formats.lora_folder import CONFIG_NAME, WEIGHTS_NAME, fitting_paths
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.planning.shapes import read_shapes
from tests.support.models.tiny_models import edit_json, edit_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of PEFT and transformers


def by_peft(model: ModelFolder, to: Path, **settings: object) -> Path:
    """An adapter as PEFT writes it."""
    base = AutoModelForCausalLM.from_pretrained(model.path)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **settings)  # type: ignore[arg-type]
    get_peft_model(base, config).save_pretrained(str(to))
    return to


def import_lora(folder: Path, model: ModelFolder) -> Adapter:
    return load_adapter(folder, fitting_paths(folder, read_shapes(model).linears))


@pytest.mark.parametrize(
    ("targets", "number"), [(["q_proj", "v_proj"], 4), ("all-linear", 14), (r".*\.1\.mlp\..*_proj", 3)]
)
def test_peft_names_modules_by_suffixes_and_patterns(
    tiny_bf16: ModelFolder, tmp_path: Path, targets: list[str] | str, number: int
) -> None:
    folder = by_peft(tiny_bf16, tmp_path / "it", target_modules=targets)
    adapter = import_lora(folder, tiny_bf16)
    assert (len(adapter.a), adapter.rank, adapter.alpha) == (number, 4, 8.0)
    stored = load_file(folder / WEIGHTS_NAME)
    path = next(iter(adapter.b))
    assert torch.equal(adapter.b[path], stored[f"base_model.model.{path}.lora_B.weight"].float())
    adapter.save(tmp_path / "copy")  # which is one of this program's
    assert list(load_adapter(tmp_path / "copy").a) == list(adapter.a)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_is_more_than_lora_is_refused_by_name(
    tiny_bf16: ModelFolder, tmp_path: Path, settings: dict[str, object]
) -> None:
    folder = by_peft(tiny_bf16, tmp_path / "it", target_modules=["q_proj"], **settings)
    with pytest.raises(AdapterError, match=f"{next(iter(settings))}; only plain LORA"):
        import_lora(folder, tiny_bf16)


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    edit_tensors(folder / WEIGHTS_NAME, change)


def pipe(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    os.mkfifo(folder / WEIGHTS_NAME)


def other(found: dict[str, torch.Tensor], tensor: torch.Tensor) -> None:
    found[next(iter(found))] = tensor


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda it: (it / WEIGHTS_NAME).rename(it / "adapter_model.bin"), "Pickles are not read"),
    "pipe": (pipe, "Pickles are not read"),
    "truncated": (lambda it: os.truncate(it / WEIGHTS_NAME, 500), "not a complete safetensors"),
    "pickle": (lambda it: (it / WEIGHTS_NAME).write_bytes(b"\x80\x04cos\nsystem\n"), "not a complete safetensors"),
    "long header": (lambda it: (it / WEIGHTS_NAME).write_bytes(b"\xff" * 8 + b"{"), "not a complete safetensors"),
    "not finite": (lambda it: tensors(it, lambda found: other(found, torch.full((4, 32), torch.nan))), "no numbers"),
    "of another shape": (lambda it: tensors(it, lambda found: other(found, torch.ones(4, 33))), "not fit"),
    "unknown tensor": (lambda it: tensors(it, lambda found: found.update(x=torch.ones(1))), "x \\(1,\\) is only"),
    "no B": (lambda it: tensors(it, lambda found: found.pop(sorted(found)[1])), "lora_B.weight .* is only"),
    "empty": (lambda it: tensors(it, lambda found: found.clear()), "has rank 4"),
    "huge rank": (lambda it: edit_json(it / CONFIG_NAME, r=10**9), "does not fit"),
    "rank 0": (lambda it: edit_json(it / CONFIG_NAME, r=0), "does not fit"),
    "endless alpha": (lambda it: edit_json(it / CONFIG_NAME, lora_alpha=float("inf")), "alpha inf"),
    "endless rank": (lambda it: edit_json(it / CONFIG_NAME, r=float("inf")), "cannot be read"),
    "other kind": (lambda it: edit_json(it / CONFIG_NAME, peft_type="IA3"), "only LORA"),
    "deep": (lambda it: (it / CONFIG_NAME).write_bytes(b"[" * 10**5), "cannot be read"),
    "large config": (lambda it: (it / CONFIG_NAME).write_bytes(b" " * 2**21 + b"{}"), "cannot be read"),
    "a list": (lambda it: (it / CONFIG_NAME).write_bytes(b"[]"), "cannot be read"),
}


def test_hostile_folders_are_refused(tiny_bf16: ModelFolder, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for harm, (do, said) in HARMS.items():
        folder = by_peft(tiny_bf16, tmp_path / harm, target_modules=["q_proj"])
        do(folder)
        with subtests.test(harm), pytest.raises(AdapterError, match=said) as caught:
            import_lora(folder, tiny_bf16)
        assert str(folder) in str(caught.value)
