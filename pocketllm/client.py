"""An HTTP client of the daemon: `get`, `post`, `delete` and `stream` return JSON documents or raise a CommandError.

with Client(find_target(None, None)) as client:
    print(client.get("status")["texts"]["count"])
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote

import httpx
from httpx_sse import EventSource, ServerSentEvent

from pocketllm import __version__
from pocketllm.errors import DaemonLost, DaemonRefused, DaemonSlow, Document, NoDaemon, NotADaemon
from pocketllm.home import Target

ANSWER_SECONDS = 15.0
CONNECT_SECONDS = 3.0
# The first request loads the model from a phone's flash, and a long answer takes minutes, as does writing a file.
LONG_TIMEOUT = httpx.Timeout(600.0, connect=CONNECT_SECONDS)
#: The routes that ask the model.
LONG_ROUTES = {"generate", "suggest", "classify", "v1"}


class _Daemon:
    """One daemon's errors, in words."""

    target: Target

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Convert httpx's errors to CommandError."""
        url = self.target.url
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoDaemon(url) from error
        except httpx.TimeoutException as error:
            raise DaemonSlow(
                f"The daemon at {url} accepts connections but does not answer. It may be busy; try again in a minute."
            ) from error
        except httpx.RemoteProtocolError as error:
            raise DaemonLost(
                f"The daemon at {url} closed the connection before its answer was whole. See its log, then try again."
            ) from error
        except httpx.TransportError as error:
            raise DaemonLost(f"The connection to {url} broke ({error}). Try again.") from error

    def _refuse_errors(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        document = self._document(response)
        if not ({"detail", "title"} & document.keys() and isinstance(document.get("error", {}), dict)):
            raise self._not_a_daemon(response)
        hint = ""
        if response.status_code == httpx.codes.UNAUTHORIZED and self.target.token is None:
            hint = f"(No token was sent: {self.target.without_token})"
        elif response.status_code == httpx.codes.UNAUTHORIZED:
            hint = "(The token sent is not this daemon's; check --data-dir and POCKETLLM_TOKEN.)"
        raise DaemonRefused({"status": response.status_code, **document}, hint=hint)

    def _document(self, response: httpx.Response) -> Document:
        try:
            document = response.json()
        except ValueError as error:
            raise self._not_a_daemon(response) from error
        if not isinstance(document, dict):
            raise self._not_a_daemon(response)
        return document

    def _not_a_daemon(self, response: httpx.Response) -> NotADaemon:
        return NotADaemon(
            f"{self.target.url} answers ({response.status_code} to {response.request.url.path}), but not like "
            "PocketLLM. Another program may use this port; give the daemon's address with --url or --data-dir."
        )


class Client(_Daemon):
    """Talks to one daemon. Every method raises a subclass of CommandError when it fails.

    A route is given in parts, so that an id with a slash cannot reach another one: `get("jobs", job_id)`. Parameters
    that are None are not sent.
    """

    def __init__(self, target: Target, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.target = target
        self._http = httpx.Client(**_settings(target, answer_seconds, httpx.HTTPTransport))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._http.close()

    def get(self, *route: str, **params: Any) -> Document:
        """Return the document at a route."""
        return self._document(self._answer("GET", route, params))

    def pages(self, *route: str, **params: Any) -> Iterator[Document]:
        """Yield the items of a list, page by page."""
        while True:
            page = self.get(*route, **params)
            yield from page["data"]
            if not page["has_more"]:
                return
            params["after"] = page["next"]

    def post(self, *route: str, body: object = None, **params: Any) -> Document:
        """Send a body as JSON, and return the document in the answer."""
        return self._document(self._answer("POST", route, params, body))

    def delete(self, *route: str, **params: Any) -> Document:
        """Delete something. Returns the document in the answer, empty if there is none."""
        response = self._answer("DELETE", route, params)
        return self._document(response) if response.content else {}

    def stream(self, *route: str, body: Document) -> Iterator[ServerSentEvent]:
        """Send a body with `stream`, and yield the events of the answer up to the one named `done`."""
        with self.download(*route, method="POST", json={**body, "stream": True}) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._not_a_daemon(response)
            for event in EventSource(response).iter_sse():
                if event.event == "error":
                    raise DaemonRefused(event.json())
                yield event
                if event.event == "done":
                    return
        raise DaemonLost("The daemon stopped in the middle of the text. See its log, then try again.")

    @contextmanager
    def download(self, *route: str, method: str = "GET", **request: Any) -> Iterator[httpx.Response]:
        """Yield an answer before its content has been read."""
        sent = self._http.stream(method, _path(route), timeout=LONG_TIMEOUT, **request)
        with self._errors_explained(), sent as response:
            if response.is_error:
                response.read()
            self._refuse_errors(response)
            yield response

    def _answer(self, method: str, route: tuple[str, ...], params: Document, body: object = None) -> httpx.Response:
        timeout = LONG_TIMEOUT if route[0] in LONG_ROUTES or "wait" in params else self._http.timeout
        given = {name: value for name, value in params.items() if value is not None}
        with self._errors_explained():
            response = self._http.request(method, _path(route), json=body, params=given or None, timeout=timeout)
        self._refuse_errors(response)
        return response


class AsyncClient(_Daemon):
    """Talks to one daemon from an event loop. A request that is cancelled is dropped, which the daemon sees."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._http = httpx.AsyncClient(**_settings(target, ANSWER_SECONDS, httpx.AsyncHTTPTransport))

    async def post(self, *route: str, body: object) -> Document:
        """Send a body as JSON, and return the document in the answer."""
        with self._errors_explained():
            response = await self._http.post(_path(route), json=body)
        self._refuse_errors(response)
        return self._document(response)


def _settings(target: Target, answer_seconds: float, transport: Callable[..., object]) -> dict[str, Any]:
    headers = {"User-Agent": f"pocketllm/{__version__}"}
    if target.token is not None:
        headers["Authorization"] = f"Bearer {target.token}"
    return {
        "base_url": target.url,
        "headers": headers,
        "timeout": httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS),
        # Nobody else can listen there. Another app can at the port, while the daemon is down.
        "transport": transport(uds=str(target.socket)) if target.socket else None,
        # A proxy from the environment would carry the owner's words off the device.
        "trust_env": False,
        # Loading the certificates takes longer than a whole request, and plain http needs none.
        "verify": target.url.startswith("https:"),
    }


def _path(route: tuple[str, ...]) -> str:
    return "/" + "/".join(quote(part, safe="") for part in route)
