"""The recipes in examples/, run as their readers would against a real daemon with a tiny model."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon.real_daemon import Daemon
from tests.support.daemon.tiny_daemon import tiny_daemon
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with tiny_daemon(tmp_path_factory.mktemp("examples") / "data", TRAINING__STEPS="4") as made:
        yield made


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def texts(daemon: Daemon, source: str) -> list[str]:
    return sorted(item["text"] for item in daemon.client.get("/texts").json()["data"] if item["source"] == source)


@pytest.mark.smoke
def test_curl(daemon: Daemon) -> None:
    sentence = 'Said: "glass\\rising", and ate.'
    given = {"URL": daemon.url, "TOKEN": daemon.app_token("curl", "ingest", "generate")}
    ended = run("dash", str(EXAMPLES / "curl.sh"), sentence, **given)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert texts(daemon, "curl") == [sentence]
    assert '"data": []' in ended.stdout and '"finish_reason"' in ended.stdout


@pytest.mark.smoke
def test_openais_client(daemon: Daemon) -> None:
    given = {"URL": daemon.url, "TOKEN": daemon.app_token("chat", "generate")}
    said = []
    for _ in range(3):  # now and then the tiny model draws the end of its text at once
        ended = run(sys.executable, str(EXAMPLES / "openai_client.py"), "How was the wind?", **given)
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stdout)
    assert max(map(len, said)) > 5


def test_fine_tuning(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    answer = {"role": "assistant", "content": "Wind west, glass rising."}
    chats = [{"messages": [{"role": "user", "content": f"How was day {day}?"}, answer]} for day in range(20)]
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    given = {"URL": daemon.url, "TOKEN": daemon.app_token("tune", "ingest", "generate", "train")}
    ended = run(sys.executable, str(EXAMPLES / "fine_tune.py"), str(file), "How was it?", **given)
    assert ended.returncode == 0, ended.stderr
    told = ended.stdout.splitlines()
    assert told[0] == "queued: queued by owner" and any("held-out loss" in line for line in told)
    assert re.search(r"^ft:tiny:pocketllm:example:adapter-\w+: ", ended.stdout, re.MULTILINE)


def test_what_tasker_is_told_to_send(daemon: Daemon) -> None:
    headers = {"authorization": f"Bearer {daemon.app_token('tasker', 'ingest')}"}
    page = (EXAMPLES / "tasker.md").read_text()
    share, suggest, screen = re.findall(r"`POST`, `http://127\.0\.0\.1:2407(\S+)`", page)
    kind = re.findall(r"type `(\S+)`", page)[0]
    sent = daemon.stranger.post(share, content="Shared.", headers={**headers, "content-type": kind})
    assert sent.status_code == 201
    assert texts(daemon, "share") == ["Shared."]
    bodies = re.findall(r'`(\{"on": \w+\})`', page)
    assert len(bodies) == 2
    [context] = re.findall(r'`(\{"context": .*\})`', page)
    suggested = daemon.client.post(suggest, content=context, headers={"content-type": "application/json"})
    assert suggested.status_code == 200, suggested.text
    for body in bodies:
        told = daemon.stranger.post(screen, content=body, headers={**headers, "content-type": "application/json"})
        assert told.status_code == 200, told.text


@pytest.mark.skipif(shutil.which("emacs") is None, reason="emacs is not installed: apt-get install emacs-nox")
def test_emacs_completes_a_word(daemon: Daemon, tmp_path: Path) -> None:
    daemon.client.post("/texts", json=[{"text": "Quillfeather rowed. " * 40, "source": "notes"}])
    recipe = re.findall(r"```elisp\n(.*?)```", (EXAMPLES / "editors.md").read_text(), re.DOTALL)[0]
    server = f'"{sys.executable}" "-m" "pocketllm" "lsp" "--data-dir" "{daemon.folder}"'
    assert '"pocketllm" "lsp"' in recipe
    file = tmp_path / "letter.txt"
    file.touch()
    typing = f'''
        (require 'eglot) (setq eglot-sync-connect 60 completion-auto-help nil)
        (find-file "{file}") (text-mode) (apply #'eglot (eglot--guess-contact))
        (insert "Then Qui")
        (let ((end (+ (float-time) 60)))  ; it answers once the model is in memory
          (while (and (< (float-time) end) (equal (buffer-string) "Then Qui"))
            (setq eglot--capf-session :none) (completion-at-point)))
        (message "now: %s" (buffer-string))
        (set-buffer-modified-p nil) (eglot-shutdown (eglot-current-server))'''
    (tmp_path / "test.el").write_text(recipe.replace('"pocketllm" "lsp"', server) + typing)
    ended = run("emacs", "--batch", "-Q", "-l", str(tmp_path / "test.el"), HOME=str(tmp_path))
    assert "now: Then Quillfeather" in ended.stderr, ended.stderr


def test_what_editors_are_told_to_send(daemon: Daemon) -> None:
    page = (EXAMPLES / "editors.md").read_text()
    completions, chat = re.findall(r"http://127\.0\.0\.1:2407(/v1/\S*completions)", page)
    assert page.count("pocketllm:latest") == 3
    common = {"model": "pocketllm:latest", "max_tokens": 12}
    authorization = f"Bearer {daemon.app_token('editor', 'generate')}"
    asked = {**common, "prompt": "Wind west,", "stream": False, "stop": ["\n"]}
    answer = daemon.stranger.post(completions, json=asked, headers={"authorization": authorization})
    assert answer.status_code == 200 and "warnings" not in answer.json()
    for origin in ("app://obsidian.md", "capacitor://localhost"):
        asked = {**common, "messages": [{"role": "user", "content": "Wind west,"}]}
        headers = {"authorization": authorization, "origin": origin}
        answer = daemon.stranger.post(chat, json=asked, headers=headers)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
