"""Finding the daemon, asking it, and what is said when that does not work."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from pocketllm.client import Client
from pocketllm.daemon.settings import load_settings
from pocketllm.errors import CommandError, DaemonRefused, DaemonSlow, NotADaemon, UsageError
from pocketllm.home import DEFAULT_URL, Target, configured_data_dir, find_target, owner_token
from tests.support.daemon.in_process_app import TOKEN
from tests.support.daemon.served import Served, announcement
from tests.support.other_server import other_server


def target(url: str, token: str | None = TOKEN) -> Target:
    return Target(url=url, token=token, without_token="none was found")


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(target(served.url)) as connected:
        yield connected


def write_home(folder: Path, url: str, token: str = "of-the-folder") -> Path:
    folder.mkdir()
    (folder / "daemon.json").write_text(json.dumps(announcement(url)))
    (folder / "tokens.json").write_text(json.dumps({"owner": token}))
    return folder


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Return a means to set variables, in an environment that says nothing of a daemon."""
    for name in ("POCKETLLM_DATA_DIR", "POCKETLLM_URL", "POCKETLLM_TOKEN", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POCKETLLM_CONFIG", str(tmp_path / "config.toml"))
    return monkeypatch


def test_the_data_folder_is_the_daemons(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = Path.home() / ".local/share/pocketllm"
    assert configured_data_dir() == usual
    for broken in ("data_dir = ", "data_dir = 7"):
        (tmp_path / "config.toml").write_text(broken)
        assert configured_data_dir() == usual
    (tmp_path / "config.toml").unlink()
    environ.setenv("XDG_DATA_HOME", "/share")
    assert configured_data_dir() == load_settings({}).data_dir == Path("/share/pocketllm")
    (tmp_path / "config.toml").write_text('data_dir = "/configured"')
    assert configured_data_dir() == load_settings({}).data_dir == Path("/configured")
    environ.setenv("POCKETLLM_DATA_DIR", "/named")
    assert configured_data_dir() == load_settings({}).data_dir == Path("/named")


def test_address_precedence(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = write_home(tmp_path / "given", "http://127.0.0.1:1111")
    usual = write_home(tmp_path / "usual", "http://127.0.0.1:2222")
    environ.setenv("POCKETLLM_DATA_DIR", str(tmp_path / "none"))
    assert find_target(None, None).url == DEFAULT_URL
    environ.setenv("POCKETLLM_DATA_DIR", str(usual))
    assert find_target(None, None).url == "http://127.0.0.1:2222"
    environ.setenv("POCKETLLM_URL", "http://127.0.0.1:3333/")
    assert find_target(None, None).url == "http://127.0.0.1:3333"
    assert find_target(None, given).url == "http://127.0.0.1:1111"
    assert find_target("http://127.0.0.1:4444", given).url == "http://127.0.0.1:4444"


def test_token_precedence(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = write_home(tmp_path / "home", "http://127.0.0.1:1111")
    assert find_target(None, home).token == "of-the-folder"
    assert find_target(None, tmp_path / "none").token is None
    environ.setenv("POCKETLLM_TOKEN", "mine")
    assert find_target(None, home).token == find_target("http://192.0.2.7:2407", home).token == "mine"


def test_the_folders_token_goes_to_its_own_daemon_alone(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another app may listen at the port that a daemon had."""
    home = write_home(tmp_path / "home", "http://127.0.0.1:1111")
    assert find_target("http://localhost:1111", home).token == "of-the-folder"
    for elsewhere in ("http://127.0.0.1:2407", "http://192.0.2.7:1111"):
        assert find_target(elsewhere, home).token is None
    record = announcement("http://127.0.0.1:1111")
    for ended in ({"process_started": 1}, {"process_started": None}, {"pid": 2**22 + 1}, {"pid": "x"}):
        (home / "daemon.json").write_text(json.dumps(record | ended))
        target = find_target(None, home)
        assert target.token is None
        assert "names no running daemon at http://127.0.0.1:1111" in target.without_token
    beside = str(home / "pocketllm.sock")
    (home / "daemon.json").write_text(json.dumps(record | {"process_started": 1, "socket": beside}))
    target = find_target(None, home)
    assert (target.token, str(target.socket)) == ("of-the-folder", beside)
    (home / "daemon.json").unlink()
    assert find_target(None, home).token is None


def test_what_is_no_address_is_refused(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for url in ("localhost:2407", "ftp://host", "http://", "http://host:99999", "http://[::1"):
        with pytest.raises(UsageError, match="looks like"):
            find_target(url, tmp_path)
    for broken in ("", "{", "[]", '{"url": 7}', '{"url": "nonsense"}', '{"pid": 3}'):
        (tmp_path / "daemon.json").write_text(broken)
        assert find_target(None, tmp_path).url == DEFAULT_URL, broken


def test_owner_token(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="pocketllm serve"):
        owner_token(tmp_path)
    (tmp_path / "tokens.json").write_text('{"owner": "secret"}')
    assert owner_token(tmp_path) == "secret"


def test_each_verb(client: Client, served: Served) -> None:
    assert client.get("health")["status"] == "ok"
    assert client.post("texts", body=[{"text": "a"}, {"text": "a"}])["duplicates"] == 1
    job = client.post("jobs", body={"steps": 5})
    assert job["total_steps"] == 5
    assert client.post("jobs", job["id"], "cancel")["state"] == "cancelled"
    served.requests.clear()
    client.get("jobs", limit=5, after=None)  # what is not given is not sent
    assert served.requests == ["GET /jobs?limit=5"]
    client.post("tokens", body={"name": "notes", "scopes": ["ingest"]})
    assert client.delete("tokens", "notes") == {}


def test_a_list_is_read_page_by_page(client: Client, served: Served) -> None:
    added = {served.api.add(f"Note {number}.")[0] for number in range(5)}
    found = [text["id"] for text in client.pages("texts", limit=2)]
    assert (len(found), set(found), len(served.requests)) == (5, added, 3)


def test_an_id_cannot_reach_another_route(client: Client, served: Served) -> None:
    with pytest.raises(DaemonRefused):
        client.get("jobs", "../status")
    assert served.requests[-1] == "GET /jobs/..%2Fstatus"


def test_a_refusal_carries_the_daemons_document(client: Client) -> None:
    with pytest.raises(DaemonRefused, match="There is no job 'nope'") as caught:
        client.get("jobs", "nope")
    assert caught.value.status == 404
    assert caught.value.problem()["error"]["type"] == "invalid_request_error"


def test_401_says_which_token_was_used(served: Served) -> None:
    for token, hint in ((None, "No token was sent: none was found"), ("old", "not this daemon's")):
        with Client(target(served.url, token)) as stranger:
            with pytest.raises(DaemonRefused, match=hint):
                stranger.get("adapters")
            with pytest.raises(DaemonRefused, match=hint):
                list(stranger.stream("generate", body={"prompt": "x"}))


def test_a_daemon_that_does_not_answer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(target(f"http://127.0.0.1:{silent.getsockname()[1]}"), answer_seconds=0.05) as client,
        pytest.raises(DaemonSlow, match="does not answer"),
    ):
        client.get("status")


@pytest.mark.parametrize("route", ["generate", "suggest", "classify", "v1/chat/completions", "jobs"])
def test_what_takes_long_may_take_longer_than_other_answers(route: str) -> None:
    """The model's answer, or the end of a job, comes when the client has given up on another route."""
    with other_server() as slow, ThreadPoolExecutor() as pool:
        found = target(slow.url)
        with Client(found, answer_seconds=0.1) as patient, Client(found, answer_seconds=0.2) as other:
            waits = partial(patient.get, wait=30) if route == "jobs" else partial(patient.post, body={})
            answer = pool.submit(waits, *route.split("/"))
            slow.asked.get()
            with pytest.raises(DaemonSlow):
                other.get("status")
            slow.may_answer.set()
            assert answer.result() == {}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>Printer</html>"),
        (404, b"<html>Printer</html>"),
        (404, b'{"title": "Not Found"'),
        (500, b'{"detail": "Out of paper", "error": "E13"}'),
    ],
)
def test_another_program_on_the_port(status: int, body: bytes) -> None:
    with other_server(status, body) as printer, Client(target(printer.url)) as client:
        printer.may_answer.set()
        with pytest.raises(NotADaemon, match="not like PocketLLM"):
            client.get("status")
