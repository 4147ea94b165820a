"""What a deletion costs, before and after; relearning; and serving what has learned deleted text."""

from pathlib import Path

import pytest

from pocketllm.daemon.leftovers import noted_backup
from pocketllm.storage.repositories.folders import FileRead
from pocketllm.storage.repositories.texts import NewText
from tests.support.daemon.in_process_app import NOON, InProcessApp, assert_problem

TRACES = "The last traces on disk go in ten minutes, or once no job runs."


def serving(api: InProcessApp) -> str | None:
    name: str | None = api.get("/status").json()["model"]["adapter"]
    return name


def test_the_cost_is_told_before_and_changes_nothing(api: InProcessApp) -> None:
    first, _ = api.learn("adapter-0", "the first text", "and another")
    (second,) = api.learn("adapter-1", "the second text")
    (new,) = api.add("a new text", source="new")
    cost = api.get("/deletions/cost", params={"id": [second]}).json()
    assert (cost["adapters"], cost["serving"]) == (["adapter-1"], "adapter-0")
    assert cost["summary"] == (
        "adapter-1 learned from it. adapter-0 is served until a job, queued at once, has trained on what remains."
    )
    both = api.get("/deletions/cost", params={"id": [first, second]}).json()
    assert (both["adapters"], both["serving"]) == (["adapter-0", "adapter-1"], None)
    assert "The base model is served" in both["summary"]
    assert api.get("/deletions/cost", params={"source": "test"}).json() == both | {"texts": 3}
    for free in ({"id": new}, {"source": "new"}, {"app": "none"}, {}):
        assert api.get("/deletions/cost", params=free).json()["summary"] == ""
    assert_problem(api.get("/deletions/cost", params={"id": "text-none"}), 404, "not_found")
    assert_problem(api.get("/deletions/cost", token=None), 401, "missing_token")
    assert len(api.get("/texts").json()["data"]) == 4 and serving(api) == "adapter-1"
    api.post("/adapters/rollback")
    told = {"texts": 1, "adapters": ["adapter-1"], "serving": "adapter-0", "summary": "adapter-1 learned from it."}
    assert api.get("/deletions/cost", params={"id": second}).json() == told


@pytest.mark.parametrize("state", ["paused", "paused by the owner", "running"])
def test_what_is_left_is_learned_again_whatever_another_job_does(api: InProcessApp, state: str) -> None:
    (first,) = api.learn("adapter-0", "the first text")
    (second, _) = api.learn("adapter-1", "the second text", "the third text")
    api.add("a new text")
    other = api.post("/jobs").json()["id"]
    api.tick(60)
    if state == "paused":
        api.power.value, api.battery.value = False, 10.0
        api.tick()
        assert api.get(f"/jobs/{other}").json()["state"] == "paused"
    elif state == "paused by the owner":
        api.post(f"/jobs/{other}/pause")
    receipt = api.delete(f"/texts/{second}").json()["deletion"]
    assert receipt["adapters"] == ["adapter-1"] and receipt["serving"] == "adapter-0"
    assert receipt["job"] not in (None, other)
    assert receipt["summary"] == (
        "Deleted 1 text. The adapter that had learned from it is withdrawn; adapter-0 is now served. "
        f"{receipt['job']} trains on the remaining texts. {TRACES}"
    )
    assert api.delete(f"/texts/{first}").json()["deletion"]["serving"] is None


def test_several_texts_have_one_receipt(api: InProcessApp) -> None:
    first, second, third = api.add("one", "two", "three")
    assert_problem(api.delete("/texts", params={"id": [first, "text-none"]}), 404, "not_found")
    assert len(api.get("/texts").json()["data"]) == 3  # all or none
    receipt = api.delete("/texts", params={"id": [first, second[:20], first]}).json()
    assert (receipt["texts"], receipt["summary"]) == (2, f"Deleted 2 texts. {TRACES}")
    assert [text["id"] for text in api.get("/texts").json()["data"]] == [third]
    assert_problem(api.delete("/texts"), 404, "not_found")
    assert_problem(api.delete("/texts", params={"id": third, "source": "test"}), 422, "invalid_value")


def delete_the_second_of_three(api: InProcessApp) -> None:
    """Let three jobs learn a text each, and delete the second, which the first adapter alone has not learned."""
    api.learn("adapter-0", "the first text")
    (second,) = api.learn("adapter-1", "the second text")
    api.learn("adapter-2", "the third text")
    api.delete(f"/texts/{second}")
    assert serving(api) == "adapter-0"


