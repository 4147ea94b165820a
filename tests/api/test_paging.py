"""Lists over HTTP, page by page: newest first, and each item once."""

from typing import Any

import pytest

from tests.support.daemon.in_process_app import InProcessApp

COUNT = 7


def pages(api: InProcessApp, path: str, **query: Any) -> list[list[str]]:
    """The ids on each page of a list."""
    found: list[list[str]] = []
    while True:
        page = api.get(path, params=query).json()
        found.append([one["id"] for one in page["data"]])
        if "next" in page:
            assert page["has_more"] is (page["next"] is not None)
        else:  # as OpenAI's lists are
            assert (page["first_id"], page["last_id"]) == (found[-1][0], found[-1][-1])
        if not page["has_more"]:
            return found
        query["after"] = found[-1][-1]
        assert page.get("next", query["after"]) == query["after"]


@pytest.mark.parametrize("seconds", [1, 0], ids=["one after the other", "all at one moment"])
def test_each_item_is_on_one_page(api: InProcessApp, subtests: pytest.Subtests, seconds: int) -> None:
    made: dict[str, list[str]] = {"/texts": [], "/jobs": [], "/v1/files": []}
    for number in range(COUNT):
        made["/texts"] += api.add(f"Buoy {number} rings.")
        made["/jobs"].append(api.post("/jobs", json={"seed": number}).json()["id"])
        made["/v1/files"].append(api.uploaded({"text": "a"}))
        api.clock.advance(seconds)
    made["/v1/fine_tuning/jobs"] = [f"ft{job}" for job in made["/jobs"]]
    for path, ids in made.items():
        with subtests.test(path):
            [whole] = pages(api, path, limit=COUNT)
            assert sorted(whole) == sorted(ids)
            assert not seconds or whole == ids[::-1], "newest first"
            assert pages(api, path, limit=3) == [whole[:3], whole[3:6], whole[6:]]
            assert pages(api, path) == [whole]
    with subtests.test("texts that are searched for"):
        [whole] = pages(api, "/texts", query="buoy", limit=COUNT)
        assert sorted(whole) == sorted(made["/texts"])
        assert pages(api, "/texts", query="buoy", limit=3) == [whole[:3], whole[3:6], whole[6:]]


def test_the_empty_list(api: InProcessApp) -> None:
    """As every document, it is indented, and ends with a newline."""
    for path in ("/texts", "/jobs"):
        assert api.get(path).text == '{\n  "data": [],\n  "has_more": false,\n  "next": null\n}\n'
