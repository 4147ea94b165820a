import json
import math
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pocketllm.daemon.process_memory import bytes_of
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Manifest,
    ModelFolder,
    list_model_folders,
    open_model_folder,
)
from pocketllm.engine.formats.quantization import PACKINGS, SCALES
from pocketllm.engine.formats.safetensors_io import ALIGNMENT_BYTES, read_header, write_safetensors
from tests.support.models.learning import imported
from tests.support.models.tiny_architectures import ODD_VOCABULARY
from tests.support.models.tiny_models import mapped

EMBEDDINGS = "model.embed_tokens.weight"

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


@pytest.fixture
def copied(tmp_path: Path, tiny_bf16: ModelFolder) -> ModelFolder:
    """A copy of the tiny model, to be damaged."""
    return open_model_folder(Path(shutil.copytree(tiny_bf16.path, tmp_path / "tiny")))


def test_importing_the_room_stays_light() -> None:
    code = (
        "import sys, pocketllm.mezo, pocketllm.engine.formats.model_folder, pocketllm.engine.formats.importer;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_manifest_refuses(tmp_path: Path, subtests: pytest.Subtests) -> None:
    wrong = {
        "format": 2,
        "name": "tiny\n",
        "parameters": True,
        "weights_bytes": -1,
        "weights_sha256": "abc",
        "dtype": "int3",
        "compute_dtype": "int8",
        "quantization_error": math.nan,
        "created_at": "2026-01-02T03:04:05",
        "license": None,
    }
    for field, value in wrong.items():
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(json.loads(MANIFEST.to_json()) | {field: value}))
        problem = rf"pocketllm\.json is broken: {field}: \w.*Import the model again"
        with subtests.test(field), pytest.raises(ModelFileError, match=problem):
            open_model_folder(tmp_path)


def test_open_finds_no_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelFileError, match="pocketllm models add"):
            open_model_folder(folder)


def test_open_refuses_a_broken_manifest(tmp_path: Path) -> None:
    for text in ("", "{", "{}", "[]", "[" * 100_000, "\udcff"):
        (tmp_path / MANIFEST_NAME).write_text(text, errors="surrogateescape")
        with pytest.raises(ModelFileError, match=r"pocketllm\.json is broken"):
            open_model_folder(tmp_path)


def test_open_notices_another_size(copied: ModelFolder) -> None:
    with copied.weights.open("ab") as file:
        file.truncate(1000)
    with pytest.raises(ModelFileError, match="is 1000 bytes, not"):
        open_model_folder(copied.path)
    copied.weights.unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        open_model_folder(copied.path)


def test_verify_finds_one_flipped_bit(copied: ModelFolder) -> None:
    open_model_folder(copied.path, verify=True)
    whole = copied.weights.read_bytes()
    for place in (20, len(whole) - 1):  # in the header, and in the last tensor
        copied.weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        open_model_folder(copied.path)
        with pytest.raises(ModelFileError, match="has changed since the import"):
            open_model_folder(copied.path, verify=True)


def test_list_leaves_out_what_is_no_model(tmp_path: Path, tiny_bf16: ModelFolder) -> None:
    assert list_model_folders(tmp_path / "absent") == []
    for name in ("c", "b", "broken", ".a.importing-1"):
        shutil.copytree(tiny_bf16.path, tmp_path / name)
    (tmp_path / "broken" / WEIGHTS_NAME).unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert [model.path.name for model in list_model_folders(tmp_path)] == ["b", "c"]


def test_broken_config_and_tokenizer_are_named(copied: ModelFolder) -> None:
    (copied.path / "config.json").write_text("{")
    (copied.path / "tokenizer.json").write_text('{"version": 1}')
    with pytest.raises(ModelFileError, match=r"config\.json cannot be used"):
        copied.config()
    with pytest.raises(ModelFileError, match=r"tokenizer in .* cannot be used"):
        copied.tokenizer()


def test_every_tensor_is_mapped_where_the_file_holds_it(root: Path) -> None:
    for dtype in ("bfloat16", *PACKINGS):
        model_folder = imported(root, "llama", dtype)
        entries, stored = read_header(model_folder.weights), load_file(model_folder.weights)
        tensors = mapped(model_folder)
        assert tensors.keys() == stored.keys()
        assert all(torch.equal(tensors[name], stored[name]) for name in stored)
        assert all(entry.offset % ALIGNMENT_BYTES == 0 for entry in entries.values())
        if dtype in PACKINGS:
            # The scales of 263 rows are the only part of odd length; with the rows themselves they stand at the end.
            assert list(entries)[-2:] == [EMBEDDINGS, EMBEDDINGS + SCALES]
            assert entries[EMBEDDINGS + SCALES].shape == (ODD_VOCABULARY, 1)


def test_writing_to_a_tensor_ends_the_process(tiny_bf16: ModelFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from pocketllm.engine.streamed.weights import open_weights;"
        "open_weights(Path(sys.argv[1]))['model.norm.weight'].floats.zero_()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bf16.weights)], check=False)
    assert done.returncode == -signal.SIGSEGV
    open_model_folder(tiny_bf16.path, verify=True)


def test_memory_of_tensors_is_file_backed(tmp_path: Path) -> None:
    size = 64 << 20
    tensors, rows = [("w", (1024, size // 4096), torch.float32)], (torch.ones(size // 4096) for _ in range(1024))
    nbytes, sha256 = write_safetensors(tmp_path / WEIGHTS_NAME, tensors, rows)
    manifest = MANIFEST.model_copy(update={"weights_bytes": nbytes, "weights_sha256": sha256})
    (tmp_path / MANIFEST_NAME).write_text(manifest.to_json())
    before = {kind: bytes_of(kind) or 0 for kind in ("RssAnon", "RssFile", "VmData")}
    tensor = mapped(open_model_folder(tmp_path))["w"]
    assert sum(float(row.sum()) for row in tensor) == size // 4
    grown = {kind: (bytes_of(kind) or 0) - before[kind] for kind in before}
    assert grown["RssFile"] > 0.9 * size
    assert grown["RssAnon"] < 0.1 * size
    # What RLIMIT_DATA counts.
    assert grown["VmData"] < 0.1 * size
