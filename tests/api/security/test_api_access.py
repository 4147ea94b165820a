"""Who gets in: local names, no foreign web pages, and a token for everything that holds content."""

import base64
import json
import stat
from pathlib import Path

import pytest

from pocketllm.api.security.tokens import Scope, load_or_create_token
from pocketllm.daemon.errors import DaemonError
from tests.support.daemon.in_process_app import TOKEN, InProcessApp, assert_problem
from tests.support.daemon.routes import OPEN, routes


@pytest.fixture(scope="module")
def tokens(shared: InProcessApp) -> dict[str, str]:
    """A token of each scope."""
    return {scope: shared.app_token(scope, scope) for scope in Scope}


def closed_routes(shared: InProcessApp) -> list[tuple[str, str]]:
    found = set(routes(shared.app.routes))
    paths = shared.app.openapi()["paths"]
    documented = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    # Neither may know of a route that the other doesn't.
    assert {route for route in found if route[1] != "/openapi.json"} == documented
    assert set(OPEN) < found
    return sorted(found - {*OPEN})


def test_every_route_but_the_open_ones_wants_the_token(shared: InProcessApp) -> None:
    closed = closed_routes(shared)
    assert ("POST", "/jobs") in closed and ("GET", "/openapi.json") in closed
    for method, path in closed:
        response = shared.request(method, path, token=None)
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            document = assert_problem(response, 401, "missing_token")
            assert "Authorization: Bearer TOKEN" in document["detail"] and "`pocketllm token`" in document["detail"]
        response = shared.request(method, path, token="wrong")
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert_problem(response, 401, "bad_token")
        assert shared.request(method, path, token=TOKEN).status_code not in (401, 403)


def test_the_document_says_which_routes_want_a_token_and_with_which_scopes(shared: InProcessApp) -> None:
    document = shared.app.openapi()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    needed = {
        (method.upper(), path): about["security"]
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    }
    closed = {(method, path) for method, path in closed_routes(shared) if path != "/openapi.json"}
    assert {route for route, security in needed.items() if security} == closed
    assert needed["POST", "/texts"] == [{"token": ["admin", "ingest"]}]
    assert needed["POST", "/jobs"] == [{"token": ["admin"]}]


def test_the_open_routes_answer_without_one(shared: InProcessApp) -> None:
    for method, path in OPEN:
        response = shared.request(method, path.format(job_id="job-0", name="none"), token=None)
        assert response.status_code == (404 if "{" in path else 200)


#: Near the open routes: by what is answered.
NEAR = {
    (401, "missing_token"): ["POST /jobs", "GET /jobs/job-0", "GET /jobs/../texts"],
    (405, "method_not_allowed"): [
        *("POST /health", "DELETE /jobs/job-0", "GET /jobs/job-0/cancel", "OPTIONS /jobs", "HEAD /health")
    ],
    (404, "not_found"): [
        *("GET /jobs/", "GET /jobs/..%2ftexts", "GET /jobs//job-0", "GET /Jobs"),
        *("GET /docs", "POST /nothing", "BREW /nothing"),
    ],
}


def test_nothing_near_the_open_routes_is_open(
    shared: InProcessApp, tokens: dict[str, str], subtests: pytest.Subtests
) -> None:
    """What is no route is none for anybody: nobody is told to come back with another token."""
    for (status, code), near in NEAR.items():
        for route in near:
            method, _, path = route.partition(" ")
            with subtests.test(route):
                for token in (None,) if status == 401 else (None, "wrong", TOKEN, *tokens.values()):
                    response = shared.request(method, path, token=token)
                    assert response.status_code == status
                    if method != "HEAD":
                        assert_problem(response, status, code)


#: Authorization headers: by the code of the error.
NO_TOKENS = {
    "missing_token": ["", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}"],
    "bad_token": [
        *(f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}", "Bearer None", "Bearer \xe9")
    ],
}


