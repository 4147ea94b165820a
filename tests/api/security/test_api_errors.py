"""Errors have one shape, whatever went wrong, and say what to do next."""

import json
import logging
from http import HTTPStatus

import pytest
from fastapi.exceptions import RequestValidationError

from pocketllm.api.errors import STATUSES, problem_of
from pocketllm.daemon import errors as daemon
from pocketllm.daemon.documents import explain
from pocketllm.storage import errors as storage
from tests.support.daemon.in_process_app import InProcessApp, assert_problem


def subclasses(of: type[Exception]) -> set[type[Exception]]:
    found = set(of.__subclasses__())
    return found.union(*map(subclasses, found))


def test_every_exception_of_ours_has_a_status() -> None:
    for error in subclasses(daemon.DaemonError) | subclasses(storage.StorageError):
        problem = problem_of(error())
        assert problem.status in HTTPStatus
        document = json.loads(bytes(problem.response().body))
        assert document["status"] == problem.status
        assert document["detail"] == error.__doc__


def test_special_cases_stand_before_general_ones() -> None:
    kinds = [kind for kind, _ in STATUSES]
    for number, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[number + 1 :])


def test_many_findings_are_counted_and_long_values_cut() -> None:
    findings = [
        {"type": "missing", "loc": (f"field {n}",), "msg": "Field required", "input": "v" * 500} for n in range(9)
    ]
    sentences, field = explain(RequestValidationError(findings).errors())
    assert field == "field 0"
    assert "field 4: Field required" in sentences and "field 5" not in sentences
    assert sentences.endswith("And 4 more.")
    assert "v" * 100 not in sentences


def test_what_nobody_expected_is_an_answer_too(api: InProcessApp, caplog: pytest.LogCaptureFixture) -> None:
    """Readings that are none stand for everything that is not foreseen."""
    api.services.scheduler.readings = None  # type: ignore[assignment]
    with caplog.at_level(logging.CRITICAL):
        response = api.get("/status")
    document = assert_problem(response, 500, "internal_error")
    assert response.headers["connection"] == "close"
    assert "log has the details" in document["detail"]
    assert "NoneType" not in json.dumps(document)
    assert api.get("/health").status_code == 200
