"""What stands behind the page: its files."""

from pathlib import Path

import pytest

from pocketllm.api.dashboard.page import _FILES
from tests.support.in_process_app import in_process_app


@pytest.mark.parametrize(
    "path",
    ["/", *(f"/dashboard/{name}" for name in _FILES)],
)
def test_the_files_let_nothing_in(tmp_path: Path, path: str) -> None:
    with in_process_app(tmp_path / "data") as api:
        response = api.get(path, token=None)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        for other in ("/dashboard/../app.py", "/dashboard/none", "/dashboard/page.html/x", "/dashboard/"):
            assert api.get(other, token=None).status_code in (401, 404)
