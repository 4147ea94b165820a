"""Finding the daemon, asking it, and what is said when that does not work."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pocketllm.client import Client
from pocketllm.daemon.settings import load_settings
from pocketllm.errors import CommandError, DaemonLost, DaemonRefused, DaemonSlow, NoDaemon, NotADaemon, UsageError
from pocketllm.home import DEFAULT_URL, Target, configured_data_dir, find_target, owner_token
from tests.support.daemon_documents import JOB
from tests.support.daemon_double import TOKEN, DaemonDouble, announcement


@pytest.fixture
def double() -> Iterator[DaemonDouble]:
    with DaemonDouble() as running:
        yield running


def target(url: str, token: str | None = TOKEN) -> Target:
    return Target(url=url, token=token, without_token="none was found")


@pytest.fixture
def client(double: DaemonDouble) -> Iterator[Client]:
    with Client(target(double.url)) as connected:
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
    assert configured_data_dir() == Path.home() / ".local/share/pocketllm"
    environ.setenv("XDG_DATA_HOME", "/share")
    assert configured_data_dir() == load_settings({}).data_dir == Path("/share/pocketllm")
    (tmp_path / "config.toml").write_text('data_dir = "/configured"')
    assert configured_data_dir() == load_settings({}).data_dir == Path("/configured")
    environ.setenv("POCKETLLM_DATA_DIR", "/named")
    assert configured_data_dir() == load_settings({}).data_dir == Path("/named")


@pytest.mark.parametrize("content", ["data_dir = ", "data_dir = 7"])
def test_a_broken_config_does_not_break_commands(environ: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.toml").write_text(content)
    assert configured_data_dir() == Path.home() / ".local/share/pocketllm"


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
    assert find_target(None, home).token == "mine"


def test_the_folders_token_goes_to_its_own_daemon_alone(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another app may listen at the port that a daemon had."""
    home = write_home(tmp_path / "home", "http://127.0.0.1:1111")
    assert find_target("http://localhost:1111", home).token == "of-the-folder"
    assert find_target("http://127.0.0.1:2407", home).token is None
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


def test_the_folders_token_stays_on_the_device(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = write_home(tmp_path / "home", "http://127.0.0.1:1111")
    assert find_target("http://192.0.2.7:2407", home).token is None
    environ.setenv("POCKETLLM_TOKEN", "mine")
    assert find_target("http://192.0.2.7:2407", home).token == "mine"


@pytest.mark.parametrize("url", ["localhost:2407", "ftp://host", "http://", "http://host:99999", "http://[::1"])
def test_what_is_no_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="looks like"):
        find_target(url, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": 7}', '{"url": "nonsense"}', '{"pid": 3}'])
def test_a_broken_daemon_file_counts_as_none(environ: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    (tmp_path / "daemon.json").write_text(content)
    assert find_target(None, tmp_path).url == DEFAULT_URL


def test_owner_token(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="pocketllm serve"):
        owner_token(tmp_path)
    (tmp_path / "tokens.json").write_text('{"owner": "secret"}')
    assert owner_token(tmp_path) == "secret"


def test_the_token_is_sent(client: Client, double: DaemonDouble) -> None:
    client.get("adapters")
    assert double.authorizations == [f"Bearer {TOKEN}"]


def test_each_verb(client: Client, double: DaemonDouble) -> None:
    assert client.get("health")["status"] == "ok"
    assert client.post("texts", body=[{"text": "a"}, {"text": "a"}])["duplicates"] == 1
    assert client.post("jobs", body={"steps": 5})["total_steps"] == 5
    assert client.post("jobs", "job-1", "cancel")["state"] == "cancelled"
    assert client.delete("tokens", "notes") == {}


def test_what_is_not_given_is_not_sent(client: Client, double: DaemonDouble) -> None:
    client.get("jobs", limit=5, after=None)
    assert double.requests == [("GET", "/jobs?limit=5", None)]


def test_a_list_is_read_page_by_page(client: Client, double: DaemonDouble) -> None:
    double.jobs = [JOB | {"id": f"job-{number}"} for number in range(250)]
    assert list(client.pages("jobs", limit=100)) == double.jobs
    assert len(double.requests) == 3


def test_an_id_cannot_reach_another_route(client: Client, double: DaemonDouble) -> None:
    with pytest.raises(DaemonRefused):
        client.get("jobs", "../status")
    assert double.requests[-1][1] == "/jobs/..%2Fstatus"


def test_a_refusal_carries_the_daemons_document(client: Client) -> None:
    with pytest.raises(DaemonRefused, match="There is no /jobs/nope") as caught:
        client.get("jobs", "nope")
    assert caught.value.status == 404
    assert caught.value.problem()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("token", "hint"), [(None, "No token was sent: none was found"), ("old", "not this daemon's")])
def test_401_says_which_token_was_used(double: DaemonDouble, token: str | None, hint: str) -> None:
    with Client(target(double.url, token)) as stranger, pytest.raises(DaemonRefused, match=hint):
        stranger.get("adapters")


def test_no_daemon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(target(f"http://127.0.0.1:{port}")) as client, pytest.raises(NoDaemon, match="pocketllm serve"):
        client.get("status")


def test_a_daemon_that_does_not_answer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(target(f"http://127.0.0.1:{silent.getsockname()[1]}"), answer_seconds=0.05) as client,
        pytest.raises(DaemonSlow, match="does not answer"),
    ):
        client.get("status")


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
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        with (
            Client(target(f"http://127.0.0.1:{server.server_port}")) as client,
            pytest.raises(NotADaemon, match="not like PocketLLM"),
        ):
            client.get("status")
        thread.join()


def test_stream_yields_tokens_and_the_end(client: Client, double: DaemonDouble) -> None:
    *tokens, done = client.stream("generate", body={"prompt": "Tea for"})
    assert [event.json()["text"] for event in tokens] == double.tokens
    assert done.event == "done"
    assert done.json()["seed"] == 1
    assert double.bodies("POST", "/generate") == [{"prompt": "Tea for", "stream": True}]


def test_a_stream_that_breaks_off_is_an_error(client: Client, double: DaemonDouble) -> None:
    double.breaks_off = True
    with pytest.raises(DaemonLost, match="in the middle"):
        list(client.stream("generate", body={"prompt": "x"}))


def test_a_stream_may_be_refused(double: DaemonDouble) -> None:
    with Client(target(double.url, "old")) as stranger, pytest.raises(DaemonRefused, match="A token is needed"):
        list(stranger.stream("generate", body={"prompt": "x"}))
