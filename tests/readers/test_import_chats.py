"""Chat exports: who wrote what, and what the owner answered to what."""

import json
from pathlib import Path
from typing import Any

import pytest

from pocketllm.readers.base import Document, Example, Kind, ReadOptions, Skipped
from pocketllm.readers.chats import ANSWER_CHARACTERS, PROMPT_CHARACTERS, Conversation, Message, examples
from tests.support.reading import gathered, items, look, reasons, write, writers

NNBSP = "\u202f"


def learned(*messages: tuple[str, str], **options: Any) -> list[Document]:
    """What is learned from messages, each its sender and its text."""
    conversation = Conversation(messages=[Message(sender=sender, text=text) for sender, text in messages])
    found = examples([conversation], ReadOptions(me=frozenset({"me"}), **options))
    return [one.item for one in found if isinstance(one, Example)]


HALF = "x" * (ANSWER_CHARACTERS // 2 - 1)  # and a line end
#: By what the owner, "me", does in a chat: its messages, and what is learned from them.
ANSWERS: dict[str, tuple[list[tuple[str, str]], list[Document]]] = {
    "answers": (
        [("Anna", "Tea?"), ("Me", "Yes."), ("Anna", "Two mugs?"), ("me", "Three."), ("Anna", "Oh.")],
        [{"prompt": "Tea?\n", "completion": "Yes."}, {"prompt": "Two mugs?\n", "completion": "Three."}],
    ),
    "answers several messages with several": (
        [("Anna", "Tea?"), ("Anna", "Or not?"), ("me", "Yes."), ("me", "Please.")],
        [{"prompt": "Tea?\nOr not?\n", "completion": "Yes.\nPlease."}],
    ),
    "begins": ([("me", "Tea?"), ("Anna", "Yes.")], [{"text": "Tea?"}]),
    "answers two people": (
        [("Anna", "Tea?"), ("Bert", "Or not?"), ("me", "Yes.")],
        [{"prompt": "Anna: Tea?\nBert: Or not?\n", "completion": "Yes."}],
    ),
    "answers at length": (
        [("Anna", "Well?"), *[("me", HALF)] * 3],
        [{"prompt": "Well?\n", "completion": f"{HALF}\n{HALF}"}, {"text": HALF}],
    ),
    "writes what cannot be stored": (
        [("Anna", "\0"), ("Anna", "a\ud83d\0b\r\n"), ("me", " c\udc00 ")],
        [{"prompt": "a\ufffdb\n", "completion": "c\ufffd"}],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_learned_from_a_chat_in_which_the_owner(name: str) -> None:
    messages, expected = ANSWERS[name]
    assert learned(*messages) == expected


def test_the_prompt_is_bounded() -> None:
    many = learned(*(("Anna", f"message {number}") for number in range(100)), ("me", "Yes."))
    assert many[0]["prompt"] == "".join(f"message {number}\n" for number in range(92, 100))
    (long,) = learned(("Anna", "a"), ("Anna", "b" * 5000 + "c"), ("me", "Yes."))
    assert long["prompt"] == "b" * (PROMPT_CHARACTERS - 1) + "c\n"


def test_an_answer_too_long_for_one_text_is_split() -> None:
    assert [set(item) for item in learned(("a", "?"), ("me", "x " * 500), max_bytes=600)] == [{"text"}, {"text"}]


CHATS: dict[str, tuple[Kind, str, Any]] = {
    "Telegram, one chat": (
        Kind.TELEGRAM,
        "result.json",
        {
            "name": "Anna",
            "type": "personal_chat",
            "id": 1,
            "messages": [
                {"type": "service", "actor": "Anna", "action": "phone_call", "text": ""},
                {"type": "message", "from": "Anna", "from_id": "user1", "text": ["Tea", {"type": "bold", "text": "?"}]},
                {"type": "message", "from": "Me", "from_id": "user2", "text": "Yes."},
                {"type": "message", "from": "Me", "from_id": "user2", "text": "No.", "forwarded_from": "X"},
                {"type": "message", "from": "Me", "from_id": "user2", "text": "", "photo": "a.jpg"},
                {"type": "message", "from": None, "from_id": "user3", "text": "gone"},
            ],
        },
    )
}
for name, lines in {
    "Android": ["31.12.20, 23:58 - Anna: Tea?", "31.12.20, 23:59 - Me: Yes."],
    "Android, American": [f"12/31/20, 9:58{NNBSP}PM - Anna: Tea?", "12/31/20, 9:59 PM - Me: Yes."],
    "Android, Spanish": ["31/12/20 9:58 p. m. - Anna: Tea?", "31/12/20 9:59 p. m. - Me: Yes."],
    "Android, German": ["31.12.20 um 23:58 - Anna: Tea?", "31.12.20 um 23:59 - Me: Yes."],
    "Android, Swedish": ["2020-12-31 23:58 - Anna: Tea?", "2020-12-31 23:59 - Me: Yes."],
    "Android, Korean order": ["2020. 12. 31. 23:58 - Anna: Tea?", "2020. 12. 31. 23:59 - Me: Yes."],
    "iOS": ["[31.12.20, 23:58:01] Anna: Tea?", "\u200e[31.12.20, 23:59:01] Me: Yes."],
    "iOS, American": [f"[12/31/20, 9:58:01{NNBSP}PM] Anna: Tea?", "[12/31/20, 9:59:01 PM] Me: Yes."],
    "iOS, unknown number": ["[31/12/2020, 23:58:01] ~\u202fAnna: Tea?", "[31/12/2020, 23:59:01] Me: Yes."],
}.items():
    CHATS[f"WhatsApp, {name}"] = (Kind.WHATSAPP, "chat.txt", "\n".join(lines) + "\n")


def test_every_kind_of_chat(tmp_path: Path) -> None:
    for name, (kind, file, content) in CHATS.items():
        path = write(tmp_path / name / file, content)
        assert look(path, "Me") == (kind, [Example(item={"prompt": "Tea?\n", "completion": "Yes."})]), name
        assert "Me" in writers(path), name
        assert reasons(path, "Nobody") == ["conversations without messages from you"], name


def test_an_owner_may_be_named_by_an_id_as_telegrams_whole_export_does(tmp_path: Path) -> None:
    _, file, chat = CHATS["Telegram, one chat"]
    answer = {"prompt": "Tea?\n", "completion": "Yes."}
    assert items(write(tmp_path / file, chat), "user2") == [answer]
    whole = {"personal_information": {"user_id": 2, "first_name": "Me"}, "chats": {"list": [chat, chat]}}
    assert items(write(tmp_path / file, whole)) == [answer, answer]


def test_what_whatsapp_itself_writes_is_left_out(tmp_path: Path) -> None:
    lines = [
        "31.12.20, 23:50 - Messages and calls are end-to-end encrypted.",
        "31.12.20, 23:51 - Anna: <Media omitted>",
        "31.12.20, 23:52 - Anna: \u200eimage omitted",
        "31.12.20, 23:53 - Anna: First line",
        "  12: no date, and its second line",
        "31.12.20, 23:54 - Me: This message was deleted",
        "31.12.20, 23:55 - Me: Seen <This message was edited>",
        "31.12.20, 23:56 - Anna changed the subject",
        "31.12.20, 23:57 - Me: <3",
    ]
    assert items(write(tmp_path / "c.txt", "\n".join(lines)), "me") == [
        {"prompt": "First line\n  12: no date, and its second line\n", "completion": "Seen\n<3"}
    ]


def node(identity: str, parent: str | None, role: str, *parts: Any, **more: Any) -> Document:
    content = {"content_type": "text", "parts": list(parts)}
    message = {"author": {"role": role}, "content": content, **more}
    return {identity: {"id": identity, "parent": parent, "children": [], "message": message}}


CHATGPT = {
    "title": "Boats",
    "mapping": {
        "root": {"id": "root", "parent": None, "message": None},
        **node("a", "root", "system", ""),
        **node("b", "a", "user", "How dry is a boat?"),
        **node("c", "b", "assistant", "Very."),
        **node("d", "c", "user", "Then wht?"),
        **node("e", "c", "user", "Then what?", {"content_type": "image_asset_pointer"}),
        **node("f", "e", "user", "hidden", metadata={"is_visually_hidden_from_conversation": True}),
        **node("g", "f", "assistant", "Tea."),
    },
    "current_node": "g",
}


class TestAssistants:
    def test_chatgpt(self, tmp_path: Path) -> None:
        path = write(tmp_path / "conversations.json", [CHATGPT, CHATGPT | {"current_node": None}])
        assert look(path)[0] is Kind.CHATGPT
        asked = ["How dry is a boat?", "Then what?", "How dry is a boat?", "Then wht?", "Then what?"]
        assert [item["text"] for item in items(path)] == asked
        assert items(path, "Somebody") == items(path)

    def test_a_tree_that_bites_its_tail(self, tmp_path: Path) -> None:
        loop = {**node("a", "b", "user", "one"), **node("b", "a", "user", "two")}
        path = write(tmp_path / "conversations.json", [{"mapping": loop, "current_node": "a"}])
        assert [item["text"] for item in items(path)] == ["two", "one"]

    def test_claude(self, tmp_path: Path) -> None:
        chat = [{"sender": "human", "text": "How dry?"}, {"sender": "assistant", "text": "Very."}]
        path = write(tmp_path / "conversations.json", [{"uuid": "1", "name": "", "chat_messages": chat}])
        assert look(path) == (Kind.CLAUDE, [Example(item={"text": "How dry?"})])


OWN: list[Document] = [
    {"text": " kept as\r\nit is \u2028 \0", "source": "a"},
    {"prompt": "Who?", "completion": " Anna.", "source": "chat"},
    {"text": "good day", "label": "positive", "source": "diary"},
    {"messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}], "source": "x"},
]


class TestOwnFormat:
    def test_lines_are_read_back_exactly(self, tmp_path: Path) -> None:
        for name, kind in (("backup.jsonl", None), ("backup", None), ("backup.txt", Kind.JSONL)):
            path = write(tmp_path / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in OWN))
            assert look(path, format=kind)[0] is Kind.JSONL, name
            assert items(path, format=kind) == items(path, "Me", format=kind) == OWN
        assert gathered(tmp_path / "backup.jsonl")[0] == OWN

    def test_one_line_alone_or_a_list_in_one_document(self, tmp_path: Path) -> None:
        for name in ("one.jsonl", "one.json"):
            assert items(write(tmp_path / name, OWN[0])) == OWN[:1]
        assert items(write(tmp_path / "backup.json", OWN)) == OWN

    def test_a_source_is_given_where_there_is_none_and_may_be_changed(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b", "source": "s"}\n')
        assert [item["source"] for item in gathered(path)[0]] == ["jsonl: a.jsonl", "s"]
        assert [item["source"] for item in gathered(path, source="mine")[0]] == ["mine", "mine"]

    def test_lines_that_are_no_example_are_left_out(self, tmp_path: Path) -> None:
        bad = [
            "{",
            "[1]",
            '{"text": 1}',
            '{"text": "\\ud800"}',
            '{"text": "a", "x": 1}',
            "[" * 100_000,
            '{"label": "a"}',
        ]
        path = write(tmp_path / "a.jsonl", "\n".join(['{"text": "good"}', *bad, '{"text": "last"}']))
        found = look(path)[1]
        assert [one.place for one in found if isinstance(one, Skipped)] == [f"line {n}" for n in range(2, 9)]
        assert [one.item["text"] for one in found if isinstance(one, Example)] == ["good", "last"]


class TestTables:
    def test_columns_of_examples(self, tmp_path: Path) -> None:
        labels = "\ufefftext,Label,id\nTwo mugs,positive,1\nRain,,2\n\nSun\n"
        assert look(write(tmp_path / "a.csv", labels), format=Kind.CSV)[1] == [
            Example(item={"label": "positive", "text": "Two mugs"}, place="row 2"),
            Skipped(reason="rows with an empty cell", place="row 3"),
            Skipped(reason="rows with an empty cell", place="row 5"),
        ]
        rows: dict[str, Document] = {
            'Prompt;Completion\r\n"Who; you?";Anna\r\n': {"prompt": "Who; you?", "completion": "Anna"},  # by Excel
            "id\ttext\n1\tRain, then sun\n": {"text": "Rain, then sun"},
            "text\nRain\n": {"text": "Rain"},
        }
        for content, learned in rows.items():
            assert items(write(tmp_path / "b.csv", content), format=Kind.CSV) == [learned], content

    def test_a_table_is_read_only_when_it_is_asked_for(self, tmp_path: Path) -> None:
        for name in ("a.csv", "a.tsv"):
            assert "--format csv" in reasons(write(tmp_path / name, "text\nRain\n"))[0]
        assert items(write(tmp_path / "a.txt", "text\nRain\n"), format=Kind.CSV) == [{"text": "Rain"}]

    def test_unknown_columns(self, tmp_path: Path) -> None:
        for content in ("", "1,2,3\n", "messages\nx\n", "sender,message\nAnna,Tea?\n"):
            assert "add them" in reasons(write(tmp_path / "a.csv", content), format=Kind.CSV)[0], content


def test_the_owner_may_say_what_a_file_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "31.12.20, 23:59 - Me: Yes.\n")
    assert items(path, "Me") == [{"text": "Yes."}]
    assert items(path, "Me", format=Kind.NOTES) == [{"text": "31.12.20, 23:59 - Me: Yes."}]
    assert reasons(write(tmp_path / "b.txt", "Rain"), format=Kind.WHATSAPP)[0].startswith("not a WhatsApp export")
    assert reasons(path, format=Kind.TELEGRAM)[0].startswith("invalid JSON")
    assert reasons(path, format=Kind.MBOX)[0].startswith("not a mailbox")
    for kind in (Kind.TELEGRAM, Kind.CHATGPT, Kind.CLAUDE):
        assert reasons(write(tmp_path / "a.json", [{"a": 1}]), format=kind) == [f"not a {kind} export"]


def test_json_of_another_form_is_left_out_with_advice(tmp_path: Path) -> None:
    chat = [{"from": "Anna", "text": "Tea?"}, {"from": "Me", "text": "Yes."}]
    documents: list[Any] = [[], {}, [1, 2], {"a": {"b": []}}, [{"text": 1, "from": 2}], {"messages": []}, chat]
    for document in documents:
        kind, found = look(write(tmp_path / "a.json", document), "Me")
        assert kind is None, document
        assert "write it as lines of {text} or {prompt, completion}" in str(found), document


def test_json_that_would_take_too_long(tmp_path: Path) -> None:
    deep, named = '{"a": ' * 501 + "1" + "}" * 501, {"a" * 1001: {"b": 1}}
    assert reasons(write(tmp_path / "a.json", deep)) == ["nested too deeply"]
    assert reasons(write(tmp_path / "b.json", named)) == ["has a name of more than 1,000 characters"]


def test_documents_of_the_wrong_shape(tmp_path: Path) -> None:
    shapes: list[Any] = [
        [{"mapping": {"a": None, "b": {"message": {"author": "user"}}}, "current_node": "b"}],
        [{"mapping": {"a": {"message": {"author": {"role": "user"}, "content": {"parts": "x"}}}}}, None, 3],
        [{"chat_messages": [None, {"sender": "human", "text": None}]}, None],
        {"chats": {"list": [None, {"messages": [None, {"from": 1, "text": {}}]}]}, "personal_information": 3},
        {"name": "a", "type": "b", "id": 1, "messages": [{"from_id": 1, "from": None, "text": [1, {"text": 2}]}]},
    ]
    for number, shape in enumerate(shapes):
        found = look(write(tmp_path / f"{number}.json", shape))[1]
        assert not any(isinstance(one, Example) for one in found), shape


def test_json_in_other_encodings(tmp_path: Path) -> None:
    export = json.dumps([{"chat_messages": [{"sender": "human", "text": "Käthe"}]}], ensure_ascii=False)
    for encoding in ("utf-8-sig", "utf-16"):
        assert items(write(tmp_path / "a.json", export.encode(encoding))) == [{"text": "Käthe"}]
