import gc
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pocketllm.engine.errors import ModelFileError, ModelNotFound
from pocketllm.engine.formats.model_folder import (
    DTYPES,
    FLOAT_DTYPES,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Manifest,
    list_model_folders,
    open_model_folder,
)
from pocketllm.engine.formats.safetensors_io import ALIGNMENT_BYTES, write_safetensors
from pocketllm.engine.streamed.quantization import PACKINGS
from tests.support.tiny_models import mapped, tiny_model_folder

MANIFEST = Manifest(
    name="tiny",
    source="tiny.gguf",
    license="apache-2.0",
    architecture="LlamaForCausalLM",
    model_type="llama",
    parameters=26880,
    dtype="bfloat16",
    weights_bytes=55808,
    weights_sha256="0" * 64,
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model; tests do not change it."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model_folder(folder)
    return folder


def test_the_dtypes_are_the_floats_and_the_packings() -> None:
    assert DTYPES == FLOAT_DTYPES + PACKINGS
    assert all(getattr(torch, dtype).is_floating_point for dtype in FLOAT_DTYPES)


def test_importing_the_room_stays_light() -> None:
    code = (
        "import sys, pocketllm.mezo, pocketllm.engine.formats.model_folder, pocketllm.engine.formats.importer;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_manifest_survives_json() -> None:
    text = MANIFEST.to_json()
    assert Manifest.model_validate_json(text) == MANIFEST
    assert json.loads(text)["created_at"] == "2026-01-02T03:04:05Z"
    assert json.loads(text)["format"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"name": "../tiny"},
        {"name": "tiny\n"},
        {"name": 7},
        {"parameters": "many"},
        {"parameters": True},
        {"weights_bytes": -1},
        {"weights_sha256": "abc"},
        {"dtype": "int3"},
        {"compute_dtype": "int8"},
        {"compute_dtype": None},
        {"quantization_error": "small"},
        {"quantization_error": True},
        {"quantization_error": -0.1},
        {"quantization_error": float("nan")},
        {"calibration": []},
        {"created_at": "2026-01-02T03:04:05"},
        {"created_at": "yesterday"},
        {"created_at": 5},
        {"license": None},
    ],
    ids=str,
)
def test_manifest_refuses(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(json.loads(MANIFEST.to_json()) | change))
    [field] = change
    with pytest.raises(ModelFileError, match=rf"pocketllm\.json is broken: {field}: \w.*Import the model again"):
        open_model_folder(tmp_path)


def test_manifest_of_a_packed_model_survives_json() -> None:
    packed = {"dtype": "int4", "quantization_error": 0.0625, "compute_dtype": "float32"}
    manifest = MANIFEST.model_copy(update={**packed, "calibration": {"epsilon": [1e-3]}})
    assert Manifest.model_validate_json(manifest.to_json()) == manifest


def test_manifest_says_whether_the_model_fills_in_masks() -> None:
    assert not MANIFEST.is_mlm
    assert MANIFEST.model_copy(update={"architecture": "RobertaForMaskedLM"}).is_mlm


def test_manifest_names_what_is_missing() -> None:
    values = json.loads(MANIFEST.to_json())
    del values["dtype"], values["license"]
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate_json(json.dumps(values))
    assert [error["loc"] for error in caught.value.errors()] == [("license",), ("dtype",)]


def test_open_finds_no_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelNotFound, match="pocketllm models add"):
            open_model_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, "\udcff"])
def test_open_refuses_a_broken_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text, errors="surrogateescape")
    with pytest.raises(ModelFileError, match=r"pocketllm\.json is broken"):
        open_model_folder(tmp_path)


