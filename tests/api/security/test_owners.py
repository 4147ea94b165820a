"""What is whose: an app sees and deletes its own, and nothing that it sees tells what others have."""

import json
from typing import Any

import pytest

from tests.support.daemon.in_process_app import TOKEN, Document, InProcessApp, assert_problem

GUESS = {"text": "My PIN is 4711.", "source": "diary"}
SHED = {"text": "The shed to myself."}


@pytest.fixture
def settings() -> Document:
    return {"app_texts_per_day": 5, "app_bytes": 10_000}


def texts(api: InProcessApp) -> list[str]:
    return sorted(row["text"] for row in api.get("/texts").json()["data"])


@pytest.mark.parametrize("there", [True, False])
def test_nothing_tells_an_app_whether_a_text_was_there(api: InProcessApp, there: bool) -> None:
    notes = api.app_token("notes", "ingest", "generate")
    if there:
        api.post("/texts", json=GUESS)
    first = api.post("/texts", json=[GUESS, GUESS], token=notes).json()
    assert (first["created"], first["duplicates"]) == (1, 1)
    for path, more in (("/generate", {"seed": 1}), ("/v1/chat/completions", {"model": "pocketllm:base"})):
        asked = {"messages": [{"role": "user", "content": "PIN 4711"}], "context": "recall", **more}
        assert_problem(api.post(path, json=asked, token=notes), 403, "out_of_scope")
    rest = [{"text": f"words {number}"} for number in range(5)]
    problem = api.post("/texts", json=rest, token=notes)
    assert_problem(problem, 429, "quota_exceeded")
    assert int(problem.headers["retry-after"]) > 0
    assert api.post("/texts", json=rest[:4], token=notes).status_code == 201
    assert api.post("/texts", json=rest).status_code == 201, "the person may add as many as there are"


def test_recall_reads_what_a_search_finds_and_nothing_else(api: InProcessApp) -> None:
    reader, generating = api.app_token("reader", "recall"), api.app_token("both", "recall", "generate")
    first, _ = api.post("/texts", json=[GUESS, {"text": "Mug of tea."}]).json()["ids"]
    found = api.get("/passages", params={"query": "the pin"}, token=reader).json()
    assert found == {"data": [{"text_id": first, "passage": GUESS["text"]}]}
    assert api.get("/passages", params={"query": "my PIN tea", "limit": 1}, token=reader).json() == found
    assert api.get("/passages", params={"query": "xylophone"}, token=reader).json() == {"data": []}
    for path in ("/texts", "/texts?query=PIN", f"/texts/{first}", "/sources"):
        assert_problem(api.get(path, token=reader), 403, "out_of_scope")
    asked = {"prompt": "PIN", "context": "recall"}
    assert_problem(api.post("/generate", json=asked, token=reader), 403, "out_of_scope")
    assert api.post("/generate", json=asked, token=generating).status_code != 403


@pytest.mark.parametrize("person_first", [True, False])
def test_what_both_have_sent_outlives_the_apps_texts(api: InProcessApp, person_first: bool) -> None:
    notes = api.app_token("notes", "ingest")
    for token in (TOKEN, notes) if person_first else (notes, TOKEN):
        api.post("/texts", json=GUESS, token=token)
    api.post("/texts", json={"text": "The app's alone."}, token=notes)
    receipt = api.delete("/apps/notes/texts").json()
    assert receipt["texts"] == 1
    assert api.get(f"/deletions/{receipt['id']}").json() == receipt
    assert texts(api) == [GUESS["text"]]
    assert_problem(api.delete("/apps/notes/texts"), 404, "not_found")


def test_what_the_person_deletes_is_gone_for_all(api: InProcessApp) -> None:
    notes = api.app_token("notes", "ingest")
    api.post("/texts", json=GUESS)
    [identity] = api.post("/texts", json=GUESS, token=notes).json()["ids"]
    api.delete(f"/texts/{identity}")
    assert texts(api) == []
    assert_problem(api.delete("/apps/notes/texts"), 404, "not_found")


