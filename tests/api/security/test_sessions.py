"""Browsers: the page's files, and sessions, which begin with a token or a code and end with their token."""

import json
import stat
from collections.abc import Mapping
from http.cookies import Morsel, SimpleCookie
from pathlib import Path

import httpx

from pocketllm.api.app import create_app
from pocketllm.api.dashboard.page import _FILES
from tests.support.daemon.in_process_app import TOKEN, InProcessApp, assert_problem, in_process_app

COOKIE = "pocketllm-2407"
DAY = 24 * 3600


def cookie_of(response: httpx.Response) -> Morsel[str]:
    return SimpleCookie(response.headers["set-cookie"])[COOKIE]


def signed_in(api: InProcessApp, credential: str = TOKEN) -> dict[str, str]:
    """What a page of the browser then sends along."""
    response = api.post("/sessions/redeem", token=credential)
    assert response.status_code == 200, response.text
    return {"cookie": f"{COOKIE}={cookie_of(response).value}", "x-page-key": response.json()["page_key"]}


def asked(api: InProcessApp, session: Mapping[str, str]) -> httpx.Response:
    return api.get("/texts", token=None, headers=session)


def test_the_pages_files_let_nothing_in_and_are_small(api: InProcessApp) -> None:
    for path in ("/", *(f"/dashboard/{name}" for name in _FILES)):
        response = api.get(path, token=None)
        policy = response.headers["content-security-policy"]
        assert response.status_code == 200 and policy.startswith("default-src 'none'"), path
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy, path
        assert response.headers["x-content-type-options"] == "nosniff", path
    for other in ("/dashboard/../app.py", "/dashboard/none", "/dashboard/page.html/x", "/dashboard/"):
        assert api.get(other, token=None).status_code in (401, 404), other
    whole = b"".join(file.read_bytes() for file in _FILES.values())
    assert len(whole) <= 96 << 10 and whole.count(b"\n") <= 1900


def test_a_token_begins_a_session(api: InProcessApp) -> None:
    response = api.post("/sessions/redeem")
    cookie = cookie_of(response)
    assert cookie["httponly"] and cookie["samesite"] == "strict" and cookie["path"] == "/"
    assert cookie["max-age"] == str(7 * DAY) and not cookie["domain"]
    assert response.headers["cache-control"] == "no-store"
    session = signed_in(api)
    assert asked(api, session).status_code == 200
    assert api.post("/texts", token=None, headers=session, json={"text": "From the page."}).status_code == 201
    assert api.get("/tokens").json()["data"] == [], "a browser is no app"


def test_a_code_is_good_once_and_not_for_long(api: InProcessApp) -> None:
    code = api.post("/sessions").json()["code"]
    assert asked(api, signed_in(api, code)).status_code == 200
    assert_problem(api.post("/sessions/redeem", token=code), 401, "bad_token")
    late = api.post("/sessions").json()["code"]
    api.clock.advance(121)
    document = assert_problem(api.post("/sessions/redeem", token=late), 401, "bad_token")
    assert "`pocketllm dashboard` signs a browser in" in document["detail"]
    assert_problem(api.post("/sessions", token=None), 401, "missing_token")
    assert_problem(api.post("/sessions/redeem", token=None), 401, "missing_token")


def test_half_of_a_session_is_worth_nothing(api: InProcessApp) -> None:
    """The cookie also goes to other apps' servers on this device, and the page key to whoever reads the page's data."""
    session, other = signed_in(api), signed_in(api)
    cookie, page_key = session["cookie"].partition("=")[2], session["x-page-key"]
    for half in ({"cookie": session["cookie"]}, {"x-page-key": page_key}, session | {"x-page-key": ""}):
        assert_problem(asked(api, half), 401, "missing_token")
    for mixed in (session | {"x-page-key": other["x-page-key"]}, session | {"cookie": f"{COOKIE}={page_key}"}):
        assert_problem(asked(api, mixed), 401, "bad_token")
    for token in (cookie, page_key):
        assert_problem(api.get("/texts", token=token), 401, "bad_token")


