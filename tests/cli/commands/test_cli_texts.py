"""`pocketllm texts`: what there is to learn from, seen and deleted."""

import json

from tests.support.daemon.commands import Run
from tests.support.daemon.served import Served


def test_list_page_by_page(served: Served, run: Run) -> None:
    assert "No texts." in run("texts").stdout
    added = served.api.add(*(f"Note {number}\n\x1b[2J of the boat." for number in range(5)))
    shown = run("texts", "--limit", "3").stdout
    assert "of the boat." in shown and "test" in shown and "\x1b" not in shown
    first = run.json("texts", "--limit", "3")
    assert f"pocketllm texts --after {first['next']}" in shown
    second = run.json("texts", "--limit", "3", "--after", first["next"])
    assert not second["has_more"]
    assert {text["id"] for text in first["data"] + second["data"]} == set(added)
    assert "pocketllm texts --query 'the boat' --after" in run("texts", "--limit", "3", "--query", "the boat").stdout


def test_show(served: Served, run: Run) -> None:
    [added] = served.api.add("A note to be shown.\nAll of it.")
    for words in (["texts"], ["texts", "show"]):
        assert "A note to be shown.\nAll of it.\n" in run(*words, added).stdout
        assert run.json(*words, added)["text"] == "A note to be shown.\nAll of it."


def test_delete(served: Served, run: Run) -> None:
    first, second, third = served.api.add("Gone one.", "Gone two.", "Gone three.")
    assert run("texts", "delete", first).stdout.startswith("Deleted 1 text. The last traces on disk go")
    receipt = run.json("texts", "delete", second, second)
    assert receipt == served.api.get(f"/deletions/{receipt['id']}").json() and receipt["texts"] == 1
    assert "There is no text" in run.refused("texts", "delete", third, first)
    assert [text["id"] for text in served.texts()] == [third]


def test_what_a_deletion_costs_is_said_before_and_after(served: Served, run: Run) -> None:
    adapter = served.learn()
    [learned] = [text["id"] for text in served.texts()]
    [kept] = served.api.add("Kept text.")
    asked = run("texts", "delete", learned, stdin="n\n")
    cost = "The base model is served until a job, queued at once, has trained on what remains."
    assert asked.exit_code == 1 and f"{adapter} learned from it. {cost} Delete? [y/N]" in asked.output
    assert "Give --yes" in run.refused("texts", "delete", learned, "--json", code=2)
    assert len(served.texts()) == 2
    said = run.said("texts", "delete", learned, stdin="y\n")
    assert (
        "Deleted 1 text. The adapter that had learned from it is withdrawn; the base model is now served. job-" in said
        and "trains on the remaining texts." in said
    )
    run.said("texts", "delete", kept, "--yes")
    assert "was trained on text that was deleted since" in run.refused("adapters", "serve", adapter)
    assert f"From the next request on, tiny serves {adapter}" in run("adapters", "serve", adapter, "--yes").stdout


def test_delete_by_source_and_by_app(served: Served, run: Run) -> None:
    served.api.add("Of a source 0.", "Of a source 1.", source="by source")
    app = served.api.post("/tokens", json={"name": "sender", "scopes": ["ingest"]}).json()["token"]
    assert served.api.post("/texts", json={"text": "Of an app."}, token=app).status_code == 201
    for which, count in ((["--source", "by source"], 2), (["--app", "sender"], 1)):
        asked = run("texts", "delete", *which, stdin="n\n")
        assert asked.exit_code == 1 and f"{count:,} texts. Delete? [y/N]" in asked.output
        run.refused("texts", "delete", *which, "--json", code=2)
        assert run.said("texts", "delete", *which, "--yes").startswith(f"Deleted {count} text")
    for which in (["--source", "none"], ["--app", "none"]):
        run.refused("texts", "delete", *which, "--yes")
    run.refused("texts", "delete", "--source", "a", "--app", "b", code=2)


def test_unknown_texts_and_wrong_usage(run: Run) -> None:
    for arguments in (["show", "text-nope"], ["text-nope"], ["delete", "text-nope"], ["--after", "text-nope"]):
        assert json.loads(run.refused("texts", *arguments, "--json"))["status"] == 404
    run.refused("texts", "delete", code=2)
    run.refused("texts", "--limit", "501", code=2)
