"""How long a request keeps the model in memory."""

from math import inf
from pathlib import Path

import pytest

from pocketllm.api.native.generate import seconds_of
from tests.support.in_process_app import assert_problem, in_process_app


@pytest.mark.parametrize(("requested", "seconds"), [(None, None), (0, 0), (300, 300), (0.5, 0.5), (-1, inf)])
def test_durations(requested: float | None, seconds: float | None) -> None:
    assert seconds_of(requested) == seconds


@pytest.mark.parametrize("requested", ['""', '"long"', '"5m"', '"90"', "true", "NaN", "1e400"])
def test_what_is_no_duration(requested: str, tmp_path: Path) -> None:
    with in_process_app(tmp_path / "data") as api:
        body = f'{{"prompt": "x", "keep_alive": {requested}}}'
        refused = api.post("/generate", content=body.encode(), headers={"content-type": "application/json"})
        assert "keep_alive" in assert_problem(refused, 422, "invalid_value")["detail"]
