"""What stands behind the dashboard: its files, and what the sensors have seen."""

from pathlib import Path

import pytest

from tests.support.in_process_app import assert_problem, in_process_app


@pytest.mark.parametrize(
    "path",
    ["/", *(f"/dashboard/{name}.js" for name in ("app", "call", "dom", "jobs", "plot", "suggest", "texts"))],
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


def test_what_the_sensors_have_seen_is_kept_for_two_days(tmp_path: Path) -> None:
    with in_process_app(tmp_path / "data") as api:
        for level in (80.0, 79.0, None, 78.0):
            api.battery.value = level
            api.tick(299)
            api.tick(1)
        seen = api.get("/history").json()["data"]
        assert [one["battery"] for one in seen] == [80.0, 79.0, None, 78.0]
        assert {one["memory"] for one in seen} == {4e9} and {one["temperature"] for one in seen} == {None}
        api.tick(3600 * 47)
        assert len(api.get("/history?hours=48").json()["data"]) == 5
        api.tick(3600 * 2)
        assert [one["battery"] for one in api.get("/history?hours=48").json()["data"]] == [78.0, 78.0]
        assert_problem(api.get("/history?hours=0"), 422, "invalid_value")