def test_another_page_cannot_use_the_session(api: InProcessApp) -> None:
    session = signed_in(api)
    assert_problem(asked(api, session | {"sec-fetch-site": "cross-site"}), 403, "cross_site")
    assert_problem(asked(api, session | {"origin": "https://evil.example"}), 403, "foreign_origin")
    # A page from another local port must ask first whether it may send the header. It may not.
    preflight = {"origin": "http://127.0.0.1:9999", "access-control-request-headers": "x-page-key"}
    response = api.request("OPTIONS", "/texts", token=None, headers=preflight | {"cookie": session["cookie"]})
    assert_problem(response, 405, "method_not_allowed")
    assert not any(name.startswith("access-control-allow") for name in response.headers)


def test_a_token_that_may_not_see_the_page_begins_no_session(api: InProcessApp) -> None:
    for scopes in (("ingest", "generate"), ("monitor",)):
        token = api.app_token(scopes[0], *scopes)
        for path in ("/sessions", "/sessions/redeem"):
            assert_problem(api.post(path, token=token), 403, "out_of_scope")


def test_a_session_expires(api: InProcessApp) -> None:
    session = signed_in(api)
    api.clock.advance(7 * DAY - 1)
    assert asked(api, session).status_code == 200
    api.clock.advance(1)
    assert_problem(asked(api, session), 401, "bad_token")
    signed_in(api)
    assert len(json.loads(api.services.folder.sessions.read_text())) == 1, "what has expired is not kept"


def test_signing_out_ends_the_sessions_of_this_token(api: InProcessApp) -> None:
    session, second, of_app = signed_in(api), signed_in(api), signed_in(api, api.app_token("notes", "admin"))
    gone = api.delete("/sessions", token=None, headers=session)
    assert gone.status_code == 204 and cookie_of(gone).value == "" and cookie_of(gone)["max-age"] == "0"
    for ended in (session, second):
        assert_problem(asked(api, ended), 401, "bad_token")
    assert asked(api, of_app).status_code == 200 and api.get("/texts").status_code == 200


def test_a_session_ends_with_the_token_that_began_it(api: InProcessApp) -> None:
    token = api.app_token("notes", "admin")
    session, owners = signed_in(api, token), signed_in(api)
    assert asked(api, session).status_code == 200
    assert api.post("/texts", token=None, headers=session, json={"text": "The app's."}).status_code == 201
    assert api.delete("/apps/notes/texts").json()["texts"] == 1, "it is the app that writes"
    api.delete("/tokens/notes")
    assert_problem(asked(api, session), 401, "bad_token")
    api.app_token("notes", "admin")
    assert_problem(asked(api, session), 401, "bad_token")
    assert asked(api, owners).status_code == 200


def test_sessions_outlive_the_daemon_but_not_the_owners_token(tmp_path: Path) -> None:
    with in_process_app(tmp_path / "data") as api:
        session, ended = signed_in(api), signed_in(api, api.app_token("notes", "admin"))
        api.delete("/sessions", token=None, headers=ended)
        file = api.services.folder.sessions
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = file.read_text()
    assert not any(half in kept for half in (session["cookie"].partition("=")[2], session["x-page-key"], TOKEN))
    with in_process_app(tmp_path / "data") as api:
        assert asked(api, session).status_code == 200
        assert_problem(asked(api, ended), 401, "bad_token")
        api.app = create_app(api.services, token="another")
        assert_problem(asked(api, session), 401, "bad_token")


def test_a_damaged_file_costs_a_sign_in_and_no_more(api: InProcessApp) -> None:
    for content in [b"", b"{", b"[]", b"null", b"\xff", b'{"a": 1}', b'{"a": ["b", "c"]}', b'{"a": ["b"]}']:
        api.services.folder.sessions.write_bytes(content)
        api.app = create_app(api.services, token=TOKEN)
        assert asked(api, signed_in(api)).status_code == 200, content
