"""What stands behind the page: its files."""

from pathlib import Path

from pocketllm.api.dashboard.page import _FILES
from tests.support.daemon.in_process_app import in_process_app


def test_the_files_let_nothing_in(tmp_path: Path) -> None:
    with in_process_app(tmp_path / "data") as api:
        for path in ("/", *(f"/dashboard/{name}" for name in _FILES)):
            response = api.get(path, token=None)
            policy = response.headers["content-security-policy"]
            assert response.status_code == 200 and policy.startswith("default-src 'none'"), path
            assert "unsafe" not in policy and "frame-ancestors 'none'" in policy, path
            assert response.headers["x-content-type-options"] == "nosniff", path
        for other in ("/dashboard/../app.py", "/dashboard/none", "/dashboard/page.html/x", "/dashboard/"):
            assert api.get(other, token=None).status_code in (401, 404), other


def test_they_stay_small() -> None:
    whole = [file.read_bytes() for file in _FILES.values()]
    assert sum(map(len, whole)) <= 96 << 10
    assert sum(content.count(b"\n") for content in whole) <= 1900
