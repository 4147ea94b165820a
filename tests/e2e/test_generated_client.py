"""A client that a generator makes of the OpenAPI document works with a real daemon."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest

from tests.support.daemon.real_daemon import Daemon, running
from tests.support.models.tiny_models import tiny_model_folder

pytestmark = pytest.mark.slow

PACKAGE = "generated_pocketllm"
JOB = {"TRAINING__METHOD": "mezo", "TRAINING__BATCH": "2", "TRAINING__BLOCK_TOKENS": "16", "TRAINING__RANK": "2"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("generated") / "data"
    folder.mkdir()
    tiny_model_folder(folder / "models")
    with running(folder, MODEL="tiny", TRAINING__NEW_WORDS="100000", TICK_SECONDS="0.1", **JOB) as made:
        yield made


@pytest.fixture(scope="module")
def generated(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the client's package; making it says nothing but that text/plain is left out."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_bytes(daemon.client.get("/openapi.json").content)
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    paths = ["--path", str(folder / "openapi.json"), "--output-path", str(folder / PACKAGE)]
    said = subprocess.run([*command, *paths], capture_output=True, text=True, check=True)
    warnings = [line for line in f"{said.stdout}\n{said.stderr}".splitlines() if "WARNING parsing" in line]
    # Of a body in several types the generator makes nothing.
    assert all("POST /texts within" in line for line in warnings), warnings
    sys.path.insert(0, str(folder))
    yield PACKAGE
    sys.path.remove(str(folder))


def test_a_text_is_added_learned_and_found(daemon: Daemon, generated: str) -> None:
    models = import_module(f"{generated}.models")
    made = partial(import_module(f"{generated}.client").AuthenticatedClient, base_url=daemon.url, token=daemon.token)

    def call(route: str, **given: Any) -> Any:
        with made() as client:
            answer = import_module(f"{generated}.api.{route}").sync(client=client, **given)
        assert answer is not None
        return answer

    notes = [models.PlainIn(text=f"Wind west, day {day}.", source="notes") for day in range(20)]
    assert call("texts.add_texts_texts_post", body=notes).created == 20
    found = call("texts.list_texts_texts_get", query="west", limit=3)
    assert len(found.data) == 3 and found.data[0].source == "notes"
    job = call("jobs.request_job_jobs_post", body=models.JobIn(steps=2, seed=1))
    daemon.wait_for_job(job.id, "succeeded")
    assert call("jobs.get_job_jobs_job_id_get", job_id=job.id).step == 2
    answer = call("generate.generate_generate_post", body=models.GenerateIn(prompt="Wind", max_tokens=3, seed=1))
    assert answer.completion_tokens <= 3 and answer.model == "tiny"
    suggested = call("generate.suggest_suggest_post", body=models.SuggestIn(context="Wind w", n=2))
    assert len(suggested.suggestions) <= 2
    assert call("status.status_status_get").texts.count == 20


def test_without_its_token_it_is_refused(daemon: Daemon, generated: str) -> None:
    with import_module(f"{generated}.client").Client(base_url=daemon.url) as client:
        answer = import_module(f"{generated}.api.texts.list_texts_texts_get").sync_detailed(client=client)
    assert answer.status_code == 401
