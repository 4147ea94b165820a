"""The daemon's double answers in the real daemon's documents: each field is there, and no other one."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from pocketllm.api.native.generate import GenerateOut
from pocketllm.api.native.schemas.jobs import AdapterOut, AddedOut, Data, JobDetailOut, JobOut, Page
from pocketllm.api.native.schemas.plan import PlanOut
from pocketllm.api.native.schemas.reports import ReportOut
from pocketllm.api.native.status import HealthOut, StatusOut
from pocketllm.storage.repositories.adapters import Change
from tests.support.daemon_documents import SUCCEEDED
from tests.support.daemon_double import DaemonDouble, answer

ROUTES: list[tuple[str, str, Any, type[Any]]] = [
    ("GET", "/health", None, HealthOut),
    ("GET", "/status", None, StatusOut),
    ("POST", "/texts", [{"text": "Wind west."}], AddedOut),
    ("GET", "/jobs", None, Page[JobOut]),
    ("POST", "/jobs", {}, JobOut),
    ("POST", "/jobs/plan", {}, PlanOut),
    ("GET", "/jobs/job-1", None, JobDetailOut),
    ("POST", "/jobs/job-1/pause", {}, JobOut),
    ("POST", "/jobs/job-1/cancel", {}, JobOut),
    ("GET", "/jobs/job-1/report", None, ReportOut),
    ("GET", "/adapters", None, Data[AdapterOut]),
    ("POST", "/adapters/rollback", {}, Change),
    ("POST", "/adapters/adapter-1/serve", {}, Change),
    ("POST", "/generate", {}, GenerateOut),
]


def shape(document: Any) -> Any:
    """The document with its values taken out; of a list, the first element's."""
    if isinstance(document, dict):
        return {name: shape(value) for name, value in document.items()}
    return [shape(value) for value in document[:1]] if isinstance(document, list) else None


@pytest.mark.parametrize(("method", "path", "body", "model"), ROUTES, ids=[f"{m} {p}" for m, p, _, _ in ROUTES])
def test_a_documents_fields_are_the_daemons(
    double: DaemonDouble, method: str, path: str, body: Any, model: type[Any]
) -> None:
    double.script = [SUCCEEDED]
    answer(double, "POST", "/jobs", {}, {})
    status, document = answer(double, method, path, {}, body)
    assert status < 300
    documents = TypeAdapter(model)
    found = documents.dump_python(documents.validate_python(document), mode="json", by_alias=True)
    assert shape(found) == shape(document)