def test_what_is_a_token_and_what_is_none(shared: InProcessApp) -> None:
    for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):
        assert shared.get("/texts", token=None, headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200
    for code, headers in NO_TOKENS.items():
        for header in headers:
            response = shared.get("/texts", token=None, headers={"authorization": header.encode("latin-1")})
            assert_problem(response, 401, code)


LOCAL_HOSTS = [
    *("localhost", "localhost:2407", "LOCALHOST:1", "LocalHost", "localhost.", "localhost.:2407"),
    *("127.0.0.1", "127.0.0.2", "127.255.255.254:2407", "127.0.0.1:80", "[::1]", "[::1]:2407"),
]
FOREIGN_HOSTS: list[str | bytes] = [
    *("evil.example", "evil.example:2407", "localhost.evil.example", "127.0.0.1.nip.io", "localhost@evil.example"),
    *("evil.example@localhost", "localhost.evil.com", "localhost#.evil.com", "localhost?.evil.com"),
    *("localhost/.evil.com", "localhost\\.evil.com", "localhost%23.evil.com", "127.0.0.1#"),
    *("127.0.0.1:2407#.evil.com", "127.0.0.1:", "127.0.0.1:123456", "[127.0.0.1]", "::1", " localhost"),
    *("localhost,evil.com", "localhost:\u0662".encode(), "localhost..", "localhost:port", "127.1", "127.0.0.1."),
    *("10.0.0.7", "[fe80::1]", "192.168.1.5:2407", "0.0.0.0", "[::1", "[::ffff:7f00:1]", "", "x" * 5000),
]


def test_local_names_are_let_in(shared: InProcessApp) -> None:
    for host in LOCAL_HOSTS:
        for path in ("/health", "/texts"):
            assert shared.get(path, headers={"host": host}).status_code == 200, host


def test_other_names_are_not(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    """A web page could have its own name lead to this device, and so read what we answer."""
    for host in FOREIGN_HOSTS:
        with subtests.test(repr(host[:60])):
            for path, token in (("/health", None), ("/texts", TOKEN)):
                response = shared.get(path, token=token, headers={"host": host})
                document = assert_problem(response, 403, "foreign_host")
                assert "http://127.0.0.1" in document["detail"] and len(document["detail"]) < 200


LOCAL_ORIGINS = ["http://localhost", "http://localhost:3000", "http://127.0.0.1:2407", "http://[::1]:8080"]
FOREIGN_ORIGINS = [
    *("https://evil.example", "null", "http://localhost.evil.example", "http://localhost@evil.example", "", "["),
    *("http://localhost#.evil.example", "http://localhost/", "localhost", "ftp://localhost", "http://http://localhost"),
]
SHELLS = ["app://obsidian.md", "capacitor://localhost", "vscode-webview://0a1b2c", "vscode-webview://x.y"]
#: What openai-node's preflight names, and an Idempotency-Key.
SENT_HEADERS = (
    "authorization,content-type,idempotency-key,x-stainless-arch,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,"
    "x-stainless-timeout"
)
NO_SHELLS = [*("https://evil.example", "app://obsidian.md.evil.example", "xapp://obsidian.md", "vscode-webview://a/b")]


def test_local_pages_are_let_in_with_the_token(shared: InProcessApp) -> None:
    for origin in LOCAL_ORIGINS:
        headers = {"origin": origin, "sec-fetch-site": "same-site"}
        assert shared.get("/texts", headers=headers).status_code == 200, origin
        assert_problem(shared.get("/texts", token=None, headers=headers), 401, "missing_token")


def test_foreign_pages_are_refused_even_with_the_token(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    for origin in FOREIGN_ORIGINS:
        with subtests.test(origin):
            for method, path in (("GET", "/health"), ("GET", "/texts"), ("POST", "/texts"), ("OPTIONS", "/texts")):
                response = shared.request(method, path, headers={"origin": origin})
                assert_problem(response, 403, "foreign_origin")
                assert "access-control-allow-origin" not in response.headers


def test_programs_in_a_browsers_shell_are_let_in_with_the_token(
    shared: InProcessApp, subtests: pytest.Subtests
) -> None:
    for origin in SHELLS:
        with subtests.test(origin):
            preflight = {"origin": origin, "access-control-request-method": "POST"}
            preflight["access-control-request-headers"] = SENT_HEADERS
            answer = shared.request("OPTIONS", "/suggest", token=None, headers=preflight)
            assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
            assert set(SENT_HEADERS.split(",")) <= set(answer.headers["access-control-allow-headers"].split(","))
            assert "access-control-allow-credentials" not in answer.headers, "a session's cookie does not come along"
            headers = {"origin": origin, "sec-fetch-site": "cross-site"}
            answer = shared.get("/texts", headers=headers)
            assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
            readable = set(answer.headers["access-control-expose-headers"].split(", "))
            assert readable == {"Retry-After", "X-Should-Retry", "Location"}
            assert_problem(shared.get("/texts", token=None, headers=headers), 401, "missing_token")


def test_a_foreign_pages_preflight_is_refused(shared: InProcessApp) -> None:
    for origin in NO_SHELLS:
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        answer = shared.request("OPTIONS", "/suggest", headers=preflight)
        assert answer.status_code == 400 and "access-control-allow-origin" not in answer.headers, origin


def test_the_token_may_be_the_password_of_http_basic(shared: InProcessApp) -> None:
    def asked(credential: str) -> int:
        header = {"authorization": "Basic " + base64.b64encode(credential.encode()).decode()}
        return shared.get("/texts", token=None, headers=header).status_code

    assert (asked(f"x:{TOKEN}"), asked(f":{TOKEN}"), asked("x:wrong"), asked(TOKEN)) == (200, 200, 401, 401)
    for damaged in ("", "====", "\u00e4", "a" * 10_000):
        header = {"authorization": f"Basic {damaged}".encode("latin-1")}
        assert shared.get("/texts", token=None, headers=header).status_code == 401


def test_what_a_browser_calls_cross_site_is_refused(shared: InProcessApp) -> None:
    for path in ("/health", "/jobs", "/texts"):
        assert_problem(shared.get(path, headers={"sec-fetch-site": "cross-site"}), 403, "cross_site")
    for site in ("none", "same-origin", "same-site"):
        assert shared.get("/health", headers={"sec-fetch-site": site}).status_code == 200


#: What a browser says of a click on a link to this device, and of the file that `pocketllm dashboard` opens.
NAVIGATION = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def test_a_link_opens_the_empty_page_and_nothing_else(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    for path in ("/", "/dashboard/app.js"):
        assert shared.get(path, token=None, headers=NAVIGATION).status_code == 200
        assert shared.get(path, token=None, headers=NAVIGATION | {"sec-fetch-user": "?1"}).status_code == 200
    others = ("GET /jobs", "GET /texts", "GET /openapi.json", "POST /", "POST /sessions/redeem", "HEAD /")
    sent_otherwise: list[tuple[str, dict[str, str]]] = [
        *((route, {}) for route in others),
        ("GET /", {"sec-fetch-dest": "iframe"}),
        ("GET /", {"sec-fetch-dest": "object"}),
        ("GET /", {"sec-fetch-mode": "no-cors"}),
        ("GET /dashboard/app.js", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}),
        ("GET /dashboard/app.js", {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}),
    ]
    for route, changed in sent_otherwise:
        method, path = route.split()
        with subtests.test(route, **changed):
            answer = shared.request(method, path, headers=NAVIGATION | changed)
            assert answer.status_code == 403
            assert method == "HEAD" or assert_problem(answer, 403, "cross_site")
    assert_problem(shared.get("/", headers=NAVIGATION | {"origin": "https://evil.example"}), 403, "foreign_origin")
    assert_problem(shared.get("/", headers=NAVIGATION | {"host": "evil.example"}), 403, "foreign_host")


def test_no_answer_is_kept_by_a_cache_but_the_pages_own_files(shared: InProcessApp) -> None:
    for path in ("/texts", "/jobs", "/status", "/health", "/v1/files", "/none"):
        assert shared.get(path).headers["cache-control"] == "no-store"
    assert shared.get("/").headers["cache-control"] == "no-cache"


def test_the_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = load_or_create_token(file)
    assert len(token) >= 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {"owner": token}
    assert load_or_create_token(file) == token
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json"]
    assert load_or_create_token(tmp_path / "another.json") != token


def test_a_token_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text('{"owner": "abc"}')
    file.chmod(0o644)
    assert load_or_create_token(file) == "abc"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


BROKEN_FILES = [
    *(b"", b"{", b"[]", b'"abc"', b"{}", b'{"owner": null}', b'{"owner": ""}', b'{"owner": 5}', b'["owner"]'),
    b"\xff\xfe",
]


def test_a_broken_file_is_neither_replaced_nor_made_a_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    for content in BROKEN_FILES:
        file.write_bytes(content)
        with pytest.raises(DaemonError) as caught:
            load_or_create_token(file)
        assert str(file) in str(caught.value) and "Delete it" in str(caught.value)
        assert file.read_bytes() == content
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DaemonError, match="IsADirectoryError"):
        load_or_create_token(tmp_path / "folder.json")
