"""keep_alive as users of Ollama know it."""

from math import inf
from pathlib import Path

import pytest

from pocketllm.api.native.generate import seconds_of
from tests.support.in_process_app import assert_problem, in_process_app


@pytest.mark.parametrize(
    ("requested", "seconds"),
    [
        (None, None),
        (0, 0),
        (300, 300),
        (-1, inf),
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        ("24h", 86400),
        ("500ms", 0.5),
        ("-1", inf),
        ("-1m", inf),
    ],
)
def test_wishes(requested: float | str | None, seconds: float | None) -> None:
    assert seconds_of(requested) == seconds


@pytest.mark.parametrize("requested", ["", "long", "5 minutes", "1h30m", "s", float("nan")])
def test_what_is_no_duration(requested: float | str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is"):
        seconds_of(requested)
    if isinstance(requested, str):
        with in_process_app(tmp_path / "data") as api:
            refused = api.post("/generate", json={"prompt": "x", "keep_alive": requested})
            assert "keep_alive" in assert_problem(refused, 422, "invalid_value")["detail"]
