"""GET /nights: the last nights, newest first."""

from tests.support.daemon.in_process_app import InProcessApp, assert_problem


def test_the_last_nights(api: InProcessApp) -> None:
    api.power.value = False
    api.add("words " * 50)
    job = api.post("/jobs", json={"now": False}).json()["id"]
    for _ in range(31):
        api.tick(60)
    api.power.value = True
    api.tick(60)
    api.succeed(job, "adapter-1", held_out_loss_before=3.5, held_out_loss_now=3.25)
    document = api.get("/nights").json()
    assert len(document["data"]) == 14
    tonight = document["data"][0]
    assert [(run["job"], run["ended_because"]) for run in tonight["runs"]] == [(job, "the job has ended: succeeded")]
    assert [row | {"night": tonight["night"]} for row in tonight["held_back"]] == tonight["held_back"]
    assert [(row["name"], row["seconds"]) for row in tonight["held_back"]] == [("power", 1800.0)]
    [ended] = tonight["jobs"]
    assert (ended["id"], ended["state"], ended["outcome"], ended["adapter"]) == (
        job,
        "succeeded",
        "learned",
        "adapter-1",
    )
    assert [window["began_at"] for window in tonight["open"]] == [tonight["runs"][0]["began_at"]]


def test_how_many(api: InProcessApp) -> None:
    days = [night["night"] for night in api.get("/nights", params={"days": 30}).json()["data"]]
    assert len(set(days)) == 30 and days == sorted(days, reverse=True)
    for number in (0, 31):
        assert_problem(api.get("/nights", params={"days": number}), 422, "invalid_value")