def test_open_notices_another_size(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    with (folder / WEIGHTS_NAME).open("ab") as file:
        file.truncate(1000)
    with pytest.raises(ModelFileError, match="is 1000 bytes, not"):
        open_model_folder(folder)
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        open_model_folder(folder)


def test_verify_finds_one_flipped_bit(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    open_model_folder(folder, verify=True)
    weights = bytearray((folder / WEIGHTS_NAME).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(weights)
    open_model_folder(folder)
    with pytest.raises(ModelFileError, match="has changed since the import"):
        open_model_folder(folder, verify=True)


def test_list_leaves_out_what_is_no_model(tmp_path: Path) -> None:
    assert list_model_folders(tmp_path / "absent") == []
    tiny_model_folder(tmp_path, "b")
    tiny_model_folder(tmp_path, "a")
    tiny_model_folder(tmp_path, "broken")
    (tmp_path / "broken" / WEIGHTS_NAME).unlink()
    (tmp_path / "a").rename(tmp_path / ".a.importing-1")
    tiny_model_folder(tmp_path, "c")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert [model.manifest.name for model in list_model_folders(tmp_path)] == ["b", "c"]


def test_config_and_tokenizer(models_dir: Path) -> None:
    model = open_model_folder(models_dir / "tiny")
    assert model.config().architectures == ["LlamaForCausalLM"]
    tokenizer = model.tokenizer()
    text = "Grüße, 12 <|im_end|>\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_broken_config_and_tokenizer_are_named(tmp_path: Path) -> None:
    model = open_model_folder(tiny_model_folder(tmp_path))
    (model.path / "config.json").write_text("{")
    (model.path / "tokenizer.json").write_text('{"version": 1}')
    with pytest.raises(ModelFileError, match=r"config\.json cannot be used"):
        model.config()
    with pytest.raises(ModelFileError, match=r"tokenizer in .* cannot be used"):
        model.tokenizer()


def test_tensors_are_what_the_file_holds(models_dir: Path) -> None:
    model = open_model_folder(models_dir / "tiny")
    tensors, reference = mapped(model), load_file(model.weights)
    assert tensors.keys() == reference.keys()
    assert "lm_head.weight" not in tensors
    assert all(torch.equal(tensors[name], reference[name]) for name in reference)
    assert all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == model.manifest.parameters


def test_tensors_outlive_their_model(models_dir: Path) -> None:
    model = open_model_folder(models_dir / "tiny")
    expected = load_file(model.weights)["model.norm.weight"]
    tensor = mapped(model)["model.norm.weight"]
    del model
    gc.collect()
    assert torch.equal(tensor, expected)


def test_writing_to_a_tensor_ends_the_process(models_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pocketllm.engine.streamed.weights import open_weights;"
        "open_weights(Path(sys.argv[1]))['model.norm.weight'].floats.zero_()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(models_dir / "tiny" / WEIGHTS_NAME)], check=False)
    assert done.returncode == -signal.SIGSEGV
    open_model_folder(models_dir / "tiny", verify=True)


def test_a_broken_header_behind_a_good_manifest(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes(b"\0" * 100)
    (tmp_path / MANIFEST_NAME).write_text(MANIFEST.model_copy(update={"weights_bytes": 100}).to_json())
    with pytest.raises(ModelFileError, match="not a complete safetensors file"):
        mapped(open_model_folder(tmp_path))


def memory_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{kind}:")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_of_tensors_is_file_backed(tmp_path: Path) -> None:
    size = 64 << 20
    tensors, rows = [("w", (1024, size // 4096), torch.float32)], (torch.ones(size // 4096) for _ in range(1024))
    nbytes, sha256 = write_safetensors(tmp_path / WEIGHTS_NAME, tensors, rows)
    manifest = MANIFEST.model_copy(update={"weights_bytes": nbytes, "weights_sha256": sha256})
    (tmp_path / MANIFEST_NAME).write_text(manifest.to_json())
    before = {kind: memory_bytes(kind) for kind in ("RssAnon", "RssFile", "VmData")}
    tensor = mapped(open_model_folder(tmp_path))["w"]
    assert sum(float(row.sum()) for row in tensor) == size // 4
    grown = {kind: memory_bytes(kind) - before[kind] for kind in before}
    assert grown["RssFile"] > 0.9 * size
    assert grown["RssAnon"] < 0.1 * size
    # What RLIMIT_DATA counts.
    assert grown["VmData"] < 0.1 * size
