"""/v1/files and /v1/fine_tuning/jobs: what is refused and why, what a job is made of, what goes with a file."""

import json

import pytest

from pocketllm.storage.tables import JobState
from tests.support.daemon.in_process_app import Document, InProcessApp, assert_problem

CHAT = {"messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Always, and twice."}]}
PAIR = {"prompt": "Who has the watch?", "completion": " Anna until four."}
TEXT = {"text": "The shed to myself."}
LATEST = "pocketllm:latest"


def job_id(tuned: Document) -> str:
    """The id by which other routes know a fine-tuning job."""
    return str(tuned["id"]).replace("ftjob-", "job-")


NO_ANSWER = "line 1: messages: no assistant message has words to train on"
BAD = {
    "nothing": (b"", "The body contains no text"),
    "no JSON": (b'{"text": "a"}\n{"text": \n', "line 2: This is not valid JSON"),
    "no object": (b'{"text": "a"}\n\n[1]\n', "line 3: This is not a JSON object"),
    "unknown fields": (b'{"input": "a"}', "line 1: There is no text to train on"),
    "two kinds": (b'{"text": "a", "messages": []}', "line 1: messages cannot be combined with text"),
    "no messages": (b'{"messages": []}', "line 1: messages: "),
    "nothing to learn": (b'{"messages": [{"role": "user", "content": "a"}]}', NO_ANSWER),
    "weight zero": (b'{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}', NO_ANSWER),
    "an unknown role": (b'{"messages": [{"role": "robot", "content": "a"}]}', "line 1: role: "),
    "an empty text": (b'{"text": " "}', "line 1: The text is empty"),
}


def test_a_bad_line_is_refused_with_its_number(api: InProcessApp, subtests: pytest.Subtests) -> None:
    for name, (data, said) in BAD.items():
        with subtests.test(name):
            assert said in assert_problem(api.upload(data), 422, "invalid_value")["detail"]
    assert [one["id"] for one in api.get("/v1/files").json()["data"]] == []


def test_what_openai_writes_is_taken(api: InProcessApp) -> None:
    rich = {
        "messages": [
            {"role": "developer", "content": "Short."},
            {"role": "user", "content": [{"type": "text", "text": "Tea"}, {"type": "text", "text": "?"}], "name": "A"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "kettle on"},
            {"role": "assistant", "content": "No.", "weight": 0},
            {"role": "assistant", "content": "Yes.", "weight": 1},
        ],
        "tools": [],
        "parallel_tool_calls": False,
    }
    document = api.tune(api.uploaded(rich, PAIR, TEXT))
    texts = api.get("/texts").json()["data"]
    [chat] = [text for text in texts if text["kind"] == "chat"]
    assert chat["messages"] == [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "Tea?"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "kettle on"},
        {"role": "assistant", "content": "No.", "weight": 0},
        {"role": "assistant", "content": "Yes.", "weight": 1},
    ]
    assert chat["text"].startswith("system: Short.\nuser: Tea?\n")
    assert {text["source"] for text in texts} == {document["training_file"]}


def test_a_broken_form_is_called_one(api: InProcessApp) -> None:
    for kind, data in (("multipart/form-data", b"x"), ("multipart/form-data; boundary=a", b"--b\r\n")):
        refused = api.post("/v1/files", content=data, headers={"content-type": kind})
        problem = assert_problem(refused, 400, "bad_request")
        assert "multipart/form-data" in problem["detail"]


def test_a_deleted_file_takes_its_texts_along(api: InProcessApp) -> None:
    file = api.upload(b"\xef\xbb\xbf" + b"\n".join(json.dumps(one).encode() for one in (CHAT, PAIR))).json()["id"]
    api.add("Wind west, glass rising.")
    api.tune(file)
    assert len(api.get("/texts").json()["data"]) == 3
    assert api.delete(f"/v1/files/{file}").json() == {"id": file, "object": "file", "deleted": True}
    assert [text["source"] for text in api.get("/texts").json()["data"]] == ["test"]
    assert_problem(api.delete(f"/v1/files/{file}"), 404, "not_found")
    assert_problem(api.delete("/v1/files/file-inbox"), 404, "not_found")


