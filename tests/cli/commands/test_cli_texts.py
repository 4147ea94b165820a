"""`pocketllm texts`: what there is to learn from, seen and deleted."""

import json

from tests.support.daemon.commands import Run
from tests.support.daemon.served import Served


def test_list_page_by_page(served: Served, run: Run) -> None:
    assert "No texts." in run("texts").stdout
    added = served.api.add(*(f"Note {number}\n\x1b[2J of the boat." for number in range(5)))
    shown = run("texts", "--limit", "3").stdout
    assert "of the boat." in shown and "test" in shown and "\x1b" not in shown
    first = json.loads(run("texts", "--limit", "3", "--json").stdout)
    assert f"pocketllm texts --after {first['next']}" in shown
    second = json.loads(run("texts", "--limit", "3", "--after", first["next"], "--json").stdout)
    assert not second["has_more"]
    assert {text["id"] for text in first["data"] + second["data"]} == set(added)
    assert "pocketllm texts --query 'the boat' --after" in run("texts", "--limit", "3", "--query", "the boat").stdout


def test_show(served: Served, run: Run) -> None:
    [added] = served.api.add("A note to be shown.\nAll of it.")
    for words in (["texts"], ["texts", "show"]):
        assert "A note to be shown.\nAll of it.\n" in run(*words, added).stdout
        assert json.loads(run(*words, added, "--json").stdout)["text"] == "A note to be shown.\nAll of it."


def test_delete(served: Served, run: Run) -> None:
    first, second, third = served.api.add("Gone one.", "Gone two.", "Gone three.")
    assert run("texts", "delete", first).stdout.startswith("Deleted 1 text. The last traces on disk go")
    receipt = json.loads(run("texts", "delete", second, second, "--json").stdout)
    assert receipt == served.api.get(f"/deletions/{receipt['id']}").json() and receipt["texts"] == 1
    result = run("texts", "delete", third, first)
    assert (result.exit_code, "There is no text" in result.stderr) == (1, True)
    assert [text["id"] for text in served.texts()] == [third]


def test_what_a_deletion_costs_is_said_before_and_after(served: Served, run: Run) -> None:
    adapter = served.learn()
    [learned] = [text["id"] for text in served.texts()]
    [kept] = served.api.add("Kept text.")
    asked = run("texts", "delete", learned, stdin="n\n")
    cost = "The base model is served until a job, queued at once, has trained on what remains."
    assert asked.exit_code == 1 and f"{adapter} learned from it. {cost} Delete? [y/N]" in asked.output
    refused = run("texts", "delete", learned, "--json")
    assert refused.exit_code == 2 and "Give --yes" in refused.stderr
    assert len(served.texts()) == 2
    said = run("texts", "delete", learned, stdin="y\n").stdout
    assert (
        "Deleted 1 text. The adapter that had learned from it is withdrawn; the base model is now served. job-" in said
        and "trains on the remaining texts." in said
    )
    assert not run("texts", "delete", kept, "--yes").exit_code
    refused = run("adapters", "serve", adapter)
    assert refused.exit_code == 1 and "was trained on text that was deleted since" in refused.stderr
    assert f"From the next request on, tiny serves {adapter}" in run("adapters", "serve", adapter, "--yes").stdout


def test_delete_by_source_and_by_app(served: Served, run: Run) -> None:
    served.api.add("Of a source 0.", "Of a source 1.", source="by source")
    app = served.api.post("/tokens", json={"name": "sender", "scopes": ["ingest"]}).json()["token"]
    assert served.api.post("/texts", json={"text": "Of an app."}, token=app).status_code == 201
    for which, count in ((["--source", "by source"], 2), (["--app", "sender"], 1)):
        asked = run("texts", "delete", *which, stdin="n\n")
        assert asked.exit_code == 1 and f"{count:,} texts. Delete? [y/N]" in asked.output
        assert run("texts", "delete", *which, "--json").exit_code == 2
        said = run("texts", "delete", *which, "--yes").stdout
        assert said.startswith(f"Deleted {count} text")
    for which in (["--source", "none"], ["--app", "none"]):
        assert run("texts", "delete", *which, "--yes").exit_code == 1
    assert run("texts", "delete", "--source", "a", "--app", "b").exit_code == 2


def test_unknown_texts_and_wrong_usage(run: Run) -> None:
    for arguments in (["show", "text-nope"], ["text-nope"], ["delete", "text-nope"], ["--after", "text-nope"]):
        result = run("texts", *arguments, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stderr)["status"] == 404
    assert run("texts", "delete").exit_code == 2
    assert run("texts", "--limit", "501").exit_code == 2
