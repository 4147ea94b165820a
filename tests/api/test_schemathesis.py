"""The document at /openapi.json is true: schemathesis finds no answer that differs from it, and no error of ours.

All of its checks and phases, on the real daemon, with requests that fit the document and requests that do not.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from pocketllm.engine.formats.importer import import_model
from tests.support.daemon.real_daemon import running
from tests.support.daemon.tiny_daemon import SMALL_JOB
from tests.support.models.tiny_models import edit_json, tiny_llama_folder

CONFIG = Path(__file__).parent / "schemathesis.toml"


@pytest.mark.smoke
def test_nothing_differs_from_the_document(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    source = tiny_llama_folder(tmp_path / "source")
    edit_json(source / "config.json", max_position_embeddings=1024)
    (tmp_path / "data").mkdir()
    import_model(str(source), tmp_path / "data" / "models", name="tiny", dtype="float32")
    with running(tmp_path / "data", MODEL="tiny", TRAINING__NEW_WORDS="100000", **SMALL_JOB) as daemon:
        notes = [{"text": f"Wind west, glass rising. Mug of tea number {n}.", "source": "notes"} for n in range(30)]
        assert daemon.client.post("/texts", json=notes).status_code == 201
        daemon.wait_for_job(daemon.start_job(steps=4, seed=1), "succeeded")
        document = tmp_path / "openapi.json"
        document.write_bytes(daemon.client.get("/openapi.json").content)
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", str(document)]
        command += ["--url", daemon.url, "--seed", "1", "--no-color"]
        command += ["--max-examples", str(pytestconfig.getoption("examples"))]
        command += ["--header", f"Authorization: Bearer {daemon.token}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
        assert "Traceback" not in daemon.log