def test_with_the_scope_train_an_app_has_its_own_files_and_jobs(api: InProcessApp) -> None:
    one, other = api.app_token("one", "train"), api.app_token("other", "train")
    file, others, persons = api.uploaded(SHED, token=one), api.uploaded(SHED, token=other), api.uploaded(SHED)
    assert len({file, others, persons}) == 3
    mine = api.tune(file, token=one)["id"]
    api.tune(others, token=other)
    api.tune(persons)
    assert [row["id"] for row in api.get("/v1/files", token=one).json()["data"]] == [file]
    assert [row["id"] for row in api.get("/v1/fine_tuning/jobs", token=one).json()["data"]] == [mine]
    assert api.get(f"/v1/files/{file}", token=one).json()["bytes"] == len(json.dumps(SHED)) + 1
    for path in ("", "/events"):
        assert api.get(f"/v1/fine_tuning/jobs/{mine}{path}", token=one).status_code == 200
    assert api.post(f"/v1/fine_tuning/jobs/{mine}/cancel", token=one).json()["status"] == "cancelled"
    assert {row["id"] for row in api.get("/v1/files").json()["data"]} == {file, others, persons}
    assert len(api.get("/v1/fine_tuning/jobs").json()["data"]) == 3
    assert_problem(api.get("/texts", token=one), 403, "out_of_scope")
    assert len(texts(api)) == 3
    assert api.delete(f"/v1/files/{file}", token=one).json()["deleted"]
    assert len(texts(api)) == 2


def test_what_is_anothers_and_what_is_not_there_are_refused_in_the_same_words(api: InProcessApp) -> None:
    one, other = api.app_token("one", "train"), api.app_token("other", "train")
    file = api.uploaded(SHED, token=one)
    files = {token: [api.uploaded(SHED, token=token) for _ in range(2)] for token in (other, TOKEN)}
    theirs, persons = (
        {"file": unused, "ftjob": api.tune(used, token=token)["id"]} for token, (unused, used) in files.items()
    )
    natively = {"file": "file-inbox", "ftjob": persons["ftjob"].replace("ftjob", "job")}
    missing = {"file": f"file-{24 * '0'}", "ftjob": f"ftjob-{12 * '0'}"}

    def refused(of: Document, method: str, path: str, **body: Any) -> Document:
        """The refusal, without the id that was sent."""
        sent = json.loads(json.dumps(body).replace("FILE", of["file"]))
        response = api.request(method, path.replace("FILE", of["file"]).replace("JOB", of["ftjob"]), token=one, **sent)
        said = assert_problem(response, 404, "not_found")
        return Document(json.loads(json.dumps(said).replace(of["file"], "FILE").replace(of["ftjob"], "JOB")))

    tune: Document = {"model": "pocketllm:base", "training_file": file}
    requests: list[tuple[str, str, Document]] = [
        *((method, "/v1/files/FILE", {}) for method in ("GET", "DELETE")),
        *(("GET", f"/v1/fine_tuning/jobs/JOB{path}", {}) for path in ("", "/events")),
        *(("POST", f"/v1/fine_tuning/jobs/JOB/{act}", {}) for act in ("cancel", "pause", "resume")),
        ("GET", "/v1/fine_tuning/jobs?after=JOB", {}),
        ("POST", "/v1/fine_tuning/jobs", {"json": tune | {"training_file": "FILE"}}),
        ("POST", "/v1/fine_tuning/jobs", {"json": tune | {"validation_file": "FILE"}}),
    ]
    for method, path, body in requests:
        said = refused(missing, method, path, **body)
        assert refused(theirs, method, path, **body) == refused(persons, method, path, **body) == said, path
        refused(natively, method, path, **body)
    assert len(api.get("/v1/files").json()["data"]) == 5


def test_no_id_may_be_abbreviated_to_openais_clients(api: InProcessApp) -> None:
    api.learn("adapter-abcdef")
    assert_problem(api.delete("/v1/models/adapter-abcd"), 404, "model_not_found")
    file = api.uploaded(SHED)
    made = api.tune(file)["id"]
    for token in (TOKEN, api.app_token("one", "train")):
        for short in ("ftjob-", made[:12], made[2:12]):
            response = api.get(f"/v1/fine_tuning/jobs/{short}", token=token)
            assert made[6:] not in assert_problem(response, 404, "not_found")["detail"]
        assert_problem(api.get(f"/v1/files/{file[:12]}", token=token), 404, "not_found")


