"""An HTTP client of the daemon: one method a route, which returns the JSON document or raises a CommandError.

with Client(find_target(None, None)) as client:
    print(client.status()["texts"]["count"])
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx
from httpx_sse import EventSource

from pocketllm import __version__
from pocketllm.errors import DaemonLost, DaemonRefused, DaemonSlow, Document, NoDaemon, NotADaemon
from pocketllm.home import Target

ANSWER_SECONDS = 15.0
CONNECT_SECONDS = 3.0
# The first request loads the model from a phone's flash, and a long answer takes minutes.
GENERATE_SECONDS = 600.0
# The daemon starts a process that writes the file.
EXPORT_SECONDS = 300.0
PAGE_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event: its name and its decoded data."""

    name: str
    data: Document


class Client:
    """Talks to one daemon. Every method raises a subclass of CommandError when it fails."""

    def __init__(self, target: Target, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.target = target
        headers = {"User-Agent": f"pocketllm/{__version__}"}
        if target.token is not None:
            headers["Authorization"] = f"Bearer {target.token}"
        self._http = httpx.Client(
            base_url=target.url,
            headers=headers,
            timeout=httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS),
            # Nobody else can listen there. Another app can at the port, while the daemon is down.
            transport=httpx.HTTPTransport(uds=str(target.socket)) if target.socket else None,
            # A proxy from the environment would carry the owner's words off the device.
            trust_env=False,
            # Loading the certificates takes longer than a whole request, and plain http needs none.
            verify=target.url.startswith("https:"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._http.close()

    def health(self) -> Document:
        """Return version and pid; needs no token."""
        return self._call("GET", "/health")

    def status(self) -> Document:
        """Return model, training gate, readings, texts and job counts; needs the scope monitor."""
        return self._call("GET", "/status")

    def snooze(self, minutes: float | None) -> Document:
        """Run no job for this number of minutes; None ends a snooze. Returns when it ends."""
        return self._call("POST", "/status/snooze", body={} if minutes is None else {"minutes": minutes})

    def add_texts(self, texts: list[Document]) -> Document:
        """Store `[{"text", "source"}, ...]`, all or none. Returns ids, created and duplicates.

        A prompt with its completion, or a text with its label, may stand in place of a text.
        """
        return self._call("POST", "/texts", body=texts)

    def texts(self, *, limit: int, after: str | None = None, query: str | None = None) -> Document:
        """Return a page of texts, newest first, from behind the text `after`, or what a search finds."""
        given = {"limit": str(limit), "after": after, "query": query}
        return self._call("GET", "/texts", params={name: value for name, value in given.items() if value is not None})

    def text(self, text_id: str) -> Document:
        """Return one text."""
        return self._call("GET", f"/texts/{path_part(text_id)}")

    def deletion_cost(self, text_ids: Sequence[str] = (), *, source: str = "", app: str = "") -> Document:
        """Return what it would cost to delete these texts, those of a source and those of an app."""
        return self._call("GET", "/deletions/cost", params={"id": list(text_ids), "source": source, "app": app})

    def delete_texts(self, text_ids: Sequence[str] = (), *, source: str = "", app: str = "") -> Document:
        """Delete texts, or those of a source or of an app; their bytes are overwritten on disk."""
        if app:
            return self._call("DELETE", f"/apps/{path_part(app)}/texts")
        return self._call("DELETE", "/texts", params={"source": source} if source else {"id": list(text_ids)})

    def jobs(self, *, limit: int) -> tuple[list[Document], bool]:
        """Return up to `limit` jobs, newest first, and whether there are older ones."""
        jobs: list[Document] = []
        after: str | None = None
        while True:
            params = {"limit": str(min(limit - len(jobs), PAGE_SIZE))} | ({"after": after} if after else {})
            page = self._call("GET", "/jobs", params=params)
            jobs += page["data"]
            after = page.get("next")
            has_more = bool(page.get("has_more") and after)
            if not has_more or len(jobs) >= limit:
                return jobs[:limit], has_more or len(jobs) > limit

    def job(self, job_id: str) -> Document:
        """Return one job with its settings and events."""
        return self._call("GET", f"/jobs/{path_part(job_id)}")

    def start_job(
        self,
        *,
        steps: int | None = None,
        seed: int | None = None,
        mode: str | None = None,
        method: str | None = None,
        batch: int | None = None,
        probes: int | None = None,
        now: bool = True,
    ) -> Document:
        """Request a training job. Returns it; it may wait for another job or for safe conditions.

        now: start without waiting for the charger. What is None is left to the daemon's settings.
        """
        requested = {"steps": steps, "seed": seed, "mode": mode, "method": method, "batch": batch, "probes": probes}
        given = {name: value for name, value in requested.items() if value is not None}
        return self._call("POST", "/jobs", body={"now": now, **given})

    def plan_job(self, requested: Document) -> Document:
        """Return the memory and time that a job would take, without starting it."""
        return self._call("POST", "/jobs/plan", body=requested)

    def pause_job(self, job_id: str) -> Document:
        """Pause a job until it is resumed. Returns it."""
        return self._call("POST", f"/jobs/{path_part(job_id)}/pause")

    def resume_job(self, job_id: str) -> Document:
        """Resume a paused job. Returns it."""
        return self._call("POST", f"/jobs/{path_part(job_id)}/resume")

    def cancel_job(self, job_id: str) -> Document:
        """Cancel a job that has not finished. Returns the job."""
        return self._call("POST", f"/jobs/{path_part(job_id)}/cancel")

    def report(self, job_id: str) -> Document:
        """Return a job's report, which holds words of the owner and of the model."""
        return self._call("GET", f"/jobs/{path_part(job_id)}/report")

    def models(self) -> list[Document]:
        """Return the models that the daemon can use."""
        data: list[Document] = self._call("GET", "/models")["data"]
        return data

    def adapters(self) -> list[Document]:
        """Return the adapters, each with its folder."""
        data: list[Document] = self._call("GET", "/adapters")["data"]
        return data

    def roll_back(self, *, model: str | None = None) -> Document:
        """Serve the parent of the served adapter. Returns model, was, serving and skipped."""
        return self._call("POST", "/adapters/rollback", body={} if model is None else {"model": model})

    def serve_adapter(self, adapter_id: str, *, deleted_text: bool = False) -> Document:
        """Serve this adapter, with `deleted_text` even if it has learned such. Returns the same as roll_back."""
        allowed = {"deleted_text": str(deleted_text).lower()}
        return self._call("POST", f"/adapters/{path_part(adapter_id)}/serve", params=allowed)

    def delete_adapter(self, adapter_id: str) -> None:
        """Delete an adapter and its files."""
        self._answer("DELETE", f"/adapters/{path_part(adapter_id)}")

    @contextmanager
    def export_adapter(self, adapter_id: str, *, format: str) -> Iterator[Iterator[bytes]]:
        """An adapter's folder as a tar file ("peft"), or a LoRA file for llama.cpp ("gguf"), in pieces."""
        path = f"/adapters/{path_part(adapter_id)}/export"
        with self._streamed("GET", path, seconds=EXPORT_SECONDS, params={"format": format}) as response:
            yield response.iter_bytes()

    def events(self, *, after: int | None, wait_seconds: float = 30) -> Document:
        """Return the events after event `after`, waiting for the next one; without `after`, only the newest number."""
        if after is None:
            return self._call("GET", "/events")
        params = {"after": str(after), "wait": str(wait_seconds)}
        return self._call("GET", "/events", params=params, seconds=wait_seconds + ANSWER_SECONDS)

    def tokens(self) -> list[Document]:
        """Return the apps that have a token."""
        found: list[Document] = self._call("GET", "/tokens")["data"]
        return found

    def create_token(self, name: str, scopes: list[str]) -> Document:
        """Create an app's token, which only this answer holds."""
        return self._call("POST", "/tokens", body={"name": name, "scopes": scopes})

    def begin_session(self) -> Document:
        """Return a code with which a browser can sign in once."""
        return self._call("POST", "/sessions")

    def revoke_token(self, name: str) -> None:
        """Revoke an app's token."""
        self._answer("DELETE", f"/tokens/{path_part(name)}")

    def generate(self, request: Document) -> Document:
        """Return the finished answer to a /generate request."""
        return self._call("POST", "/generate", body={**request, "stream": False}, seconds=GENERATE_SECONDS)

    def suggest(self, request: Document) -> Document:
        """Return the answer to a /suggest request."""
        return self._call("POST", "/suggest", body=request, seconds=GENERATE_SECONDS)

    def classify(self, request: Document) -> Document:
        """Return the answer to a /classify request."""
        return self._call("POST", "/classify", body=request, seconds=GENERATE_SECONDS)

    def stream(self, request: Document) -> Iterator[Event]:
        """Yield `token` events as the model writes and one `done` event at the end."""
        body = {**request, "stream": True}
        with self._streamed("POST", "/generate", seconds=GENERATE_SECONDS, json=body) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._not_a_daemon(response)
            for event in EventSource(response).iter_sse():
                if event.event == "error":
                    raise DaemonRefused(event.json())
                yield Event(name=event.event, data=event.json())
                if event.event == "done":
                    return
        raise DaemonLost("The daemon stopped in the middle of the text. See its log, then try again.")

    def _call(self, method: str, path: str, **more: Any) -> Document:
        return self._document(self._answer(method, path, **more))

    def _answer(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str | list[str]] | None = None,
        seconds: float | None = None,
    ) -> httpx.Response:
        timeout = self._http.timeout if seconds is None else httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        with self._errors_explained():
            response = self._http.request(method, path, json=body, params=params, timeout=timeout)
        self._refuse_errors(response)
        return response

    @contextmanager
    def _streamed(self, method: str, path: str, *, seconds: float, **request: Any) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        with self._errors_explained(), self._http.stream(method, path, timeout=timeout, **request) as response:
            if response.is_error:
                response.read()
            self._refuse_errors(response)
            yield response

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
                f"The daemon at {url} closed the connection before answering. See its log, then try again."
            ) from error
        except httpx.TransportError as error:
            raise DaemonLost(f"The connection to {url} broke ({error}). Try again.") from error

    def _refuse_errors(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        document = self._document(response)
        if not ({"detail", "title"} & document.keys() and isinstance(document.get("error", {}), dict)):
            raise self._not_a_daemon(response)
        raise DaemonRefused({"status": response.status_code, **document}, hint=self._hint(response.status_code))

    def _hint(self, status: int) -> str:
        if status != httpx.codes.UNAUTHORIZED:
            return ""
        if self.target.token is None:
            return f"(No token was sent: {self.target.without_token})"
        return "(The token sent is not this daemon's; check --data-dir and POCKETLLM_TOKEN.)"

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


def path_part(value: str) -> str:
    """Return a value as one part of a path, so that an id with a slash cannot reach another route."""
    return quote(value, safe="")