#: Beyond what the document says of each field.
REFUSED: list[tuple[Document, int, str, str | None]] = [
    ({"training_file": "file-none"}, 404, "not_found", "training_file"),
    ({"model": "gpt-4"}, 404, "model_not_found", "model"),
    ({"method": {"type": "dpo"}}, 422, "invalid_value", "method.type"),
]


def test_a_job_that_cannot_be_is_refused(api: InProcessApp) -> None:
    api.add("Wind west, glass rising.")
    sound = {"model": LATEST, "training_file": api.uploaded(TEXT)}
    for fields, status, code, param in REFUSED:
        problem = assert_problem(api.post("/v1/fine_tuning/jobs", json=sound | fields), status, code)
        assert param is None or problem["error"]["param"] == param
    assert api.get("/jobs").json()["data"] == []


def test_the_inbox_is_what_is_new(api: InProcessApp) -> None:
    refused = api.post("/v1/fine_tuning/jobs", json={"model": LATEST, "training_file": "file-inbox"})
    assert_problem(refused, 409, "nothing_to_learn")
    assert refused.headers["x-should-retry"] == "false"
    api.add("Wind west, glass rising.")
    assert api.tune("file-inbox", model=LATEST)["training_file"] == "file-inbox"


def test_rounds_through_the_file_become_steps(api: InProcessApp) -> None:
    file = api.uploaded(*[{"prompt": str(i), "completion": " yes"} for i in range(40)])
    rounds = {"n_epochs": 3, "batch_size": 4}
    job = api.get(f"/jobs/{job_id(api.tune(file, model=LATEST, hyperparameters=rounds))}").json()
    assert (job["total_steps"], job["plan"], job["settings"]["batch"]) == (30, None, 4)
    assert api.get(f"/jobs/{job_id(api.tune(file, model=LATEST))}").json()["total_steps"] is None


def test_what_does_not_apply_is_named(api: InProcessApp) -> None:
    said = api.tune(
        api.uploaded(TEXT),
        integrations=[{"type": "wandb", "wandb": {"project": "x"}}],
        hyperparameters={"learning_rate_multiplier": 2},
        service_tier="flex",
    )["warnings"]
    assert said == [
        "integrations is ignored: it is unknown",
        "service_tier is ignored: it is unknown",
        "learning_rate_multiplier is ignored: the daemon sets the learning rate",
    ]


def test_a_file_to_measure_with_is_held_out(api: InProcessApp) -> None:
    learned = api.uploaded(*[{"text": f"Tide {i}."} for i in range(30)])
    measured = api.uploaded(*[{"text": f"Tide {i}."} for i in range(5)])
    api.tune(learned, validation_file=measured)
    texts = api.get("/texts", params={"limit": 100}).json()["data"]
    assert {(text["source"], text["held_out"]) for text in texts} == {(learned, False), (measured, True)}


def test_it_learns_its_file_and_nothing_else(api: InProcessApp) -> None:
    """From the base: the file alone. From what is served: old texts, too, so that these are not forgotten."""
    old = "adapter-old"
    api.learn(old, "An old text of the owner's.", "And another one.")
    api.add("New, and not of the file.")
    store, now = api.services.store, api.services.now()
    file = api.uploaded(TEXT, PAIR)
    alone, mixed, named = (job_id(api.tune(file, model=model)) for model in ("pocketllm:base", LATEST, old))
    for job in (alone, mixed, named):
        assert store.jobs.start(job, now=now).parent == (None if job == alone else old)
    ours = {TEXT["text"], PAIR["prompt"]}
    assert {text.text for text in store.texts.of_job(alone)} == ours
    assert {text.text for text in store.texts.of_job(named)} == ours
    old_ones = {"An old text of the owner's.", "And another one."}
    assert {text.text for text in store.texts.of_job(mixed)} == ours | old_ones
    assert_problem(api.delete(f"/adapters/{old}"), 409, "wrong_state")


def test_a_job_whose_file_is_gone_learns_nothing_else(api: InProcessApp) -> None:
    api.learn("adapter-old", "An old text of the owner's.")
    file = api.uploaded(TEXT)
    job = job_id(api.tune(file, model=LATEST))
    api.delete(f"/v1/files/{file}")
    started = api.services.store.jobs.start(job, now=api.services.now())
    assert (started.state, started.texts) == (JobState.RUNNING, 0)
    assert api.services.store.texts.of_job(job) == []