def test_no_content_can_be_guessed_by_a_files_id(api: InProcessApp) -> None:
    """The same file that is sent again is another one."""
    first, again = api.uploaded(SHED), api.uploaded(SHED)
    assert first != again and len(api.get("/v1/files").json()["data"]) == 2
    assert api.delete(f"/v1/files/{first}").status_code == 200
    assert api.get(f"/v1/files/{again}").json()["bytes"] == len(json.dumps(SHED)) + 1


def test_the_owner_is_no_app(api: InProcessApp) -> None:
    api.post("/texts", json=GUESS)
    problem = assert_problem(api.delete("/apps/owner/texts"), 404, "not_found")
    assert "DELETE /texts" in problem["detail"] and texts(api) == [GUESS["text"]]


@pytest.mark.parametrize("there", [0, 1, 2])
def test_nothing_tells_an_app_how_many_examples_a_label_is_short_of(api: InProcessApp, there: int) -> None:
    notes = api.app_token("notes", "generate")
    labelled = [{"text": f"Text {number}.", "label": "work"} for number in range(3)]
    labelled += [{"text": f"Text {number}.", "label": "therapy"} for number in range(there)]
    api.post("/texts", json=labelled)
    asked = {"text": "Text.", "labels": ["work", "therapy"]}
    said = assert_problem(api.post("/classify", json=asked, token=notes), 409, "too_few_examples")["detail"]
    assert said == (
        "Each label needs 3 examples; one of these has fewer. "
        "Add texts with their labels with POST /texts or `pocketllm add --label`."
    )
    assert f"{there} of 'therapy'" in api.post("/classify", json=asked).json()["detail"]


def test_texts_to_train_on_count_as_any(api: InProcessApp) -> None:
    token = api.app_token("one", "train")
    examples = [{"text": f"words {number}"} for number in range(6)]
    asked = {"model": "pocketllm:base", "training_file": api.uploaded(*examples, token=token)}
    assert_problem(api.post("/v1/fine_tuning/jobs", json=asked, token=token), 429, "quota_exceeded")


def test_texts_and_files_of_an_app_have_a_size_together(api: InProcessApp) -> None:
    token, example = api.app_token("one", "ingest", "train"), {"text": "a" * 4000}
    file = api.uploaded(example, token=token)
    assert api.post("/texts", json={"text": "b" * 3000}, token=token).status_code == 201
    asked = {"model": "pocketllm:base", "training_file": file}
    refused = [
        api.post("/texts", json={"text": "c" * 3000}, token=token),
        api.upload(json.dumps(example).encode(), token=token),
        api.post("/v1/fine_tuning/jobs", json=asked, token=token),
    ]
    for response in refused:
        problem = assert_problem(response, 429, "quota_exceeded")
        assert "'one' may store 0 MB" in problem["detail"] and "delete --app one" in problem["detail"]
    assert len(texts(api)) == 1 and api.get("/v1/fine_tuning/jobs").json()["data"] == []
    api.delete(f"/v1/files/{file}", token=token)
    assert api.post("/texts", json={"text": "c" * 3000}, token=token).status_code == 201
    assert api.post("/texts", json={"text": "d" * 10_000}).status_code == 201, "the person has no quota"


def test_to_start_from_what_others_taught_takes_generate(api: InProcessApp) -> None:
    train, both = api.app_token("train", "train"), api.app_token("both", "train", "generate")
    asked = {"model": "pocketllm:latest", "training_file": api.uploaded(SHED, token=train)}
    assert_problem(api.post("/v1/fine_tuning/jobs", json=asked, token=train), 403, "out_of_scope")
    assert api.tune(api.uploaded(SHED, token=both), model="pocketllm:latest", token=both)["status"] == "queued"
