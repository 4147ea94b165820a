"""Adapters leave as a file for llama.cpp: over HTTP, and by the command line on a real daemon."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.params.lora import WEIGHTS_NAME, Adapter, load_adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.storage.store import Store
from tests.support.daemon.commands import commands
from tests.support.daemon.in_process_app import InProcessApp, assert_problem
from tests.support.daemon.real_daemon import running
from tests.support.models.learning import equal, fresh_process, some_adapter
from tests.support.stored import start_job, succeed


def learn(folder: Path, store: Store) -> Adapter:
    """An adapter of the model tiny in a data folder, by the id of adapter-1."""
    adapter = some_adapter(LanguageModel(open_model_folder(folder / "models" / "tiny")))
    adapter.save(folder / "adapters" / "adapter-1")
    succeed(store, start_job(store), "adapter-1")
    return adapter


def test_an_adapter_leaves_as_a_file_for_llama_cpp(api: InProcessApp, tmp_path: Path) -> None:
    adapter = learn(api.services.folder.root, api.services.store)
    response = api.get("/adapters/adapter-1/export?format=gguf")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == 'attachment; filename="adapter-1.gguf"'
    assert int(response.headers["content-length"]) == len(response.content)
    (tmp_path / "it.gguf").write_bytes(response.content)
    reader = gguf.GGUFReader(tmp_path / "it.gguf")
    assert reader.fields["general.name"].contents() == "adapter-1"
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(found) == 2 * len(adapter.a)
    expected = adapter.b["model.layers.1.mlp.down_proj"].numpy()
    assert np.array_equal(found["blk.1.ffn_down.weight.lora_b"], expected)
    assert not list(api.services.folder.exports.iterdir())


def test_what_a_killed_daemon_was_writing_goes_at_the_next_start(api: InProcessApp) -> None:
    half = api.services.folder.exports / "tmp1" / "whole.gguf"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"GGUF")
    api.services.scheduler.recover(api.clock.now)
    assert not half.parent.exists()


@pytest.mark.parametrize(
    ("gone", "says"),
    [("models/tiny/pocketllm.json", "models add"), (f"adapters/adapter-1/{WEIGHTS_NAME}", "adapter-1 cannot be read")],
)
def test_what_cannot_be_exported(api: InProcessApp, gone: str, says: str) -> None:
    root = api.services.folder.root
    learn(root, api.services.store)
    (root / gone).unlink()
    document = assert_problem(api.get("/adapters/adapter-1/export?format=gguf"), 409, "cannot_export")
    assert says in document["detail"]
    assert not list(api.services.folder.exports.iterdir())


PROGRAM = """
import json, sys
from pathlib import Path
import pocketllm.api.app, pocketllm.server
from pocketllm.daemon.tools.export import export_gguf
export_gguf(*map(Path, sys.argv[1:]))
print(json.dumps([name for name in ("torch", "numpy", "gguf") if name in sys.modules]))
"""


def test_the_daemons_process_stays_small(api: InProcessApp, tmp_path: Path) -> None:
    root = api.services.folder.root
    learn(root, api.services.store)
    assert fresh_process(PROGRAM, root / "adapters/adapter-1", root / "models/tiny", tmp_path / "it.gguf") == []
    assert (tmp_path / "it.gguf").exists()


def test_by_the_command_line(tmp_path: Path, models: Path) -> None:
    """Against the real daemon."""
    folder, out = tmp_path / "data", tmp_path / "out"
    with running(folder, MODEL="tiny"):
        shutil.copytree(models, folder / "models")
        store = Store.open(folder / "pocketllm.db")
        adapter = learn(folder, store)
        store.close()
        run = commands(folder)
        export = ("adapters", "export", "adapter-1", "--format", "gguf", "--to", str(out))
        said = run(*export).stdout
        assert f"-m BASE.gguf --lora {out / 'adapter-1.gguf'}" in said
        again = run(*export)
        assert again.exit_code == 2 and "already exists" in again.stderr
        (out / "adapter-1.gguf").unlink()
        assert run("adapters", "export", "adapter-1", "--to", str(tmp_path / "peft")).exit_code == 0
        assert equal(load_adapter(tmp_path / "peft" / "adapter-1"), adapter)
        told = json.loads(run(*export, "--json").stdout)
    file = out / "adapter-1.gguf"
    assert told == {"id": "adapter-1", "file": str(file)}
    assert list(out.iterdir()) == [file]
    assert gguf.GGUFReader(file).fields["general.name"].contents() == "adapter-1"
