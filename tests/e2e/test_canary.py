"""A word that stands in texts, labels, sources, file names, prompts and settings is told to nobody without a token.

The real daemon, worker and generator; the word is looked for in every answer to a stranger, in every log, in
what is kept of jobs, and at last in the files of the data folder.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.daemon.real_daemon import Daemon
from tests.support.daemon.tiny_daemon import SMALL_JOB, tiny_daemon

pytestmark = pytest.mark.smoke

WORD = "quillfeather"
EXAMPLES = [
    {"text": f"plain {WORD} words", "source": f"{WORD} notes"},
    {"prompt": f"{WORD} asks", "completion": f"{WORD} answers", "source": "chat"},
    {"messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": f"{WORD}, always."}]},
    *({"text": f"{WORD} number {number}, wind west and glass rising", "source": "notes"} for number in range(30)),
]
LABELLED = {"text": f"{WORD} with a label", "label": WORD, "source": "labels"}
#: Requests that are answered with an error, and hold the word wherever a request can.
FAULTY: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/texts", {"content": f'{{"text": "{WORD}'}),
    ("POST", "/texts", {"json": {"text": f"{WORD}", "label": WORD * 100}}),
    ("POST", "/texts", {"json": {WORD: WORD}}),
    ("POST", "/texts", {"content": WORD.encode() + b"\xff", "headers": {"content-type": "text/plain"}}),
    ("POST", "/generate", {"json": {"prompt": WORD, "adapter": WORD}}),
    ("POST", "/generate", {"json": {"prompt": WORD * 200_000, "max_tokens": 1}}),
    ("POST", "/v1/chat/completions", {"json": {"model": WORD, "messages": [{"role": "user", "content": WORD}]}}),
    ("POST", "/v1/fine_tuning/jobs", {"json": {"model": WORD, "training_file": WORD, "suffix": WORD}}),
    ("GET", f"/texts/{WORD}", {}),
    ("DELETE", f"/texts?source={WORD}", {}),
    ("GET", f"/{WORD}?{WORD}={WORD}", {}),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has met the word everywhere: learned it, said it, failed on it."""
    with tiny_daemon(tmp_path_factory.mktemp("canary") / "data", LOG_LEVEL="debug", **SMALL_JOB) as daemon:
        client = daemon.client
        assert client.post("/texts", json=EXAMPLES).status_code == 201
        file = {"file": (f"{WORD}.jsonl", json.dumps({"text": f"{WORD} in a file"}).encode())}
        assert client.post("/v1/files", files=file, data={"purpose": "fine-tune"}).status_code == 200
        daemon.wait_for_job(daemon.start_job(steps=4, seed=1), "succeeded")
        assert client.post("/generate", json={"prompt": WORD, "max_tokens": 4}).status_code == 200
        assert client.post("/texts", json=LABELLED).status_code == 201
        assert client.post("/classify", json={"text": WORD, "labels": [WORD, "other"]}).status_code == 409
        for method, path, request in FAULTY:
            assert client.request(method, path, **request).is_error, path
        yield daemon


def answers(daemon: Daemon, client: httpx.Client) -> Iterator[tuple[str, httpx.Response]]:
    """What each documented route answers, with the ids that there are."""
    document = daemon.client.get("/openapi.json").json()
    ids = {
        "text_id": daemon.client.get("/texts").json()["data"][0]["id"],
        "job_id": daemon.client.get("/jobs").json()["data"][0]["id"],
        "adapter_id": daemon.client.get("/adapters").json()["data"][0]["id"],
        "file_id": daemon.client.get("/v1/files").json()["data"][0]["id"],
        "name": "page.js",
    }
    for path, operations in document["paths"].items():
        for method in operations:
            filled = path.format_map({**dict.fromkeys(("deletion_id", "app", "model_id"), "x"), **ids})
            yield f"{method} {path}", client.request(method, filled, json={} if method == "post" else None)


def test_nobody_without_a_token_is_told_it(daemon: Daemon) -> None:
    for headers in ({}, {"authorization": f"Bearer {WORD}"}):
        with httpx.Client(base_url=daemon.url, headers=headers, timeout=60) as client:
            for route, answer in answers(daemon, client):
                assert WORD not in answer.text, route
                assert WORD not in str(answer.headers), route
            for method, path, request in FAULTY:
                answer = client.request(method, path, **request)
                assert answer.status_code in (401, 404) and WORD not in answer.text, path


def test_no_log_has_it(daemon: Daemon) -> None:
    assert "worker" in daemon.log and WORD not in daemon.log
    assert WORD not in (daemon.folder / "worker.log").read_text()


def test_what_is_kept_of_jobs_does_not_have_it(daemon: Daemon) -> None:
    with closing(sqlite3.connect(daemon.folder / "pocketllm.db")) as database:
        for kept in ("SELECT message FROM event", "SELECT numbers FROM report", "SELECT reasons FROM job"):
            assert all(WORD not in str(row) for row in database.execute(kept)), kept


def test_only_the_database_holds_it(daemon: Daemon) -> None:
    holding = {path.name for path in daemon.folder.rglob("*") if path.is_file() and WORD.encode() in path.read_bytes()}
    assert holding <= {"pocketllm.db", "pocketllm.db-wal", "pocketllm.db-shm"}


def test_no_file_can_be_read_by_others(daemon: Daemon) -> None:
    for path in (daemon.folder, *daemon.folder.rglob("*")):
        if "models" not in path.parts and path.name != "test-daemon.log":
            assert not path.lstat().st_mode & 0o077, path


def test_only_loopback_is_listened_at(daemon: Daemon) -> None:
    inodes = {
        link.readlink().name.removeprefix("socket:[").removesuffix("]")
        for link in Path(f"/proc/{daemon.process.pid}/fd").iterdir()
        if link.readlink().name.startswith("socket:[")
    }
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, _, *rest = line.split()
            assert rest[5] not in inodes or local.startswith("0100007F:"), line