def test_what_has_learned_deleted_text_is_served_only_with_a_yes(api: InProcessApp) -> None:
    delete_the_second_of_three(api)
    for withdrawn in ("adapter-1", "adapter-2"):
        refused = assert_problem(api.post(f"/adapters/{withdrawn}/serve"), 409, "has_deleted_text")
        assert "was trained on text that was deleted since" in refused["detail"] and "--yes" in refused["detail"]
    assert serving(api) == "adapter-0"
    assert api.post("/adapters/adapter-2/serve?deleted_text=true").json()["serving"] == "adapter-2"
    rolled_back = api.post("/adapters/rollback").json()
    assert (rolled_back["serving"], rolled_back["skipped"]) == ("adapter-0", ["adapter-1"])


def test_what_is_served_in_place_of_a_damaged_one_has_not_learned_deleted_text(api: InProcessApp) -> None:
    delete_the_second_of_three(api)
    api.post("/adapters/adapter-2/serve?deleted_text=true")
    (api.services.folder.adapter("adapter-2") / "adapter_model.safetensors").unlink()
    api.tick()
    assert serving(api) == "adapter-0"


def test_what_is_made_from_such_an_adapter_is_not_served_without_a_yes_either(api: InProcessApp) -> None:
    (first,) = api.learn("adapter-0", "the first text")
    api.delete(f"/texts/{first}")
    api.post("/adapters/adapter-0/serve?deleted_text=true")
    api.learn("adapter-1", "the second text")
    api.post("/adapters/rollback")
    assert serving(api) is None
    assert_problem(api.post("/adapters/adapter-1/serve"), 409, "has_deleted_text")


def test_a_deletion_is_erased_only_when_a_running_backup_is_done(api: InProcessApp, tmp_path: Path) -> None:
    (first,) = api.add("a text")
    with noted_backup(api.services.folder, tmp_path / "backup.tar"):
        (tmp_path / "backup.tar").touch()
        receipt = api.delete(f"/texts/{first}").json()["deletion"]
        assert not receipt["erased"] and receipt["copies"] == [str(tmp_path / "backup.tar")]
        api.tick(700)
        assert not api.get(f"/deletions/{receipt['id']}").json()["erased"]
    api.tick()
    assert api.get(f"/deletions/{receipt['id']}").json()["erased"]


@pytest.mark.parametrize("whose", ["the text", "the app's"])
def test_an_uploaded_file_does_not_keep_what_was_deleted(api: InProcessApp, whose: str) -> None:
    """The app could read it there, and have it learned again."""
    app = api.app_token("keyboard", "train", "generate")
    lines = [{"text": f"a line of the file, number {number}"} for number in range(3)]
    file, unused = (api.uploaded(*lines, token=app) for _ in range(2))
    api.tune(file, token=app)
    text = api.get("/texts").json()["data"][0]["id"]
    api.delete(f"/texts/{text}" if whose == "the text" else "/apps/keyboard/texts")
    assert api.get(f"/v1/files/{file}", token=app).status_code == 404
    assert api.get(f"/v1/files/{unused}", token=app).status_code == (200 if whose == "the text" else 404)
    again = api.post("/v1/fine_tuning/jobs", json={"model": "pocketllm:base", "training_file": file}, token=app)
    assert again.status_code == 404
    assert len(api.get("/texts").json()["data"]) == (2 if whose == "the text" else 0)


def test_the_receipt_names_the_files_that_still_have_it(api: InProcessApp) -> None:
    text, folders = NewText(text="the secret", source="notes"), api.services.store.folders
    paths = [f"/notes/{number}.md" for number in range(7)]
    folders.put([(FileRead(path, 2, set()), text) for path in paths[:1]], NOON, lambda: True)
    receipt = api.delete("/texts?source=notes").json()
    assert receipt["files"] == paths[:1]
    assert receipt["summary"] == (
        "Deleted 1 text. These files still have the text: /notes/0.md. PocketLLM will not learn it from them again; "
        f"edit them if you want it gone there. {TRACES}"
    )
    folders.forget(paths[:1], NOON)
    folders.put([(FileRead(path, 2, set()), text) for path in paths], NOON, lambda: True)
    receipt = api.delete("/texts?source=notes").json()
    assert receipt["files"] == paths
    assert ", /notes/4.md (and 2 more). PocketLLM" in receipt["summary"]
    assert api.get(f"/deletions/{receipt['id']}").json()["files"] == paths
